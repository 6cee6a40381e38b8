"""Ingest: the source data as one verified corpus."""

from flytekit import Resources

from accordion.config.data import IngestConfig
from accordion.store import Artifact
from tasks._run import Run
from tasks._stage import Stage

STAGE = Stage("ingest", "accordion.data.ingest:ingest", IngestConfig, kind="corpus")


@STAGE.task(requests=Resources(cpu="2", mem="2Gi"))
def ingest(run: Run, config: str, source: str) -> Artifact:
    """Read the source data; `source` is its digest, so that changed data is not a cache hit."""
    return STAGE.run(run, config)
