"""The rollout journal: one JSON line an event, appended and fsynced, never rewritten; history survives any kill."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Journal:
    """Append-only events of one model's rollouts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: str, **facts: Any) -> dict[str, Any]:
        """Append one event and return it as written; it is on disk when this returns."""
        entry = {"at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()), "time": time.time(), "event": event, **facts}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab+") as file:
            if file.tell() and not self._ends_whole():
                file.write(b"\n")  # a kill cut the line before this one; it stays, unreadable, on a line of its own
            file.write((json.dumps(entry, allow_nan=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
        return entry

    def read(self) -> Iterator[dict[str, Any]]:
        """Every whole event, oldest first; a line that a kill cut short is passed over."""
        if not self.path.is_file():
            return
        for line in self.path.read_bytes().splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue

    def unfinished(self) -> dict[str, Any] | None:
        """The `begin` event of a rollout that neither ended in promotion nor was rolled back, if there is one."""
        begun = None
        for entry in self.read():
            if entry["event"] == "begin":
                begun = entry
            elif entry["event"] in ("promoted", "rolled_back"):
                begun = None
        return begun

    def _ends_whole(self) -> bool:
        with open(self.path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
