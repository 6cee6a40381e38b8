"""Previous: what a validation made of the version before, in DVC's history of this profile. Never cached."""

import json

from flytekit import Resources, task

from accordion.observe import say
from accordion.store import Artifact
from tasks._run import Run, versions


@task(requests=Resources(cpu="1", mem="512Mi"))
def previous(run: Run, config: str, kind: str, data: Artifact) -> Artifact | None:
    """The newest artifact of `kind` that this profile made from other data than `data`; None for the first version.

    Only data that passed has a validation, so what was refused never becomes what others are measured against. On
    unchanged data the answer stays the same, so that the validation, whose input it is, stays a cache hit.
    """
    if not json.loads(config)["drift"]["compare"]:
        return None
    found = versions(run.settings).before(data, kind, run.profile)
    other = found or "nothing: it is the first version"
    say(f"{data.kind} {data.digest[:16]} is compared with {other}")
    return found
