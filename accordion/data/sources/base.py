"""What all readers share: the quarantine of refused records, JSON lines, zip members, the split by group."""

import gzip
import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accordion.errors import DataError

Row = dict[str, Any]
REMEDY = "restore it with `git checkout data/sample`, or set ingest.source to a folder in the layout of data/sample"


@dataclass
class Quarantine:
    """Records that were refused, with the reason; their neighbours go through."""

    root: Path
    refused: list[dict[str, str]] = field(default_factory=list)

    def refuse(self, file: Path, record: str, error: str) -> None:
        """Set one record of `file` aside."""
        name = str(file.relative_to(self.root)) if file.is_relative_to(self.root) else str(file)
        self.refused.append({"file": name, "record": record, "error": error})


@dataclass(frozen=True)
class Split:
    """Puts whole groups (a page in all languages, a prompt in all voices) into `train` or `val`."""

    seed: int
    validation_share: float

    def of(self, group: str) -> str:
        """`train` or `val`, by the SHA-256 of seed and group: adding data moves no existing group."""
        digest = hashlib.sha256(f"{self.seed}:{group}".encode()).digest()
        return "val" if int.from_bytes(digest[:8], "big") / 2**64 < self.validation_share else "train"


def require(path: Path, what: str) -> Path:
    """`path`, which must exist.

    Raises:
        DataError: it does not; the text names it and the remedy.
    """
    if not path.exists():
        raise DataError(f"{path}: missing ({what}); {REMEDY}")
    return path


def require_rows(rows: list[Row], path: Path, quarantine: Quarantine) -> list[Row]:
    """`rows`, of which there must be at least one.

    Raises:
        DataError: nothing is left of `path`; the text quotes the first refusals.
    """
    if not rows:
        first = "; ".join(f"{r['file']} {r['record']}: {r['error']}" for r in quarantine.refused[:3])
        raise DataError(f"{path}: no usable record is left{f' ({first})' if first else ''}; {REMEDY}")
    return rows


def lines(path: Path, quarantine: Quarantine) -> Iterator[tuple[str, str]]:
    """(`line N`, text) of each line of a UTF-8 file, gzip or plain; lines that are not UTF-8 are refused."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    text = raw.decode("utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    quarantine.refuse(path, f"line {number}", f"not UTF-8: byte {error.start} of the line")
                    continue
                if text.strip():
                    yield f"line {number}", text
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        quarantine.refuse(path, f"after line {number}", f"damaged gzip file: {error}")


def json_rows(path: Path, quarantine: Quarantine, needed: tuple[str, ...]) -> Iterator[tuple[str, Row]]:
    """(`line N`, object) of a JSON lines file; each of the `needed` keys holds a text that is not blank."""
    for record, text in lines(path, quarantine):
        try:
            row = json.loads(text)
        except ValueError as error:
            quarantine.refuse(path, record, f"not JSON: {error}")
            continue
        if not isinstance(row, dict):
            quarantine.refuse(path, record, f"a JSON {type(row).__name__}; wants an object")
            continue
        wrong = [key for key in needed if not isinstance(row.get(key), str) or not row[key].strip()]
        if wrong:
            quarantine.refuse(path, record, f"no text in {', '.join(wrong)}")
        else:
            yield record, row


class ZipMembers:
    """Files of a zip archive; a missing or damaged member is refused, an unreadable archive is an error."""

    def __init__(self, path: Path, quarantine: Quarantine) -> None:
        self.path = path
        self.quarantine = quarantine
        try:
            self.archive = zipfile.ZipFile(require(path, "archive of the records' files"))
        except zipfile.BadZipFile as error:
            raise DataError(f"{path}: not a readable zip archive ({error}); {REMEDY}") from None

    def read(self, name: str) -> bytes | None:
        """The member's bytes, or None after refusing it."""
        try:
            return self.archive.read(name)
        except KeyError:
            self.quarantine.refuse(self.path, name, "not in the archive")
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            self.quarantine.refuse(self.path, name, f"damaged in the archive: {error}")
        return None
