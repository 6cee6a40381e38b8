"""Validate the shards: ranges, positions, padding, counts."""

from flytekit import Resources

from accordion.config.data import ValidateShardsConfig
from accordion.store import Artifact
from tasks._run import Run
from tasks._stage import Stage

STAGE = Stage(
    "validate_shards",
    "accordion.data.expectations.shards:validate_shards",
    ValidateShardsConfig,
    kind="validation-shards",
    pages=("report.html",),
    files=("result.json", "statistics.json"),
)


@STAGE.task(requests=Resources(cpu="2", mem="2Gi"))
def validate_shards(run: Run, config: str, shards: Artifact, previous: Artifact | None) -> Artifact:
    """Ranges, positions, padding, counts."""
    return STAGE.run(run, config, shards=shards, previous=previous)
