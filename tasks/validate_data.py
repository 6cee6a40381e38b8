"""Validate: expectations on the raw corpus; a failed one stops the run and shows its rows."""

from flytekit import Resources

from accordion.config.data import ValidateConfig
from accordion.store import Artifact
from tasks._run import Run
from tasks._stage import Stage

STAGE = Stage(
    "validate_data",
    "accordion.data.expectations.raw:validate_data",
    ValidateConfig,
    kind="validation",
    pages=("report.html",),
    files=("result.json", "statistics.json"),
)


@STAGE.task(requests=Resources(cpu="2", mem="2Gi"))
def validate_data(run: Run, config: str, corpus: Artifact, previous: Artifact | None) -> Artifact:
    """Expectations on the raw corpus; a failed one stops the run and shows its rows."""
    return STAGE.run(run, config, corpus=corpus, previous=previous)
