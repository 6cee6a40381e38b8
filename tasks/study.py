"""Study: one elastic run against a run for every size, over seeds."""

from flytekit import Resources

from accordion.config.study import StudyConfig
from accordion.store import Artifact
from tasks._run import Run
from tasks._stage import Stage

STAGE = Stage(
    "study",
    "accordion.study.study:elastic_study",
    StudyConfig,
    kind="study",
    gives=("resume", "run"),
    files=("elastic_study.json", "*.png"),  # variants.png only where other recipes were run
)


@STAGE.task(requests=Resources(cpu="2", mem="8Gi"), retries=5)
def study(run: Run, config: str, shards: Artifact) -> Artifact:
    """One elastic run against a run for every size, over seeds."""
    return STAGE.run(run, config, shards=shards)
