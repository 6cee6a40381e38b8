"""Evaluate: the encoder on collections it never saw, beside BM25 and its untrained self."""

from flytekit import Resources

from accordion.config.release import EvaluateConfig
from accordion.store import Artifact
from tasks._run import Run
from tasks._stage import Stage

STAGE = Stage(
    "evaluate",
    "accordion.retrieval.examine:evaluate",
    EvaluateConfig,
    kind="evaluation",
    files=("figures.json", "per_query.parquet"),
)


@STAGE.task(requests=Resources(cpu="2", mem="4Gi"))
def evaluate(run: Run, config: str, encoder: Artifact, corpus: Artifact) -> Artifact:
    """The encoder on collections it never saw, beside BM25 and its untrained self."""
    return STAGE.run(run, config, encoder=encoder, corpus=corpus)
