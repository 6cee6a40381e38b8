"""Reinforcement learning with a verifiable reward."""

from flytekit import Resources

from accordion.config.posttrain import RlConfig
from accordion.store import Artifact
from tasks._run import Run
from tasks._stage import Stage

STAGE = Stage(
    "rl",
    "accordion.rl.train:rl",
    RlConfig,
    kind="policy",
    files=("curves.jsonl", "problems.jsonl"),
)


@STAGE.task(requests=Resources(cpu="2", mem="8Gi"))
def rl(run: Run, config: str, policy: Artifact, text: Artifact) -> Artifact:
    """Reinforcement learning with a verifiable reward."""
    return STAGE.run(run, config, policy=policy, text=text)
