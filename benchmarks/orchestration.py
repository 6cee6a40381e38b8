"""A workflow against plain calls of the same stages, and its fully cached rerun.

The workflow is the start of the pipeline on the data in the repository: ingest, then the text tokenizer,
cut short. Through the workflow each stage is verified, tracked by an MLflow server, published,
versioned with DVC and given a deck; the plain call of its function does none of that. Every repeat has a home
folder of its own, so nothing is cached but in the rerun.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flytekit import workflow

from accordion.config.data import IngestConfig, TextTokenizerConfig
from accordion.config.runtime import RuntimeConfig, ServicesConfig
from accordion.serve.services import down, up
from accordion.store import Artifact
from benchmarks.harness import Figures, Row, paired
from tasks._run import Run, new_run_id, use_home_cache
from tasks._tracking import start_parent
from tasks.configure import section, source_digest
from tasks.ingest import STAGE as INGEST
from tasks.ingest import ingest
from tasks.tokenizers import TEXT, text_tokenizer

REPEATS = 3
CONFIGS = (IngestConfig(), TextTokenizerConfig(vocabulary=400))
STAGES = (INGEST, TEXT)


@workflow
def start(run: Run, source: str, ingest_config: str, text_config: str) -> Artifact:
    """The first stages of the pipeline."""
    corpus = ingest(run=run, config=ingest_config, source=source)
    return text_tokenizer(run=run, config=text_config, corpus=corpus)


def run(repeats: int) -> list[Row]:
    """Measure with a local MLflow server of the benchmark's own."""
    base = Path(tempfile.mkdtemp(prefix="accordion-orchestration-"))
    try:
        with at_home(base / "services"):
            mlflow = up(("mlflow",))["mlflow"]["url"]
            try:
                reruns: list[float] = []
                ours = workflow_side(base, mlflow, reruns)
                return compare(ours, plain_side(base), reruns, repeats, len(STAGES))
            finally:
                down(("mlflow",))
    finally:
        shutil.rmtree(base, ignore_errors=True)


def compare(
    ours: Callable[[], Figures], plain: Callable[[], Figures], reruns: list[float], repeats: int, stages: int
) -> list[Row]:
    """Rows: whole time against plain calls, the same for each stage, and the cached rerun against the first run.

    Args:
        reruns: filled by `ours` with the seconds of the rerun after each of its runs.
    """
    first, bare = paired(ours, plain, repeats=repeats, label="workflow and plain calls")["whole"]
    again = reruns[-repeats:]  # without the warm-up's
    return [
        Row(
            figure=f"{stages} stages",
            unit="s",
            ours="workflow",
            peer="plain calls",
            ours_values=first,
            peer_values=bare,
        ),
        Row(
            figure="one stage, mean",
            unit="s",
            ours="workflow",
            peer="plain calls",
            ours_values=[value / stages for value in first],
            peer_values=[value / stages for value in bare],
            aim="over a whole run: difference x stages <= 3% of it",
        ),
        Row(
            figure="rerun, all cached",
            unit="s",
            ours="rerun",
            peer="first run",
            ours_values=again,
            peer_values=first,
            aim="the whole pipeline: at most 10 s",
        ),
    ]


def workflow_side(base: Path, mlflow: str, reruns: list[float]) -> Callable[[], Figures]:
    """A workflow in a fresh home, then once more with everything cached."""
    runtime = RuntimeConfig(services=ServicesConfig(mlflow_uri=mlflow))
    source = source_digest(CONFIGS[0])

    def execute() -> Figures:
        with at_home(base / new_run_id()) as folder:
            seconds = []
            for _ in range(2):
                identity = new_run_id()
                parent = start_parent(mlflow, "benchmark", identity, {})
                this = Run(identity, "benchmark", runtime.model_dump_json(), mlflow, parent, "benchmark", "local")
                clock = time.perf_counter()
                start(
                    run=this,
                    source=source,
                    ingest_config=section(CONFIGS[0]),
                    text_config=section(CONFIGS[1]),
                )
                seconds.append(time.perf_counter() - clock)
            shutil.rmtree(folder)
        reruns.append(seconds[1])
        return {"whole": seconds[0]}

    return execute


def plain_side(base: Path) -> Callable[[], Figures]:
    """The stages' functions, called one after another."""

    def execute() -> Figures:
        folder = base / f"plain-{new_run_id()}"
        outs = [folder / stage.name for stage in STAGES]
        for out in outs:
            out.mkdir(parents=True)
        clock = time.perf_counter()
        for stage, config, out in zip(STAGES, CONFIGS, outs, strict=True):
            inputs: dict[str, Any] = {} if stage is INGEST else {"corpus": outs[0]}
            stage.function(config, out=out, **inputs)
        seconds = time.perf_counter() - clock
        shutil.rmtree(folder)
        return {"whole": seconds}

    return execute


@contextmanager
def at_home(folder: Path) -> Iterator[Path]:
    """Use `folder` as the home of everything a run writes, for the length of the block."""
    before = os.environ.get("ACCORDION_HOME")
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["ACCORDION_HOME"] = str(folder)
    use_home_cache()
    try:
        yield folder
    finally:
        if before is None:
            del os.environ["ACCORDION_HOME"]
        else:
            os.environ["ACCORDION_HOME"] = before
        use_home_cache()
