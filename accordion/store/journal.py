"""Records that carry their own SHA-256, and append-only files of them: what no manifest covers, verified when read.

A record is one line of JSON. A flipped bit makes it an error, never another version number.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accordion.errors import DataError
from accordion.store.atomic import enough_disk

SEAL = "sha256"


def seal(record: Mapping[str, Any]) -> str:
    """The record and its SHA-256 as one line of JSON, without the line's end."""
    return json.dumps({**record, SEAL: _digest(record)}, allow_nan=False)


def unseal(line: bytes) -> dict[str, Any]:
    """The record in what `seal` wrote.

    Raises:
        ValueError: it is something else, or was altered.
    """
    record = json.loads(line)
    if not isinstance(record, dict) or SEAL not in record:
        raise ValueError(f"it holds no {SEAL}, so it was altered or written by another program")
    if record.pop(SEAL) != _digest(record):
        raise ValueError(f"it does not fit its {SEAL}, so it was altered")
    return record


class Journal:
    """An append-only file of sealed records, oldest first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record; it is on disk when this returns. What a kill had cut short was never acted on and goes."""
        line = seal(record).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = self.path.read_bytes() if self.path.is_file() else b""
        self._records(whole)  # an altered journal is not written on
        with enough_disk(self.path), open(self.path, "ab") as file:
            file.truncate(whole.rfind(b"\n") + 1)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def records(self) -> list[dict[str, Any]]:
        """Every record; a last line that a kill cut short is passed over.

        Raises:
            DataError: a line was altered; the text names it.
        """
        return self._records(self.path.read_bytes() if self.path.is_file() else b"")

    def _records(self, content: bytes) -> list[dict[str, Any]]:
        *lines, rest = content.split(b"\n")
        found = []
        for number, line in enumerate(lines, 1):
            try:
                found.append(unseal(line))
            except ValueError as error:
                raise self._altered(number, error) from None
        try:
            unseal(rest[:-1])
        except ValueError:
            return found  # nothing, or cut short
        raise self._altered(len(lines) + 1, "its end was altered")

    def _altered(self, number: int, why: object) -> DataError:
        return DataError(
            f"{self.path}: line {number} is no whole record ({why}); restore the file from a backup, or move it away "
            "to begin a new history"
        )


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
