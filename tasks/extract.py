"""Extract: cut members of the elastic family out as models of their own."""

from flytekit import Resources

from accordion.config.extract import ExtractConfig
from accordion.store import Artifact
from tasks._run import Run
from tasks._stage import Stage

STAGE = Stage("extract", "accordion.extract.family:extract", ExtractConfig, kind="family")


@STAGE.task(requests=Resources(cpu="2", mem="4Gi"))
def extract(run: Run, config: str, policy: Artifact, shards: Artifact) -> Artifact:
    """Cut members of the elastic family out as models of their own."""
    return STAGE.run(run, config, policy=policy, shards=shards)
