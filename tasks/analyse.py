"""Analyse: how the router uses its experts, by layer and modality."""

from flytekit import Resources

from accordion.config.pretrain import AnalyseConfig
from accordion.store import Artifact
from tasks._run import Run
from tasks._stage import Stage

STAGE = Stage("analyse", "accordion.evaluate.routing:analyse", AnalyseConfig, kind="analysis", files=("routing.json",))


@STAGE.task(requests=Resources(cpu="2", mem="4Gi"))
def analyse(run: Run, config: str, checkpoint: Artifact, policy: Artifact, shards: Artifact) -> Artifact:
    """How the router uses its experts, by layer and modality."""
    return STAGE.run(run, config, checkpoint=checkpoint, policy=policy, shards=shards)
