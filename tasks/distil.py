"""Distil: a retrieval encoder from one member of the family."""

from flytekit import Resources

from accordion.config.retrieval import DistilConfig
from accordion.store import Artifact
from tasks._run import Run
from tasks._stage import Stage

STAGE = Stage(
    "distil",
    "accordion.retrieval.distil:distil",
    DistilConfig,
    kind="encoder",
    files=("contract.json", "config.json"),
)


@STAGE.task(requests=Resources(cpu="2", mem="8Gi"))
def distil(run: Run, config: str, family: Artifact, corpus: Artifact, text: Artifact) -> Artifact:
    """A retrieval encoder from one member of the family."""
    return STAGE.run(run, config, family=family, corpus=corpus, text=text)
