"""Text (JSON lines, Parquet, plain files), FAQ and dictionaries, in several languages."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from accordion.config.data import SourceConfig
from accordion.data import media
from accordion.data.sources.base import (
    REMEDY,
    Quarantine,
    Row,
    described,
    expand,
    json_rows,
    lines,
    missing,
    named,
    nothing_left,
    require,
)
from accordion.errors import DataError

PLAIN = (".txt", ".md")
FORMATS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", *PLAIN)
BATCH = 256  # rows of a Parquet file held at once


def text_rows(source: SourceConfig, quarantine: Quarantine) -> Iterator[tuple[Path, str, Row]]:
    """(file, record, row) of each text: id, group, text, language (None: unknown), source, licence, weight.

    A record may state id, group (texts that belong together, such as a page in all languages), language, source
    and licence itself.

    Raises:
        DataError: there is no file of a readable format.
    """
    files = [each for path in expand(source) for each in (_inside(path) if path.is_dir() else [path])]
    if not files:
        raise DataError(f"{source.path}: no usable record is left (no file of {', '.join(FORMATS)}); {REMEDY}")
    for path in files:
        for record, row in _records(path, quarantine):
            wrong = missing(row, ("text",))
            known = described(source, row)
            if wrong or not known["source"] or not known["licence"]:
                quarantine.refuse(path, record, wrong or "no source or licence, in the record or in ingest.sources")
                continue
            name = str(row.get("id") or named(source, f"{path.name.split('.')[0]}/{record.removeprefix('line ')}"))
            yield path, record, {"id": name, "group": str(row.get("group") or name), "text": row["text"], **known}


def _inside(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.name.endswith(FORMATS) and path.is_file())


def _records(path: Path, quarantine: Quarantine) -> Iterator[tuple[str, Row]]:
    if path.suffix == ".parquet":
        yield from _parquet(path, quarantine)
    elif path.suffix in PLAIN:
        try:
            yield "the file", {"text": media.read_text(path)}
        except DataError as error:
            quarantine.refuse(path, "the file", str(error))
    elif path.name.endswith(FORMATS):
        yield from json_rows(path, quarantine, ())
    else:
        raise DataError(f"{path}: not a text format; wants {', '.join(FORMATS)}")


def _parquet(path: Path, quarantine: Quarantine) -> Iterator[tuple[str, Row]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            wanted = ("id", "group", "text", "language", "source", "licence", "license")
            for batch in file.iter_batches(BATCH, columns=[name for name in wanted if name in file.schema_arrow.names]):
                for place in range(batch.num_rows):
                    number += 1
                    try:
                        (row,) = batch.slice(place, 1).to_pylist()
                    except UnicodeDecodeError as error:
                        quarantine.refuse(path, f"row {number}", f"not UTF-8: byte {error.start} of a field")
                        continue
                    yield f"row {number}", row
    except (pa.ArrowException, OSError) as error:
        quarantine.refuse(path, f"after row {number}", f"damaged Parquet file: {error}")


def read_faq(folder: Path, quarantine: Quarantine) -> list[Row]:
    """Rows of `faq/*.jsonl.gz`: section (aligned over languages), language, question, answer."""
    part = require(folder / "faq", "questions and answers")
    keys = ("section", "language", "question", "answer")
    rows = [
        {key: row[key] for key in keys}
        for path in sorted(part.glob("*.jsonl*"))
        for _, row in json_rows(path, quarantine, keys)
    ]
    if not rows:
        raise nothing_left(part, quarantine)
    return rows


def read_dictionaries(folder: Path, quarantine: Quarantine) -> dict[str, list[Row]]:
    """`en-XX` -> rows (word, translation) of each `dictionaries/en-XX.tsv.gz`."""
    part = require(folder / "dictionaries", "bilingual word lists")
    found = {}
    for path in sorted(part.glob("*.tsv*")):
        rows: list[Row] = []
        for record, line in lines(path, quarantine):
            fields = [field.strip() for field in line.split("\t")]
            if len(fields) == 2 and all(fields):
                rows.append({"word": fields[0], "translation": fields[1]})
            else:
                quarantine.refuse(path, record, f"{len(fields)} fields; wants word, tab, translation")
        if not rows:
            raise nothing_left(path, quarantine)
        found[path.name.split(".")[0]] = rows
    if not found:
        raise nothing_left(part, quarantine)
    return found
