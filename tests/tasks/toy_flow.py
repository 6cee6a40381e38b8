"""A workflow of the two toy stages."""

from pathlib import Path

from flytekit import Resources, workflow
from toy_stages import CountConfig, SumConfig

from accordion.store import Artifact
from tasks._run import Run
from tasks._stage import Stage

ROOT = Path(__file__).parent
COUNT = Stage("count", "toy_stages:count", CountConfig, kind="numbers", gives=("resume",), root=ROOT)
TOTAL = Stage("total", "toy_stages:total", SumConfig, kind="total", files=("*.txt",), root=ROOT)
SMALL = Resources(cpu="1", mem="256Mi")


@COUNT.task(requests=SMALL)
def count(run: Run, config: str) -> Artifact:
    """Count."""
    return COUNT.run(run, config)


@TOTAL.task(requests=SMALL)
def total(run: Run, config: str, numbers: Artifact) -> Artifact:
    """Sum."""
    return TOTAL.run(run, config, numbers=numbers)


@workflow
def toy(run: Run, count_config: str, total_config: str) -> Artifact:
    """Count, then sum."""
    return total(run=run, config=total_config, numbers=count(run=run, config=count_config))
