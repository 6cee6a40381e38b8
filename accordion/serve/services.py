"""The local services: an MLflow server and the Triton server, started once, health-checked, stopped together.

What runs is recorded in `home()/services.json`, so that any process of the checkout finds it. A record whose
process is gone is stale and counts as not running.
"""

import contextlib
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from accordion.errors import AccordionError, RunLocked, ServiceError
from accordion.home import home
from accordion.observe import say
from accordion.serve import repository
from accordion.serve.client import Admin, EncoderClient
from accordion.serve.process import end, launch, same_process
from accordion.serve.rollout import PREFLIGHT, SERVER, Release
from accordion.serve.server import ServerRecord, free_ports, log_tail, read_record, start, stop
from accordion.store import atomic_write

MLFLOW_PORT = 5000
MLFLOW_START_SECONDS = 300.0
NAMES = ("mlflow", "triton")


@dataclass(frozen=True, kw_only=True)
class _Mlflow:
    url: str
    pid: int
    created: float
    log: str

    def process(self) -> psutil.Process | None:
        return same_process(self.pid, self.created)


def up(names: tuple[str, ...] = NAMES) -> dict[str, dict[str, Any]]:
    """Start what is not running yet, wait until it answers, and give `status()`; a second call starts nothing.

    Ports are MLflow's 5000 and Triton's 8000, 8001, 8002, or free ones when those are in use. Triton comes back
    with the encoder versions that the last rollout left, and the traffic pinned as it was.

    Raises:
        ServiceError: a service does not come up; the text names its log.
    """
    _known(names)
    with _locked():
        waiting = _start_mlflow() if "mlflow" in names else None
        try:
            if "triton" in names:
                _start_triton()
        finally:
            if waiting is not None:
                _wait_for_mlflow(*waiting)
        _write_services()
    return status()


def down(names: tuple[str, ...] = NAMES) -> list[str]:
    """Stop the services; returns the names of those that were running."""
    _known(names)
    stopped = []
    with _locked():
        stop(PREFLIGHT)  # left behind when a rollout was killed
        if "triton" in names and stop(SERVER):
            stopped.append("triton")
        if "mlflow" in names and _stop_mlflow():
            stopped.append("mlflow")
        _write_services()
    return stopped


def status() -> dict[str, dict[str, Any]]:
    """For each service: `running` and, when it was started, its addresses, `pid` and `log`; for Triton also the
    pinned versions of the encoder and which versions are READY."""
    found: dict[str, dict[str, Any]] = {name: {"running": False} for name in NAMES}
    mlflow = _read_mlflow()
    if mlflow is not None and mlflow.process() is not None:
        found["mlflow"] = {"running": answers(f"{mlflow.url}/health"), **_public(asdict(mlflow))}
    record = read_record(SERVER)
    if record is not None and record.alive():
        found["triton"] = {
            "running": answers(f"http://{record.http}/v2/health/ready"),
            **_public(asdict(record)),
            "pins": asdict(Release("encoder").router.pins()),
        }
        if found["triton"]["running"]:
            with Admin(record) as admin:
                found["triton"]["ready"] = [f"{name}/{v}" for (name, v), s in admin.states().items() if s == "READY"]
    return found


def mlflow_page(url: str, page: str = "experiments") -> str:
    """A page of the MLflow server at `url` as it shows trained models; it opens its view for agents otherwise."""
    return f"{url.rstrip('/')}/#/{page}?workflowType=machine_learning"


def mlflow_url() -> str:
    """Address of the running MLflow server.

    Raises:
        ServiceError: it is not running.
    """
    mlflow = _read_mlflow()
    if mlflow is None or mlflow.process() is None:
        raise ServiceError("MLflow is not running; start the services with `accordion up`")
    return mlflow.url


def triton_addresses() -> ServerRecord:
    """Addresses (`http`, `grpc`, `metrics`, each host:port) of the running Triton server.

    Raises:
        ServiceError: it is not running.
    """
    record = read_record(SERVER)
    if record is None or not record.alive():
        raise ServiceError("Triton is not running; start the services with `accordion up`")
    return record


def answers(url: str) -> bool:
    """Whether `url` answers with success within two seconds."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return 200 <= answer.status < 300
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _known(names: tuple[str, ...]) -> None:
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise ServiceError(f"no service {', '.join(unknown)}; there are: {', '.join(NAMES)}")


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    home().mkdir(parents=True, exist_ok=True)
    path = home() / ".services.lock"
    try:
        with FileLock(path, timeout=MLFLOW_START_SECONDS + 60):
            yield
    except Timeout:
        raise RunLocked(f"{path}: another process is starting or stopping the services; try again later") from None


def _state() -> Path:
    return home() / "services" / "mlflow" / "server.json"


def _read_mlflow() -> _Mlflow | None:
    return _Mlflow(**json.loads(_state().read_text())) if _state().is_file() else None


def _start_mlflow() -> tuple[_Mlflow, psutil.Popen] | None:
    """Start the MLflow server unless it runs; the caller waits for it, and may do other work first."""
    running = _read_mlflow()
    if running is not None and running.process() is not None and answers(f"{running.url}/health"):
        return None
    _stop_mlflow()
    folder, log = home() / "mlflow", home() / "logs" / "mlflow.log"
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    (port,) = free_ports((MLFLOW_PORT,))
    say(f"services: starting MLflow on port {port}")
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    variables = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    process = launch(command, state=_state().parent, log=log, variables=variables, cwd=folder)
    record = _Mlflow(url=f"http://127.0.0.1:{port}", pid=process.pid, created=process.create_time(), log=str(log))
    atomic_write(_state(), json.dumps(asdict(record), indent=1))
    return record, process


def _wait_for_mlflow(record: _Mlflow, process: psutil.Popen) -> None:
    deadline = time.monotonic() + MLFLOW_START_SECONDS
    while time.monotonic() < deadline:
        if answers(f"{record.url}/health"):
            return
        if process.poll() is not None:
            _state().unlink(missing_ok=True)
            raise ServiceError(
                f"the MLflow server ended with code {process.returncode} while starting; log {record.log}:\n"
                f"{log_tail(record.log)}"
            )
        time.sleep(0.1)
    _stop_mlflow()
    raise ServiceError(f"the MLflow server did not answer within {MLFLOW_START_SECONDS:.0f} s; log {record.log}")


def _stop_mlflow() -> bool:
    record = _read_mlflow()
    running = record is not None and end(record.pid, record.created, state=_state().parent)
    _state().unlink(missing_ok=True)
    return running


def _start_triton() -> None:
    release = Release("encoder")
    record = read_record(SERVER)
    if record is not None and record.alive():
        if _serves(record, release):
            return
        say("services: Triton does not answer as it should and is started again")
    stop(SERVER)
    say("services: starting Triton")
    record = start(SERVER, release.repository)
    _drop_abandoned_canary(release)
    if (release.repository / release.model / "config.pbtxt").is_file():
        _load_encoder(record, release)


def _serves(record: ServerRecord, release: Release) -> bool:
    """Whether the server is ready and the pinned version answers: one whose stub died still says it is ready."""
    if not answers(f"http://{record.http}/v2/health/ready"):
        return False
    stable = release.router.pins().stable
    if stable is None:
        return True
    with EncoderClient(record.grpc, release.router, model=release.model) as client:
        try:
            client.ask(["does the pinned version answer"], stable)
        except AccordionError as error:
            say(f"services: {error}")
            return False
    return True


def _drop_abandoned_canary(release: Release) -> None:
    """Traffic of a rollout that was killed goes back to the stable version until the rollout is run again."""
    if release.router.pins().canary is None:
        return
    try:
        lock = release.lock()
    except RunLocked:
        return  # it is not abandoned: a rollout is under way
    try:
        release.router.drop_canary()
    finally:
        lock.release()


def _load_encoder(record: ServerRecord, release: Release) -> None:
    """Load the versions that config.pbtxt on disk names; what counts is that the pinned one answers.

    Raises:
        ServiceError: it does not.
    """
    pins = release.router.pins()
    with Admin(record) as admin, EncoderClient(record.grpc, release.router, model=release.model) as client:
        try:
            repository.read_config(release.repository / release.model / "config.pbtxt")
            admin.load(release.model)
        except AccordionError as error:
            say(f"services: {error}")
            _load_one_by_one(admin, release)
        if pins.stable is None:
            return
        try:
            client.ask(["does the pinned version answer"], pins.stable)
        except AccordionError as error:
            raise ServiceError(
                f"Triton runs, but encoder version {pins.stable}, which is pinned, does not answer: {error}; go back "
                f"to the version before with `python -m model_registry rollback`; log {record.log}"
            ) from None


def _load_one_by_one(admin: Admin, release: Release) -> None:
    """Load the pinned versions singly: in a fresh server one version that fails keeps all others out."""
    pins = release.router.pins()
    loaded: list[int] = []
    for version in (pins.stable, pins.previous):
        if version is None:
            continue
        try:
            repository.write_versions(release.repository, release.model, [*loaded, version])
            admin.load(release.model)
            loaded.append(version)
        except AccordionError as error:
            say(f"services: {error}")
    if loaded:
        repository.write_versions(release.repository, release.model, loaded)


def _write_services() -> None:
    """services.json: the addresses, process ids and logs of what runs; no secrets."""
    record, mlflow = read_record(SERVER), _read_mlflow()
    services = {
        "mlflow": _public(asdict(mlflow)) if mlflow is not None else None,
        "triton": _public(asdict(record)) if record is not None else None,
    }
    atomic_write(home() / "services.json", json.dumps(services, indent=1) + "\n")


def _public(record: dict[str, Any]) -> dict[str, Any]:
    shown = ("url", "http", "grpc", "metrics", "pid", "log")
    return {key: record[key] for key in shown if key in record}
