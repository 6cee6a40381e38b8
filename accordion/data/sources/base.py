"""What all readers share: the quarantine of refused records, lines, zip members, the split by group."""

import gzip
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from accordion.config.data import SourceConfig
from accordion.errors import DataError

Row = dict[str, Any]
REMEDY = (
    "restore it with `git checkout data/sample`, set ingest.source to a folder in the layout of data/sample, "
    "or correct the entry of ingest.sources"
)
LONGEST_LINE = 64 * 2**20  # bytes; a longer one is no record but a damaged or foreign file
UNPACKED = (EOFError, gzip.BadGzipFile, zlib.error, OSError)


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
        digest = hashlib.sha256(f"{self.seed}:{group}".encode("utf-8", "surrogatepass")).digest()
        return "val" if int.from_bytes(digest[:8], "big") / 2**64 < self.validation_share else "train"


def require(path: Path, what: str) -> Path:
    """`path`, which must exist.

    Raises:
        DataError: it does not; the text names it and the remedy.
    """
    if not path.exists():
        raise DataError(f"{path}: missing ({what}); {REMEDY}")
    return path


def nothing_left(path: Path | str, quarantine: Quarantine) -> DataError:
    """The error of a needed part of which no record could be used; it quotes the first refusals."""
    first = "; ".join(f"{r['file']} {r['record']}: {r['error']}" for r in quarantine.refused[:3])
    return DataError(f"{path}: no usable record is left{f' ({first})' if first else ''}; {REMEDY}")


def expand(source: SourceConfig) -> list[Path]:
    """The files and folders that a source names, in sorted order.

    Raises:
        DataError: there are none.
    """
    text = str(Path(source.path).expanduser())
    found = [Path(text)] if Path(text).exists() else _matching(text)
    if not found:
        raise DataError(f"{source.path}: missing ({source.kind} of ingest.sources); {REMEDY}")
    return found


def _matching(pattern: str) -> list[Path]:
    """Paths that match an absolute or relative pattern."""
    path = Path(pattern)
    root = Path(path.anchor) if path.is_absolute() else Path()
    return sorted(root.glob(str(path.relative_to(root))))


@contextmanager
def unpacked(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a plain, .gz or .zst file, decompressed as they are read."""
    if path.suffix == ".gz":
        with gzip.open(path) as packed:
            yield packed  # type: ignore[misc]
    elif path.suffix == ".zst":
        with pa.OSFile(str(path)) as raw, pa.CompressedInputStream(raw, "zstd") as stream:
            yield io.BufferedReader(stream, 2**20)
    else:
        with path.open("rb") as plain:
            yield plain


def lines(path: Path, quarantine: Quarantine) -> Iterator[tuple[str, str]]:
    """(`line N`, text) of each line of a UTF-8 file, plain, .gz or .zst; lines that are not UTF-8 are refused."""
    number = 0
    try:
        with unpacked(path) as file:
            while raw := file.readline(LONGEST_LINE):
                number += 1
                if len(raw) == LONGEST_LINE:
                    quarantine.refuse(path, f"line {number}", f"longer than {LONGEST_LINE >> 20} MiB; the rest is left")
                    return
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    quarantine.refuse(path, f"line {number}", f"not UTF-8: byte {error.start} of the line")
                    continue
                if text.strip():
                    yield f"line {number}", text
    except UNPACKED as error:
        kind = "gzip" if path.suffix == ".gz" else "zstd" if path.suffix == ".zst" else "text"
        quarantine.refuse(path, f"after line {number}", f"damaged {kind} file: {error}")


def json_rows(path: Path, quarantine: Quarantine, needed: tuple[str, ...]) -> Iterator[tuple[str, Row]]:
    """(`line N`, object) of a JSON lines file; each of the `needed` keys holds a text that is not blank."""
    for record, text in lines(path, quarantine):
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            quarantine.refuse(path, record, f"not JSON: {error}")
            continue
        if not isinstance(row, dict):
            quarantine.refuse(path, record, f"a JSON {type(row).__name__}; wants an object")
            continue
        wrong = missing(row, needed) or half_characters(text, row)
        if wrong:
            quarantine.refuse(path, record, wrong)
        else:
            yield record, row


def missing(row: Row, needed: tuple[str, ...]) -> str | None:
    """Which of the needed keys hold no text (None: all do)."""
    wrong = [key for key in needed if not isinstance(row.get(key), str) or not row[key].strip()]
    return f"no text in {', '.join(wrong)}" if wrong else None


def half_characters(text: str, row: Row) -> str | None:
    """What is wrong with an object read from a JSON `text` whose escapes stand for lone surrogates (None: nothing)."""
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return "half of a character (a lone surrogate), which no file can hold"
    return None


def described(source: SourceConfig, row: Row) -> Row:
    """Source, licence, language and weight of a record: its own, or else those of its entry in ingest.sources."""
    own = {key: value for key, value in row.items() if isinstance(value, str) and value.strip()}
    return {
        "source": own.get("source") or source.name,
        "licence": own.get("licence") or own.get("license") or source.licence,
        "language": own.get("language") or source.language,
        "weight": source.weight,
    }


def named(source: SourceConfig, name: str) -> str:
    """The name of a record inside its kind: with the source's name before it, where it has one."""
    return f"{source.name}/{name}" if source.name else name


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
