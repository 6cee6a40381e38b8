"""Service processes: started in a session of their own, recognised later, ended with everything they started."""

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

STOP_SECONDS = 15.0
MARK = "ACCORDION_SERVICE"  # in the environment of a service and of its children: the folder of its state


def launch(command: Sequence[str], *, state: Path, log: Path, variables: Mapping[str, str], cwd: Path) -> psutil.Popen:
    """Start a service detached from this terminal, its output appended to `log`."""
    for folder in (state, log.parent, cwd):
        folder.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        return psutil.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=cwd,
            env={**variables, MARK: str(state)}, start_new_session=True,
        )  # fmt: skip


def same_process(pid: int, created: float) -> psutil.Process | None:
    """The live process `pid` that started at `created`; None when it ended (or another one has its pid now)."""
    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - created) < 1.0 and process.status() != psutil.STATUS_ZOMBIE:
            return process
    except psutil.NoSuchProcess:
        pass
    return None


def end(pid: int, created: float, *, state: Path) -> bool:
    """Ask a service to stop, then kill what is left of it and of its children; returns whether it was running.

    Children are told by their session and by their mark, so that nobody else's process is touched.
    """
    process = same_process(pid, created)
    if process is not None:
        process.terminate()
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(STOP_SECONDS)
    left = [other for other in psutil.process_iter() if _belongs(other, pid, str(state))]
    for other in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            other.kill()
    psutil.wait_procs(left, timeout=5)
    return process is not None


def _belongs(process: psutil.Process, session: int, mark: str) -> bool:
    try:
        return os.getsid(process.pid) == session and process.environ().get(MARK) == mark
    except (ProcessLookupError, PermissionError, psutil.Error):
        return False
