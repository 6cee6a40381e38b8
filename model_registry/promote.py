"""Promote a version to champion: journalled, idempotent, and finished by the next command when killed halfway."""

from collections.abc import Callable
from typing import Any

from accordion.errors import AccordionError, ArtifactError
from accordion.observe import say
from model_registry.history import append, unfinished, writer
from model_registry.policy import CANDIDATE, CHAMPION, PREVIOUS, check_promotable

Serve = Callable[[Any], None]  # given the MLflow model version, make the server answer with it; twice is once


def promote(mlflow: Any, model: str, version: int, *, reason: str = "", serve: Serve | None = None) -> bool:
    """Make `version` the champion; whoever was becomes `previous`.

    Args:
        mlflow: an MlflowClient.
        serve: makes the server answer with a version. None where the caller's rollout already saw to it.

    Returns:
        Whether anything changed.

    Raises:
        ArtifactError: there is no such version, or it did not pass its gate.
    """
    with writer():
        settle(mlflow, model, serve, version)
        found = _version(mlflow, model, version)
        check_promotable(model, version, found.tags)
        champion = alias(mlflow, model, CHAMPION)
        if champion == version:
            if serve is not None:
                serve(found)
            return False
        change(mlflow, model, version, champion, "promote", reason, serve)
        return True


def settle(mlflow: Any, model: str, serve: Serve | None, wanted: int | None = None) -> None:
    """Finish a change that a killed command had begun; without a way to the server, only the `wanted` one."""
    begun = unfinished(model)
    if begun is None:
        return
    if serve is None and wanted is not None and begun["version"] != wanted:
        append({**_facts(begun), "state": "refused", "error": f"superseded by version {wanted}, which serves already"})
        return
    say(f"finishing the {begun['action']} of {model} to version {begun['version']}, begun {begun['at']}")
    try:
        _apply(mlflow, begun, serve)
    except AccordionError as error:
        append({**_facts(begun), "state": "refused", "error": str(error)})
        return
    append({**_facts(begun), "state": "done"})


def change(
    mlflow: Any, model: str, version: int, champion: int | None, action: str, reason: str, serve: Serve | None
) -> None:
    """Write down what is about to happen, do it, write down that it was done (or refused)."""
    entry = {"action": action, "model": model, "version": version, "before": champion, "reason": reason}
    append({**entry, "state": "begin"})
    try:
        _apply(mlflow, entry, serve)
    except AccordionError as error:
        append({**entry, "state": "refused", "error": str(error)})
        raise
    append({**entry, "state": "done"})


def alias(mlflow: Any, model: str, name: str) -> int | None:
    """The version that carries an alias."""
    version = mlflow.get_registered_model(model).aliases.get(name)
    return int(version) if version is not None else None


def _apply(mlflow: Any, entry: dict[str, Any], serve: Serve | None) -> None:
    """Server first, then the aliases: no champion that was not serving. Each step may be repeated."""
    model, version, before = entry["model"], entry["version"], entry["before"]
    if serve is not None:
        serve(_version(mlflow, model, version))
    if before is not None and before != version:
        mlflow.set_registered_model_alias(model, PREVIOUS, str(before))
    mlflow.set_registered_model_alias(model, CHAMPION, str(version))
    if alias(mlflow, model, CANDIDATE) == version:
        mlflow.delete_registered_model_alias(model, CANDIDATE)


def _facts(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in ("action", "model", "version", "before", "reason")}


def _version(mlflow: Any, model: str, version: int) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return mlflow.get_model_version(model, str(version))
    except MlflowException as error:
        raise ArtifactError(
            f"{model} version {version}: not in the registry ({error.message}); "
            "`python -m model_registry history` lists what was champion"
        ) from None
