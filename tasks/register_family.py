"""Register the family: the full model and its members as versions in the MLflow registry, linked to each other."""

from flytekit import Resources

from accordion.config.release import RegisterFamilyConfig
from accordion.store import Artifact
from tasks._run import Run
from tasks._stage import Stage

STAGE = Stage(
    "register_family",
    "model_registry.family:register_family",
    RegisterFamilyConfig,
    kind="family-registration",
    gives=("tracker", "store", "versions", "run"),
    files=("family.json",),
)


@STAGE.task(requests=Resources(cpu="1", mem="1Gi"))
def register_family(
    run: Run, config: str, policy: Artifact, family: Artifact, search: Artifact | None = None
) -> Artifact:
    """Make model versions of the full model and of each member cut from it or found in it."""
    return STAGE.run(run, config, policy=policy, family=family, search=search)
