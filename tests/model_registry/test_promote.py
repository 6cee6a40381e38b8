"""Promote and roll back against a real MLflow registry: aliases, journal, repetition, kills between the steps."""

from pathlib import Path
from typing import Any

import pytest

from accordion.errors import ArtifactError, ServiceError
from model_registry.history import append, entries, journal_path, reigns, unfinished
from model_registry.policy import check_files
from model_registry.promote import alias, promote
from model_registry.rollback import rollback

MODEL = "accordion-encoder"


class Server:
    """What serves: the last version it was told to."""

    def __init__(self) -> None:
        self.version = 0
        self.fails = False
        self.killed = False

    def __call__(self, found: Any) -> None:
        if self.fails:
            raise ServiceError("the server refused")
        self.version = int(found.version)
        if self.killed:
            self.killed = False
            raise KeyboardInterrupt  # killed between the server and the alias


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def mlflow(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from mlflow import MlflowClient

    monkeypatch.setenv("ACCORDION_HOME", str(tmp_path))
    client = MlflowClient(uri)
    if client.search_registered_models(f"name = '{MODEL}'"):
        client.delete_registered_model(MODEL)
    client.create_registered_model(MODEL)
    for passed in ("true", "true", "false"):
        client.create_model_version(MODEL, source=tmp_path.as_uri(), tags={"gate.passed": passed})
    return client


def aliases(mlflow: Any) -> dict[str, int | None]:
    return {name: alias(mlflow, MODEL, name) for name in ("candidate", "champion", "previous")}


def test_promotes_and_rolls_back_once_each(mlflow: Any) -> None:
    server = Server()
    mlflow.set_registered_model_alias(MODEL, "candidate", "2")
    assert promote(mlflow, MODEL, 1, serve=server)
    assert promote(mlflow, MODEL, 2, serve=server)
    assert not promote(mlflow, MODEL, 2, serve=server)
    assert aliases(mlflow) == {"candidate": None, "champion": 2, "previous": 1} and server.version == 2
    assert rollback(mlflow, MODEL, reason="slow", serve=server) == (1, True)
    assert rollback(mlflow, MODEL, serve=server) == (1, False)
    assert aliases(mlflow)["champion"] == 1 and server.version == 1
    past = reigns(MODEL)
    assert [(reign.version, reign.action, reign.until is None) for reign in past] == [
        (1, "promote", False), (2, "promote", False), (1, "rollback", True),
    ]  # fmt: skip


def test_a_command_killed_between_server_and_alias_is_finished_by_the_next(mlflow: Any) -> None:
    server = Server()
    promote(mlflow, MODEL, 1, serve=server)
    server.killed = True
    with pytest.raises(KeyboardInterrupt):
        promote(mlflow, MODEL, 2, serve=server)
    assert (server.version, alias(mlflow, MODEL, "champion")) == (2, 1)
    assert unfinished(MODEL) is not None
    assert rollback(mlflow, MODEL, serve=server) == (1, True)
    assert [(e["action"], e["version"], e["state"]) for e in entries(MODEL)][2:] == [
        ("promote", 2, "begin"), ("promote", 2, "done"), ("rollback", 1, "begin"), ("rollback", 1, "done"),
    ]  # fmt: skip


def test_a_refusing_server_changes_no_alias(mlflow: Any) -> None:
    server = Server()
    promote(mlflow, MODEL, 1, serve=server)
    server.fails = True
    with pytest.raises(ServiceError):
        promote(mlflow, MODEL, 2, serve=server)
    assert alias(mlflow, MODEL, "champion") == 1 and unfinished(MODEL) is None
    assert entries(MODEL)[-1]["state"] == "refused"


def test_refuses_a_failed_gate_an_unknown_version_and_a_rollback_to_nothing(mlflow: Any) -> None:
    with pytest.raises(ArtifactError, match="failed its gate"):
        promote(mlflow, MODEL, 3)
    with pytest.raises(ArtifactError, match="not in the registry"):
        promote(mlflow, MODEL, 9)
    with pytest.raises(ArtifactError, match="no previous"):
        rollback(mlflow, MODEL)
    assert reigns(MODEL) == []


def test_a_line_cut_short_by_a_kill_is_dropped(mlflow: Any) -> None:
    promote(mlflow, MODEL, 1)
    with open(journal_path(), "a") as file:
        file.write('{"at": "2026-01-01", "sta')
    assert len(reigns(MODEL)) == 1
    append({"model": MODEL, "state": "begin", "version": 2})
    assert [entry["state"] for entry in entries(MODEL)] == ["begin", "done", "begin"]


def test_no_pickle_is_registered(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").touch()
    with pytest.raises(ArtifactError, match=r"weights\.pt"):
        check_files(tmp_path)
