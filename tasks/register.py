"""Register: the encoder as a version in the MLflow registry, with its lineage and its verdict, passed or not."""

from flytekit import Resources

from accordion.config.release import RegisterConfig
from accordion.store import Artifact
from tasks._run import Run
from tasks._stage import Stage

STAGE = Stage(
    "register",
    "model_registry.register:register",
    RegisterConfig,
    kind="registration",
    gives=("tracker", "store", "versions", "run"),
    files=("registration.json", "model-card.md"),
)


@STAGE.task(requests=Resources(cpu="1", mem="1Gi"))
def register(run: Run, config: str, encoder: Artifact, verdict: Artifact, evaluate: Artifact) -> Artifact:
    """Make a model version of the encoder; `candidate` if its gate passed."""
    return STAGE.run(run, config, encoder=encoder, verdict=verdict, evaluate=evaluate)
