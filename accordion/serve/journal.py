"""The rollout journal: one sealed line an event, never rewritten; history survives any kill."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accordion.store.journal import Journal as Records


class Journal:
    """Append-only events of one model's rollouts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records = Records(path)

    def write(self, event: str, **facts: Any) -> dict[str, Any]:
        """Append one event and return it as written; it is on disk when this returns."""
        entry = {"at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()), "time": time.time(), "event": event, **facts}
        self._records.append(entry)
        return entry

    def read(self) -> Iterator[dict[str, Any]]:
        """Every whole event, oldest first; a last line that a kill cut short is passed over.

        Raises:
            DataError: an event was altered.
        """
        yield from self._records.records()

    def unfinished(self) -> dict[str, Any] | None:
        """The `begin` event of a rollout that neither ended in promotion nor was rolled back, if there is one."""
        begun = None
        for entry in self.read():
            if entry["event"] == "begin":
                begun = entry
            elif entry["event"] in ("promoted", "rolled_back"):
                begun = None
        return begun
