"""Rollout of an encoder to Triton: preflight, load beside the old version, golden check, shadow, canary, promote.

Every step is journalled and can be repeated: a rollout killed anywhere goes on when it is run again. Until the
promotion, which is one atomic rename of the pins file, the old version answers whatever the canary does not.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from accordion.config.release import RolloutConfig
from accordion.errors import AccordionError, RunLocked, ServiceError
from accordion.home import home
from accordion.observe import say
from accordion.retrieval.contract import EncoderContract
from accordion.serve import repository
from accordion.serve.checks import CheckFailed, Traffic, golden_cosine, judge, send, shadow
from accordion.serve.client import Admin, EncoderClient
from accordion.serve.journal import Journal
from accordion.serve.router import Router
from accordion.serve.server import ServerRecord, read_record, throwaway
from accordion.store import Manifest

SERVER = "triton"
PREFLIGHT = "triton-preflight"


@dataclass(frozen=True)
class Release:
    """Where one model's release state lives on this machine."""

    model: str

    @property
    def repository(self) -> Path:
        return home() / "triton" / "models"

    @property
    def router(self) -> Router:
        return Router(home() / "triton" / f"{self.model}.pins.json")

    @property
    def journal(self) -> Journal:
        return Journal(home() / "triton" / f"{self.model}.journal.jsonl")

    def lock(self) -> FileLock:
        """Take the lock of the one writer; release it when done.

        Raises:
            RunLocked: another rollout or rollback of the model is under way.
        """
        path = home() / "triton" / f".{self.model}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunLocked(f"{path}: another rollout of {self.model} is under way; wait for it to end") from None
        return lock


def running_server() -> ServerRecord:
    """The local Triton server.

    Raises:
        ServiceError: it does not run.
    """
    record = read_record(SERVER)
    if record is None or not record.alive():
        log = f" (log of the last one: {record.log})" if record else ""
        raise ServiceError(f"the Triton server is not running{log}; start it with `accordion up`")
    return record


def rollout(
    config: RolloutConfig, *, out: Path, encoder: Path, queries: Sequence[str], version: int | None = None
) -> dict[str, Any]:
    """Bring an encoder to the clients of the local Triton server, step by step.

    Args:
        out: existing folder; gets journal.jsonl, the events of this rollout.
        encoder: verified folder of the encoder artifact.
        queries: real queries, sent as the traffic of the shadow comparison and the canary (repeated if few).
        version: number the version shall have in Triton; the next free one when not given. The same
            encoder keeps the number it was staged under.

    Returns:
        golden_cosine, served_version, previous_version, requests, errors, p50_ms, p99_ms, timeline (list of
        `{"at": seconds since the begin, "event": name, ...}`), source.

    Raises:
        ServiceError: the version was refused and rolled back (the one before keeps serving), or no server runs.
        RunLocked: another rollout of the model is under way.
    """
    release = Release(config.model)
    lock = release.lock()
    try:
        with EncoderClient(running_server().grpc, release.router, model=config.model) as client:
            run = _Rollout(config, release, client, encoder, [query for query in queries if query.strip()])
            figures = run.carry_out(version)
    finally:
        lock.release()
    lines = [json.dumps(entry) + "\n" for entry in figures["timeline"]]
    (out / "journal.jsonl").write_text("".join(lines))
    return figures


class _Rollout:
    """One rollout under way."""

    def __init__(
        self, config: RolloutConfig, release: Release, client: EncoderClient, encoder: Path, queries: list[str]
    ) -> None:
        if not queries:
            raise ServiceError("rollout: no query to send as traffic, so nothing could be measured; give real queries")
        self.config, self.release, self.client = config, release, client
        self.encoder, self.queries = encoder, queries
        self.source = f"encoder:{Manifest.read(encoder).digest}"
        self.dimension = EncoderContract.load(encoder).dimension
        self.router, self.journal = release.router, release.journal
        self.requests = self.errors = 0
        self.cosine = float("nan")

    def carry_out(self, wanted: int | None) -> dict[str, Any]:
        """All steps, from wherever an earlier, killed rollout left off."""
        version = self._version(wanted)
        begun = self.journal.unfinished()
        if begun is not None and begun["source"] != self.source:
            self._undo(begun["version"], f"another encoder is rolled out: {self.source}")
            begun = None
        if begun is not None:
            self.note("resumed", version)
        elif self.router.pins().stable == version:
            return self._confirm(version)
        else:
            self.note("begin", version, source=self.source, stable=self.router.pins().stable)
        try:
            served = self._bring(version)
        except (CheckFailed, AccordionError) as error:
            self._undo(version, str(error))
            stable = self.router.pins().stable
            keeps = f"version {stable} keeps serving" if stable is not None else "nothing is served"
            raise ServiceError(
                f"rollout of {self.config.model} version {version} was rolled back, {keeps}: {error}; "
                f"journal {self.journal.path}"
            ) from error
        return self._figures(version, served)

    def note(self, event: str, version: int, **facts: Any) -> None:
        """Journal one event and tell whoever watches."""
        self.journal.write(event, version=version, **facts)
        shown = ", ".join(f"{key} {value:.6g}" for key, value in facts.items() if isinstance(value, float | int))
        say(f"rollout: {self.config.model} version {version}: {event.replace('_', ' ')}{' (' if shown else ''}"
            f"{shown}{')' if shown else ''}")  # fmt: skip

    def _version(self, wanted: int | None) -> int:
        staged = repository.versions(self.release.repository, self.config.model)
        for version in reversed(staged):
            same = repository.version_source(self.release.repository, self.config.model, version) == self.source
            if same and wanted in (None, version):
                return version
        return wanted if wanted is not None else max(staged, default=0) + 1

    def _bring(self, version: int) -> Traffic:
        pins = self.router.pins()
        if pins.stable == version:  # killed between the promotion and its journal entry
            self._golden(version, self.client)
            served = self._watch(version, "soak")
            self._finish(version)
            return served
        repository.stage_encoder(self.release.repository, self.config.model, version, self.encoder, self.source)
        self.note("staged", version)
        self._preflight(version)
        self._serve([*pins.resident, version])
        self.note("loaded", version)
        self._golden(version, self.client)
        if pins.stable is not None:
            compared = shadow(self.client, pins.stable, version, self.queries[: self.config.shadow_requests])
            self.requests += compared["requests"]
            self.errors += compared["errors"]
            self.note("shadow", version, **compared)
        served = self._canary(version)
        self.router.promote(version)
        self._finish(version)
        return served

    def _preflight(self, version: int) -> None:
        """The version alone in a server of its own, on other ports: does it load and give what was evaluated?"""
        trial = home() / "triton" / "preflight"
        (trial / self.config.model).mkdir(parents=True, exist_ok=True)
        link = trial / self.config.model / str(version)
        for old in (trial / self.config.model).iterdir():
            old.unlink()
        link.symlink_to(self.release.repository / self.config.model / str(version))
        repository.write_config(trial, self.config.model, self._policy([version]))
        with throwaway(PREFLIGHT, trial) as record, Admin(record) as admin:
            admin.load(self.config.model)
            with EncoderClient(record.grpc, self.router, model=self.config.model) as client:
                self._golden(version, client, "preflight")

    def _policy(self, versions: Sequence[int]) -> str:
        return repository.encoder_config(
            self.config.model, versions, self.dimension, instances=self.config.instances, threads=self.config.threads
        )

    def _serve(self, versions: Sequence[int]) -> None:
        """Write the policy, so that a restart serves the same, load it, and see that every version answers."""
        wanted = sorted(set(versions))
        repository.write_config(self.release.repository, self.config.model, self._policy(wanted))
        with Admin(running_server()) as admin:
            admin.load(self.config.model)
            ready = admin.ready_versions(self.config.model)
        if ready != wanted:
            raise CheckFailed(f"versions {wanted} were loaded, READY are {ready}")
        for version in wanted:
            self.client.ask(self.queries[:1], version)

    def _golden(self, version: int, client: EncoderClient, event: str = "golden") -> None:
        cosine = golden_cosine(client, version, self.encoder)
        if not cosine >= self.config.golden_cosine:
            raise CheckFailed(f"{event}: lowest cosine is {cosine:.8f}, wanted {self.config.golden_cosine}")
        self.cosine = cosine
        self.note(event, version, cosine=cosine)

    def _canary(self, version: int) -> Traffic:
        """Growing shares of the traffic; alone at first release, when there is no stable version to share with."""
        served = Traffic()
        steps = self.config.canary_steps if self.router.pins().stable is not None else (1.0,)
        for share in steps:
            self.router.try_canary(version, share)
            served.add(self._watch(version, f"canary {share:.0%}"))
        return served

    def _watch(self, version: int, step: str) -> Traffic:
        """Real traffic by the pins as they are, until the version was asked often enough; judged by both sides."""
        pins, wanted = self.router.pins(), self.config.requests_per_step
        share = pins.share if pins.canary == version and pins.stable is not None else 1.0
        with Admin(running_server()) as admin:
            before = admin.answered(self.config.model, version)
            traffic = send(
                self.client, pins, self.queries, version, wanted, most=int(2 * wanted / max(share, 1e-3)) + 50
            )
            mine = traffic[version]
            counted = admin.answered(self.config.model, version, at_least=before + len(mine.seconds)) - before
        self.requests += sum(part.requests for part in traffic.values())
        self.errors += sum(len(part.errors) for part in traffic.values())
        judge(mine, counted, step=step, wanted=wanted, error_rate=self.config.error_rate, p99_ms=self.config.p99_ms)
        self.note(
            step.replace(" ", "_"), version, requests=mine.requests, errors=len(mine.errors), counted=counted,
            p50_ms=mine.percentile_ms(50), p99_ms=mine.percentile_ms(99),
            all_requests=sum(part.requests for part in traffic.values()),
        )  # fmt: skip
        return mine

    def _finish(self, version: int) -> None:
        """After the promotion: journal it, keep the two pinned versions loaded, remove old folders."""
        pins = self.router.pins()
        self.note("promoted", version, previous=pins.previous)
        self._serve(pins.resident)
        removed = repository.collect(
            self.release.repository, self.config.model, pins.resident, self.config.keep_versions
        )
        if removed:
            self.journal.write("collected", versions=removed)

    def _undo(self, version: int, reason: str) -> None:
        """Take a version out again: traffic first, then the policy on disk, then the server."""
        if self.router.pins().stable == version:
            self.note("promoted", version, previous=self.router.pins().previous)
            return
        self.router.drop_canary()
        self.note("rolled_back", version, reason=reason, stable=self.router.pins().stable)
        resident = self.router.pins().resident
        folder = self.release.repository / self.config.model
        if resident:
            self._serve(resident)
        elif (folder / "config.pbtxt").is_file():
            (folder / "config.pbtxt").unlink()

    def _confirm(self, version: int) -> dict[str, Any]:
        """The encoder is already the stable version: nothing is rolled out, what serves is measured again."""
        self.note("begin", version, source=self.source, stable=version)
        self._serve(self.router.pins().resident)
        self._golden(version, self.client)
        served = self._watch(version, "soak")
        self.note("promoted", version, previous=self.router.pins().previous)
        return self._figures(version, served)

    def _figures(self, version: int, served: Traffic) -> dict[str, Any]:
        entries: list[dict[str, Any]] = []
        for entry in self.journal.read():
            entries = [entry] if entry["event"] == "begin" else [*entries, entry]
        start = entries[0]["time"]
        hidden = ("time", "at")
        return {
            "golden_cosine": self.cosine,
            "served_version": version,
            "previous_version": self.router.pins().previous,
            "requests": self.requests,
            "errors": self.errors,
            "p50_ms": served.percentile_ms(50),
            "p99_ms": served.percentile_ms(99),
            "source": self.source,
            "timeline": [
                {"at": round(entry["time"] - start, 3), **{k: v for k, v in entry.items() if k not in hidden}}
                for entry in entries
            ],
        }


def rollback(model: str = "encoder") -> int:
    """Send all traffic back to the previous version, at once; returns the version that now serves.

    Raises:
        ServiceError: there is none, or it does not answer.
        RunLocked: a rollout is under way.
    """
    release = Release(model)
    lock = release.lock()
    try:
        pins = release.router.pins()
        if pins.previous is None:
            release.router.roll_back()
        else:
            with EncoderClient(running_server().grpc, release.router, model=model) as client:
                client.ask(["rollback check"], pins.previous)
            release.router.roll_back()
            release.journal.write("rollback", version=pins.previous, replaced=pins.stable)
        return int(pins.previous or 0)
    finally:
        lock.release()
