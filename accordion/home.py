"""The checkout: its commit, the one folder its runs write to, and the lock that keeps two runs apart."""

import json
import os
import subprocess
import time
from pathlib import Path

from filelock import FileLock, Timeout

from accordion.errors import RunLocked

REPOSITORY = Path(__file__).resolve().parent.parent
_held: dict[Path, FileLock] = {}


def home() -> Path:
    """`$ACCORDION_HOME`, or `runs/` of the checkout: artifacts, MLflow store, DVC, Triton models, caches."""
    return Path(os.environ.get("ACCORDION_HOME") or REPOSITORY / "runs").resolve()


def git_commit() -> str:
    """Commit of the checkout (`-dirty` when changed), `$ACCORDION_COMMIT` in an image, or `unknown`."""
    if os.environ.get("ACCORDION_COMMIT"):
        return os.environ["ACCORDION_COMMIT"]
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def hold_run_lock(name: str = "run") -> None:
    """Hold `home()/.name.lock` until this process ends.

    Raises:
        RunLocked: another process holds it; the text names the process and the remedy.
    """
    folder = home()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".{name}.lock"
    if path in _held:
        return
    lock = FileLock(path)
    owner = folder / f".{name}.owner.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = json.loads(owner.read_text()) if owner.is_file() else {"pid": "unknown", "since": "unknown"}
        raise RunLocked(
            f"{folder} is in use by process {who['pid']} since {who['since']}; wait for it to end, "
            "or give this run a folder of its own with ACCORDION_HOME=/another/folder"
        ) from None
    owner.write_text(json.dumps({"pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}))
    _held[path] = lock
