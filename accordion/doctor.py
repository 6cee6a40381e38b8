"""What `accordion doctor` checks about this machine, and the remedy for each thing that is missing."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from accordion.errors import AccordionError
from accordion.home import REPOSITORY, home

DISK_BYTES = 5 * 2**30
MEMORY_BYTES = 8 * 2**30
PORTS = {"MLflow": 5000, "Triton HTTP": 8000, "Triton gRPC": 8001, "Triton metrics": 8002}


@dataclass(frozen=True)
class Check:
    """One finding. `needed` ones that are not `ok` make the machine unfit; others are advice."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    needed: bool = True


def examine() -> list[Check]:
    """Every check, in the order in which to mend what fails."""
    checks: list[Callable[[], Check]] = [
        _python, _environment, _git, _disk, _memory, _triton_environment, _stub_libraries, _numpy, _ports, _services,
    ]  # fmt: skip
    return [check() for check in checks]


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check(
        "Python 3.11", sys.version_info[:2] == (3, 11), version,
        "install Python 3.11 (Debian 12: apt-get install python3) and run `make setup`",
    )  # fmt: skip


def _environment() -> Check:
    stamp = REPOSITORY / ".venv" / ".accordion-lock"
    inside = sys.prefix != sys.base_prefix
    return Check(
        "environment .venv", stamp.is_file() and inside, sys.prefix if inside else "no virtual environment is active",
        "run `make setup`", needed=not inside,
    )  # fmt: skip


def _git() -> Check:
    found = shutil.which("git")
    return Check("git", found is not None, found or "not on PATH", "apt-get install git")


def _disk() -> Check:
    home().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home()).free
    return Check(
        "disk", free >= DISK_BYTES, f"{free / 2**30:.1f} GiB free at {home()}, a run wants {DISK_BYTES / 2**30:.0f}",
        "free some space, or set ACCORDION_HOME to a folder on another disk",
    )  # fmt: skip


def _memory() -> Check:
    memory = psutil.virtual_memory()
    return Check(
        "memory", memory.available >= MEMORY_BYTES,
        f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB available, a run wants up to 8",
        "end other programs, or choose a smaller profile", needed=memory.total < MEMORY_BYTES,
    )  # fmt: skip


def _triton_environment() -> Check:
    from accordion.serve.server import triton_environment

    try:
        return Check("Triton environment", True, str(triton_environment()))
    except AccordionError as error:
        return Check("Triton environment", False, str(error), "run `make setup`")


def _stub_libraries() -> Check:
    name, remedy = "Triton libraries", "apt-get install libpython3.11, or run `make setup` as root"
    stub = REPOSITORY / ".venv-triton/backends/python/triton_python_backend_stub"
    if not stub.is_file():
        return Check(name, False, f"{stub} is missing", "run `make setup`")
    package = REPOSITORY / ".venv-triton/lib/python3.11/site-packages/nvidia_pytriton.libs"
    search = {"LD_LIBRARY_PATH": f"{package}:{sysconfig.get_config_var('LIBDIR')}"}
    done = subprocess.run(["ldd", str(stub)], capture_output=True, text=True, env=os.environ | search)
    missing = [line.split()[0] for line in done.stdout.splitlines() if "not found" in line]
    return Check(name, not missing, f"not found: {', '.join(missing)}" if missing else "all found", remedy)


def _numpy() -> Check:
    python = REPOSITORY / ".venv-triton/bin/python"
    if not python.is_file():
        return Check("numpy below 2 for Triton", False, f"{python} is missing", "run `make setup`")
    done = subprocess.run([python, "-c", "import numpy; print(numpy.__version__)"], capture_output=True, text=True)
    version = done.stdout.strip()
    return Check(
        "numpy below 2 for Triton", version.startswith("1."), version or done.stderr.strip()[-200:],
        "rm -r .venv-triton && make setup (with numpy 2 the server reads every FP32 input as zeros)",
    )  # fmt: skip


def _ports() -> Check:
    from accordion.serve.server import free_ports

    taken = [f"{name} {port}" for name, port in PORTS.items() if free_ports((port,)) != [port]]
    detail = f"in use: {', '.join(taken)}" if taken else "all free"
    return Check("default ports", not taken, detail, "nothing to do: other ports are taken", needed=False)


def _services() -> Check:
    from accordion.serve.services import status

    running = [name for name, state in status().items() if state["running"]]
    return Check(
        "services", len(running) == 2, f"running: {', '.join(running) or 'none'}", "`accordion up` starts them",
        needed=False,
    )  # fmt: skip
