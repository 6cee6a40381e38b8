"""Pre-train: the elastic mixture of experts on mixed batches of four modalities."""

from flytekit import Resources

from accordion.config.pretrain import PretrainConfig
from accordion.store import Artifact
from tasks._run import Run
from tasks._stage import Stage

STAGE = Stage(
    "pretrain",
    "accordion.train.launch:launch",
    PretrainConfig,
    kind="checkpoint",
    gives=("resume",),
    files=("config.json", "curves.jsonl"),
)


@STAGE.task(requests=Resources(cpu="2", mem="8Gi"), retries=5)
def pretrain(run: Run, config: str, shards: Artifact) -> Artifact:
    """The elastic mixture of experts on mixed batches of four modalities."""
    return STAGE.run(run, config, shards=shards)
