"""The real tritonserver as a process: start, wait until it answers, known-tensor check, stop, clean up after it."""

import contextlib
import json
import os
import secrets
import socket
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from accordion.errors import ServiceError
from accordion.home import REPOSITORY, home
from accordion.serve.process import end, launch, same_process
from accordion.serve.repository import write_echo
from accordion.store import atomic_write

DEFAULT_PORTS = (8000, 8001, 8002)  # HTTP, gRPC, metrics, as Triton has them
ADMIN_KEY = "accordion-admin"  # header that must come with load and unload requests
START_SECONDS = 120.0
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, kw_only=True)
class ServerRecord:
    """A running server, as kept in its state file (readable by its owner only: it holds the admin secret)."""

    pid: int
    created: float  # start time of the process in seconds since the epoch: tells a reused pid from the server's
    http: str
    grpc: str
    metrics: str
    log: str
    repository: str
    prefix: str  # of its shared memory regions
    secret: str

    def alive(self) -> bool:
        """Whether the very process is still there (a zombie or another one with its pid is not)."""
        return same_process(self.pid, self.created) is not None


def triton_environment() -> Path:
    """The folder of the Triton environment.

    Raises:
        ServiceError: it has not been made.
    """
    folder = REPOSITORY / ".venv-triton"
    if not (folder / ".accordion-lock").is_file():
        raise ServiceError(f"{folder}: the Triton environment is missing or unfinished; run `make setup`")
    return folder


def free_ports(preferred: tuple[int, ...]) -> list[int]:
    """For each preferred port: itself when nothing listens there, else one that the kernel gives."""
    with contextlib.ExitStack() as stack:
        ports = []
        for port in preferred:
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                listener = stack.enter_context(socket.socket())
                listener.bind(("127.0.0.1", 0))
            ports.append(listener.getsockname()[1])
        return ports


def state_folder(name: str) -> Path:
    """Where a server's record is kept."""
    return home() / "services" / name


def read_record(name: str) -> ServerRecord | None:
    """The record of the server called `name`, or None when none was started or it was stopped."""
    path = state_folder(name) / "server.json"
    return ServerRecord(**json.loads(path.read_text())) if path.is_file() else None


def start(name: str, repository: Path, *, ports: tuple[int, int, int] = DEFAULT_PORTS) -> ServerRecord:
    """Start tritonserver on loopback with nothing but the echo model loaded, and check that model.

    Args:
        name: names the state file, the log and the shared memory; one live server for each name.
        repository: model repository; the echo model is put into it.
        ports: HTTP, gRPC and metrics ports to take when free, others otherwise (0: always another).

    Raises:
        ServiceError: it did not come up or gave back other tensors than it got; the text names the log.
    """
    environment = triton_environment()
    stop(name)  # one that a killed process left behind
    folder = state_folder(name)
    log = home() / "logs" / f"{name}.log"
    repository.mkdir(parents=True, exist_ok=True)
    write_echo(repository)
    http, grpc, metrics = free_ports(ports)
    secret = secrets.token_hex(16)
    prefix = f"accordion_{name}_{secrets.token_hex(4)}_"
    command = _command(environment, repository, (http, grpc, metrics), prefix, secret)
    process = launch(command, state=folder, log=log, variables=_variables(environment), cwd=folder)
    record = ServerRecord(
        pid=process.pid, created=process.create_time(), http=f"127.0.0.1:{http}",
        grpc=f"127.0.0.1:{grpc}", metrics=f"127.0.0.1:{metrics}", log=str(log), repository=str(repository),
        prefix=prefix, secret=secret,
    )  # fmt: skip
    path = folder / "server.json"
    atomic_write(path, json.dumps(asdict(record), indent=1))
    path.chmod(0o600)
    try:
        _wait_until_live(record, process)
        _check_echo(record)
    except BaseException:
        stop(name)
        raise
    return record


def stop(name: str) -> bool:
    """Stop the server called `name` and clean up after it; returns whether one was running."""
    record = read_record(name)
    if record is None:
        return False
    running = end(record.pid, record.created, state=state_folder(name))
    for region in _SHARED_MEMORY.glob(f"{record.prefix}*"):
        region.unlink(missing_ok=True)
    (state_folder(name) / "server.json").unlink(missing_ok=True)
    return running


@contextmanager
def throwaway(name: str, repository: Path) -> Iterator[ServerRecord]:
    """A server on ports of its own for the length of the block: what a version is tried on before clients see it."""
    record = start(name, repository, ports=(0, 0, 0))
    try:
        yield record
    finally:
        stop(name)


def log_tail(log: str | Path, lines: int = 12) -> str:
    """The last lines of a log, for an error message."""
    path = Path(log)
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.is_file() else ""


def _command(environment: Path, repository: Path, ports: tuple[int, int, int], prefix: str, secret: str) -> list[str]:
    server = environment / "lib/python3.11/site-packages/pytriton/tritonserver/bin/tritonserver"
    http, grpc, metrics = ports
    return [
        str(server),
        f"--model-repository={repository}",
        f"--backend-directory={environment / 'backends'}",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        "--model-control-mode=explicit",
        "--load-model=echo",
        "--disable-auto-complete-config",
        "--pinned-memory-pool-byte-size=0",
        "--allow-gpu-metrics=false",
        "--strict-readiness=false",
        "--exit-timeout-secs=10",
        "--http-address=127.0.0.1", f"--http-port={http}",
        "--grpc-address=127.0.0.1", f"--grpc-port={grpc}",
        "--metrics-address=127.0.0.1", f"--metrics-port={metrics}",
        "--metrics-config=summary_latencies=true",
        f"--http-restricted-api=model-repository:{ADMIN_KEY}={secret}",
        f"--grpc-restricted-protocol=model-repository:{ADMIN_KEY}={secret}",
    ]  # fmt: skip


def _variables(environment: Path) -> dict[str, str]:
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    libraries = environment / "lib/python3.11/site-packages/nvidia_pytriton.libs"
    return variables | {
        "LD_LIBRARY_PATH": f"{libraries}:{sysconfig.get_config_var('LIBDIR')}",
        "PATH": f"{environment / 'bin'}:{variables.get('PATH', '')}",
        "VIRTUAL_ENV": str(environment),
        "PYTHONDONTWRITEBYTECODE": "1",  # a __pycache__ in a version folder makes the server load it again
    }


def _wait_until_live(record: ServerRecord, process: psutil.Popen) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServiceError(
                f"tritonserver ended with code {process.returncode} while starting; log {record.log}:\n"
                f"{log_tail(record.log)}"
            )
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(f"http://{record.http}/v2/health/ready", timeout=2).close()
            return
        time.sleep(0.05)
    raise ServiceError(f"tritonserver did not answer within {START_SECONDS:.0f} s; log {record.log}")


def _check_echo(record: ServerRecord) -> None:
    from accordion.serve.client import echo_differs

    difference = echo_differs(record.grpc)
    if difference:
        raise ServiceError(
            f"tritonserver at {record.grpc} does not return the tensors it gets ({difference}); "
            f"make its environment again: rm -r {REPOSITORY / '.venv-triton'} && make setup; log {record.log}"
        )
