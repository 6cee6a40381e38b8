"""An artifact of an earlier run, as the input of a part of the DAG."""

from flytekit import Resources, task

from accordion.errors import ArtifactError
from accordion.store import Artifact
from tasks._run import Run, resolve


@task(requests=Resources(cpu="1", mem="512Mi"))
def existing(run: Run, reference: str, kind: str) -> Artifact:
    """Read `KIND:SHA256`, check the kind, and verify the folder."""
    artifact = Artifact.parse(reference)
    if artifact.kind != kind:
        raise ArtifactError(f"{reference}: is a {artifact.kind}; wanted a {kind}")
    resolve(artifact, run.settings)
    return artifact
