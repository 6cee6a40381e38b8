"""The local services: started once on free ports, found by any process, and not believed once they are dead."""

import json
import socket

import psutil
import pytest

from accordion.errors import ServiceError
from accordion.serve import services

pytestmark = [pytest.mark.services, pytest.mark.triton, pytest.mark.slow]


def test_services_start_once_beside_taken_ports_and_a_dead_one_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCORDION_HOME", str(tmp_path))
    with pytest.raises(ServiceError, match="MLflow is not running"):
        services.mlflow_url()
    with pytest.raises(ServiceError, match="Triton is not running"):
        services.triton_addresses()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", services.MLFLOW_PORT))
            taken.listen()
        except OSError:
            pass  # another program has it already, which serves the test as well
        try:
            first = services.up()
            assert not first["mlflow"]["url"].endswith(f":{services.MLFLOW_PORT}")
            assert services.up() == first
            assert services.mlflow_url() == first["mlflow"]["url"]
            recorded = (tmp_path / "services.json").read_text()
            assert json.loads(recorded)["triton"]["pid"] == first["triton"]["pid"] and "secret" not in recorded
            killed = psutil.Process(first["mlflow"]["pid"])
            workers = killed.children(recursive=True)
            assert workers
            killed.kill()
            killed.wait(10)
            with pytest.raises(ServiceError, match="MLflow is not running"):
                services.mlflow_url()
            assert not services.status()["mlflow"]["running"] and services.status()["triton"]["running"]
        finally:
            stopped = services.down()
    assert stopped == ["triton"]
    assert not any(worker.is_running() for worker in workers), "a worker of the killed server was left behind"
    assert services.down() == []
    assert json.loads((tmp_path / "services.json").read_text()) == {"mlflow": None, "triton": None}


def test_a_server_that_cannot_start_names_its_log(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCORDION_HOME", str(tmp_path))
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").write_text("this is no database" * 100)
    with pytest.raises(ServiceError, match=r"(?s)MLflow server ended with code .* log .*mlflow\.log.*database"):
        services.up(("mlflow",))
    assert not services.status()["mlflow"]["running"]
