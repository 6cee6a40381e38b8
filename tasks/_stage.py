"""The stage contract, kept in one place: how a function of the library runs as a node of the DAG.

`Stage.run` verifies the inputs, calls the function, writes its metrics, publishes the folder, versions it with
DVC, tracks it in MLflow, makes the deck and records the time; `Stage.task` makes the Flyte task, whose cache key
is the stage's own settings, the digests of its inputs and the version of the code it reaches.
"""

import hashlib
import importlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from flytekit import Cache, Deck, Resources, current_context, task
from flytekit.core.context_manager import FlyteContextManager
from flytekit.exceptions.user import FlyteRecoverableException

from accordion.config import Settings
from accordion.errors import AccordionError, DataError, Interrupted, RankLost, ServiceError, ValidationFailed
from accordion.home import home
from accordion.observe import listening, say
from accordion.store import Artifact, atomic_write
from accordion.store.atomic import disk_full
from tasks import _deck, _refused
from tasks._code import ROOT, code_version
from tasks._run import Run, resolve, store, versions
from tasks._tracking import StageTracker, source_tags, tracked

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
METRICS = "metrics.json"
RECOVERABLE = (ServiceError, Interrupted, RankLost, ConnectionError, TimeoutError)
IGNORED = ("run",)  # inputs that describe an execution and are no part of what is computed


@dataclass(frozen=True)
class Stage:
    """One node: a function of the library and what the runner must know of it.

    Attributes:
        name: of the node, its MLflow run and its row in the report.
        runs: `module:function`, called as `function(config, *, out, **inputs) -> metrics`.
        section: the class of its settings.
        kind: of the artifact it makes.
        gives: what else the function takes from the runner, by keyword: `resume` (a folder that outlives a killed
            attempt of the same work), `tracker` (its MLflow run), `store` and `versions` (artifacts and
            their DVC records), `run` (the execution).
        reads: files or folders of the repository that it reads as data; they count as code.
        pages: HTML files of its artifact that belong in its deck.
        files: files of its artifact, or patterns of them, that are logged to MLflow, besides metrics.json and the
            pages.
    """

    name: str
    runs: str
    section: type[Settings]
    kind: str
    gives: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    pages: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    root: Path = field(default=ROOT, repr=False)

    @cached_property
    def code(self) -> str:
        """Version of the sources that the function reaches."""
        return code_version(self.runs.partition(":")[0], root=self.root, also=self.reads)

    @property
    def function(self) -> Callable[..., Mapping[str, Any]]:
        module, _, name = self.runs.partition(":")
        return getattr(importlib.import_module(module), name)

    def task(
        self, *, requests: Resources, retries: int = 2, **options: Any
    ) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
        """Make the decorated function a Flyte task: cached, with resources, retries of recoverable errors, a deck."""
        return task(
            cache=Cache(version=self.code, ignored_inputs=IGNORED, serialize=True),
            requests=requests,
            retries=retries,
            enable_deck=True,
            deck_fields=(),
            **options,
        )

    def run(self, run: Run, config: str, **inputs: Artifact | None) -> Artifact:
        """Do the stage's work and publish what it made; an input that is None is one that there is not.

        Raises:
            AccordionError: whatever the stage raised; what it had written is kept in `home()/failures/`.
            FlyteRecoverableException: on a cluster, so that Flyte tries again: a service or another process of the
                run did not answer, or the machine was taken back, before which the stage saved its state.
        """
        try:
            return self._run(run, config, {name: given for name, given in inputs.items() if given is not None})
        except RECOVERABLE as error:
            state = FlyteContextManager.current_context().execution_state
            if state is None or state.is_local_execution():
                raise
            raise FlyteRecoverableException(str(error)) from error

    def _run(self, run: Run, config: str, inputs: Mapping[str, Artifact]) -> Artifact:
        settings = self.section.from_json(config)
        resume = self._resume_folder(settings, inputs)
        folders: dict[str, Path] = {name: resolve(artifact, run.settings) for name, artifact in inputs.items()}
        from accordion.report.deck import deck as sections  # draws with matplotlib: only where a stage is executed

        say(f"== {self.name}")
        started, clock = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.monotonic()
        tags = {"git_commit": run.commit, "code_version": self.code, "flyte_execution": run.execution}
        tags |= {f"input.{name}": str(artifact) for name, artifact in inputs.items()}
        tags |= source_tags(self.runs, run.commit)
        tracker = StageTracker(run.tracking_uri, run.parent, self.name, self._description, tags)
        with (
            tracked(tracker),
            store().staging(self.name) as out,
            self._kept_on_failure(run, config, inputs, out, tracker),
        ):
            tracker.params(json.loads(config))
            curves: dict[str, list[tuple[int, float]]] = {}
            metrics, measured = self._call(settings, out, folders, resume, run, tracker, curves)
            atomic_write(out / METRICS, json.dumps(metrics, indent=1, allow_nan=False) + "\n")
            created = {"at": started, "git_commit": run.commit, "code_version": self.code, "run": run.id, **measured}
            artifact = store().publish(
                out, kind=self.kind, stage=self.name, config=json.loads(config), parents=inputs, created=created
            )
            version = versions(run.settings).add(artifact, f"{self.name} of run {run.id}", profile=run.profile)
            folder = store().path(artifact)
            tags = {"artifact": str(artifact), "dvc": version.hash, "bytes": str(version.bytes)}
            pages = [folder / page for page in self.pages]
            about = {**tags, "seconds": f"{measured['seconds']:.1f}", "git commit": run.commit}
            metrics |= {"speed": measured["speed"]}
            deck = _deck.render(self.name, about, config, sections(self.name, metrics, folder), curves, pages)
            self._write_deck(run, deck)
            files = [folder / METRICS, *pages, *self._logged(folder)]
            tracker.finish(metrics, tags, [*files, run.history / "decks" / f"{self.name}.html"])
        shutil.rmtree(resume, ignore_errors=True)
        record = {"artifact": str(artifact), "cached": False, "started": started, **measured}
        record["whole_seconds"] = time.monotonic() - clock
        (run.history / "stages").mkdir(parents=True, exist_ok=True)
        atomic_write(run.history / "stages" / f"{self.name}.json", json.dumps(record, indent=1) + "\n")
        say(f"== {self.name}: {artifact.kind} {artifact.digest[:16]} in {measured['seconds']:.1f} s")
        return artifact

    def _call(
        self,
        settings: Settings,
        out: Path,
        folders: Mapping[str, Path],
        resume: Path,
        run: Run,
        tracker: StageTracker,
        curves: dict[str, list[tuple[int, float]]],
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Call the function: its metrics, and the seconds and peak memory it took."""

        def listen(step: int, figures: Mapping[str, float]) -> None:
            tracker.record(step, figures)
            for name, value in figures.items():
                if math.isfinite(value):
                    curves.setdefault(name, []).append((step, float(value)))

        offers: dict[str, Any] = {"tracker": tracker, "store": store(), "run": run}
        offers["versions"] = versions(run.settings)
        if "resume" in self.gives:
            offers["resume"] = resume
            resume.mkdir(parents=True, exist_ok=True)
        extra = {name: offers[name] for name in self.gives}
        function = self.function
        _set_threads(run.settings.threads)
        _reset_peak_memory()
        clock = time.monotonic()
        from accordion.device import device  # brings torch: only where a stage is executed

        with listening(listen), device(run.settings.device):
            metrics = dict(function(settings, out=out, **folders, **extra))
        measured: dict[str, Any] = {"seconds": time.monotonic() - clock, "peak_rss_bytes": _peak_memory()}
        measured["speed"] = metrics.pop("speed", {})  # tells of the making, so it is no part of the digest
        try:
            json.dumps(metrics, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DataError(f"stage {self.name}: its metrics are not finite plain JSON: {error}") from error
        return metrics, measured

    def _resume_folder(self, settings: Settings, inputs: Mapping[str, Artifact]) -> Path:
        """Where this work, half done, is kept: found again by the same code, inputs and settings that matter to it."""
        under = json.dumps(settings.resumed_under(), sort_keys=True)
        parts = [self.name, self.code, under, *(f"{name}={artifact}" for name, artifact in sorted(inputs.items()))]
        return home() / "resume" / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    @property
    def _description(self) -> str:
        return (sys.modules[self.function.__module__].__doc__ or self.runs).strip().splitlines()[0]

    @contextmanager
    def _kept_on_failure(
        self, run: Run, config: str, inputs: Mapping[str, Artifact], out: Path, tracker: StageTracker
    ) -> Iterator[None]:
        """Move what a failing stage had written to `home()/failures/` and name the place in the error.

        What a validation refused is kept as an artifact besides, with its page in the deck.
        """
        try:
            yield
        except BaseException as error:
            if not out.is_dir() or not any(out.iterdir()) or disk_full(error):  # a full disk is not for copies
                raise
            kept = home() / "failures" / f"{self.name}-{time.strftime('%Y%m%d-%H%M%S')}"
            kept.parent.mkdir(exist_ok=True)
            os.rename(out, kept)
            note = f"stage {self.name} failed; what it had written is kept in {kept}"
            if isinstance(error, ValidationFailed):
                created = {"run": run.id, "git_commit": run.commit, "code_version": self.code}
                artifact, deck = _refused.keep(self, run, config, inputs, kept, created)
                self._write_deck(run, deck)
                Deck.publish()  # Flyte writes the deck of a task that ended well; this one will not
                tracker.client.set_tag(tracker.run_id, "refused", str(artifact))
                for path in sorted(kept.iterdir()):
                    tracker.client.log_artifact(tracker.run_id, str(path))
                note += f", and as {artifact.kind}:{artifact.digest[:16]}"
            if isinstance(error, AccordionError):
                error.args = (f"{error}\n{note}",)
            else:
                error.add_note(note)
            raise

    def _logged(self, folder: Path) -> list[Path]:
        return [path for name in self.files for path in (sorted(folder.glob(name)) or [folder / name])]

    def _write_deck(self, run: Run, html: str) -> None:
        Deck(self.name, html)
        decks = run.history / "decks"
        decks.mkdir(parents=True, exist_ok=True)
        atomic_write(decks / f"{self.name}.html", f'<!doctype html><meta charset="utf-8">{html}')


def execution_id() -> str:
    """Flyte's id of this execution (`local` for a local run)."""
    execution = current_context().execution_id
    return execution.name if execution else "local"


def _set_threads(count: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(count)  # for what the stage imports later
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def _reset_peak_memory() -> None:
    """Start a new high-water mark of this process (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> int:
    """Bytes: the highest resident size of this process since the last reset."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
