"""An artifact of an earlier run, as the input of a part of the DAG."""

import re

from flytekit import Resources, task

from accordion.errors import ArtifactError
from accordion.lookup import known
from accordion.store import Artifact
from tasks._run import Run, resolve


@task(requests=Resources(cpu="1", mem="512Mi"))
def existing(run: Run, reference: str, kind: str) -> Artifact:
    """Read `KIND:SHA256`, check the kind, and verify the folder.

    On the machine that holds the store `KIND` (its newest) and the beginning of the SHA-256 are enough, as on the
    command line; elsewhere only the whole name says what it is.
    """
    whole = re.fullmatch(r"[^:]+:[0-9a-f]{64}", reference)
    artifact = Artifact.parse(reference) if whole else known(reference)
    if artifact.kind != kind:
        raise ArtifactError(f"{reference}: is a {artifact.kind}; wanted a {kind}")
    resolve(artifact, run.settings)
    return artifact
