"""Go back to the version that was champion before: one command, journalled, and safe to repeat."""

from typing import Any

from accordion.errors import ArtifactError
from model_registry.history import reigns, writer
from model_registry.policy import CHAMPION, PREVIOUS
from model_registry.promote import Serve, alias, change, settle


def rollback(mlflow: Any, model: str, *, reason: str = "", serve: Serve | None = None) -> tuple[int, bool]:
    """Make the previous champion champion again.

    Run twice it goes back once: after a rollback the version that serves is the wanted one, and only a new
    promotion gives something to roll back.

    Returns:
        The version that is champion now, and whether anything changed.

    Raises:
        ArtifactError: there is no previous champion.
    """
    with writer():
        settle(mlflow, model, serve)
        champion, previous = alias(mlflow, model, CHAMPION), alias(mlflow, model, PREVIOUS)
        past = reigns(model)
        if past and past[-1].action == "rollback" and champion == past[-1].version:
            return past[-1].version, False
        if champion is None or previous is None:
            raise ArtifactError(f"{model}: champion is {champion} and there is no previous version to go back to")
        change(mlflow, model, previous, champion, "rollback", reason, serve)
        return previous, True
