"""The registry's journal: who was champion when, which MLflow itself does not keep. Append-only sealed lines."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from accordion.errors import RunLocked
from accordion.home import home
from accordion.store.journal import Journal


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
    Journal(journal_path()).append({"at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **entry})


def entries(model: str | None = None) -> list[dict[str, Any]]:
    """Every entry, oldest first; a last line cut short by a kill was never acted on and is passed over.

    Raises:
        DataError: a line was altered.
    """
    return [entry for entry in Journal(journal_path()).records() if model in (None, entry.get("model"))]


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
