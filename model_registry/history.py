"""The registry's journal: who was champion when, which MLflow itself does not keep. Append-only JSON lines."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from accordion.errors import DataError, RunLocked
from accordion.home import home


@dataclass(frozen=True)
class Reign:
    """A version that was champion: since when, until when (None: still), and by what command."""

    model: str
    version: int
    since: str
    until: str | None
    action: str
    reason: str


def journal_path() -> Path:
    """`home()/registry/journal.jsonl`."""
    return home() / "registry" / "journal.jsonl"


@contextmanager
def writer() -> Iterator[None]:
    """Be the one process that changes the registry.

    Raises:
        RunLocked: another one is changing it.
    """
    path = journal_path().parent / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path).acquire(timeout=30):
            yield
    except Timeout:
        raise RunLocked(f"{path}: another command is changing the registry; wait for it to end") from None


def append(entry: dict[str, Any]) -> None:
    """Add one line and make it durable before anything acts on it."""
    path = journal_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and not path.read_bytes().endswith(b"\n"):  # cut short by a kill, so never acted on
        whole = path.read_bytes()
        os.truncate(path, whole.rfind(b"\n") + 1)
    line = json.dumps({"at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **entry})
    with open(path, "a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def entries(model: str | None = None) -> list[dict[str, Any]]:
    """Every entry, oldest first; a last line cut short by a kill was never acted on and is passed over.

    Raises:
        DataError: a line in the middle is not readable.
    """
    path = journal_path()
    lines = path.read_text().split("\n") if path.is_file() else [""]
    try:
        found = [json.loads(line) for line in lines[:-1]]
    except ValueError as error:
        raise DataError(f"{path}: a line is not JSON ({error}); restore the file from a backup") from None
    return [entry for entry in found if model in (None, entry.get("model"))]


def unfinished(model: str) -> dict[str, Any] | None:
    """The change of `model` that was begun and neither done nor refused, if there is one."""
    rows = [entry for entry in entries(model) if entry["state"] in ("begin", "done", "refused")]
    return rows[-1] if rows and rows[-1]["state"] == "begin" else None


def reigns(model: str) -> list[Reign]:
    """Who was champion when, oldest first."""
    done = [entry for entry in entries(model) if entry["state"] == "done"]
    ends = [*(entry["at"] for entry in done[1:]), None][: len(done)]
    return [
        Reign(model, entry["version"], entry["at"], until, entry["action"], entry.get("reason", ""))
        for entry, until in zip(done, ends, strict=True)
    ]
