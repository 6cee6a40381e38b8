"""Files that come out the same on every build, what was written (for NOTICE and the summary), choice by hash."""

import gzip
import hashlib
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builders.packages import Package


@dataclass(frozen=True, kw_only=True)
class Written:
    """One file that a builder made.

    Attributes:
        file: path below the tier's folder.
        records: in it.
        unit: what a record is, in the plural.
        languages: of its records.
        packages: (kind, name) of each package it was made from.
        licence: SPDX where there is one.
        changes: what was taken and changed.
    """

    file: str
    records: int
    packages: tuple[Package, ...]
    licence: str
    changes: str
    languages: tuple[str, ...] = ()
    unit: str = "records"


def rank(text: str) -> str:
    """A key that orders items in a fixed but unbiased way."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_gzip(path: Path, text: str) -> None:
    """`text` as UTF-8 in a gzip file without a time stamp."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def languages_of(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Every `language` of the rows, in order."""
    return tuple(sorted({str(row["language"]) for row in rows}))


def write_zip(path: Path, members: Mapping[str, bytes]) -> None:
    """An uncompressed zip (its members are compressed formats already) without times, in name order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), members[name])
