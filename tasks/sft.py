"""Supervised fine-tuning on solved problems."""

from flytekit import Resources

from accordion.config.posttrain import SftConfig
from accordion.store import Artifact
from tasks._run import Run
from tasks._stage import Stage

STAGE = Stage("sft", "accordion.rl.sft:sft", SftConfig, kind="policy-sft", files=("curves.jsonl",))


@STAGE.task(requests=Resources(cpu="2", mem="8Gi"))
def sft(run: Run, config: str, checkpoint: Artifact, text: Artifact, shards: Artifact) -> Artifact:
    """Supervised fine-tuning on solved problems."""
    return STAGE.run(run, config, checkpoint=checkpoint, text=text, shards=shards)
