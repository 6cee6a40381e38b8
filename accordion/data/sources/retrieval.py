"""Retrieval collections in the BEIR layout: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv; written as they are read."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accordion.config.data import SourceConfig
from accordion.data.sources.base import (
    Quarantine,
    expand,
    json_rows,
    lines,
    missing,
    nothing_left,
    require,
)
from accordion.errors import DataError

SUFFIXES = ("", ".gz", ".zst")
Judgement = tuple[str, str, int]  # query id, document id, grade


@dataclass(frozen=True)
class Domain:
    """One collection to be read: its name, folder, and whether it may be trained on."""

    name: str
    folder: Path
    trained: bool


def domains(source: SourceConfig, trained: Iterable[str]) -> list[Domain]:
    """The collections of a source: a BEIR folder, or a folder of such.

    Raises:
        DataError: there is none.
    """
    found = []
    for path in expand(source):
        inside = [path] if _exists(path, "corpus.jsonl") or not path.is_dir() else sorted(path.iterdir())
        for folder in inside:
            if folder.is_dir():
                name = source.name if source.name and len(inside) == 1 else folder.name
                found.append(Domain(name, folder, name in trained and source.role == "train"))
    if not found:
        raise DataError(f"{source.path}: no usable record is left (no BEIR folder: corpus.jsonl, queries.jsonl, qrels)")
    return found


def copy_collection(domain: Domain, out: Path, quarantine: Quarantine) -> dict[str, Any]:
    """Check a collection and write it to `out/DOMAIN/`, documents and queries one at a time.

    Documents and queries without text or with an id seen before are refused, and so are judgements of documents or
    queries that are not there. Queries nobody judged and judgements of grade 0 say nothing, and are left out.

    Returns:
        documents, queries, judgements (split -> count).

    Raises:
        DataError: a part is missing, nothing is left of it, or another collection has the same name.
    """
    folder = out / domain.name
    if folder.exists():
        raise DataError(f"{domain.folder}: there is another collection {domain.name!r}; set name in ingest.sources")
    (folder / "qrels").mkdir(parents=True)
    splits = {path.name.split(".")[0]: path for path in _qrels(domain.folder)}
    judged = {query for path in splits.values() for _, (query, _, grade) in _judgements(path, None) if grade}
    documents, queries = _file(domain.folder, "corpus.jsonl"), _file(domain.folder, "queries.jsonl")
    known = _copy(documents, folder / "corpus.jsonl", ("_id", "title", "text"), quarantine)
    asked = _copy(queries, folder / "queries.jsonl", ("_id", "text"), quarantine, judged)
    for path, ids in ((documents, known), (queries, asked)):
        if not ids:
            raise nothing_left(path, quarantine)
    counts = {}
    for split, path in splits.items():
        counts[split] = _copy_judgements(path, folder / f"qrels/{split}.tsv", known, asked, quarantine)
        if not counts[split]:
            raise nothing_left(path, quarantine)
    return {"documents": len(known), "queries": len(asked), "judgements": counts}


def texts_of(folder: Path) -> Iterator[str]:
    """Documents (with their titles) and queries of a written collection, one at a time."""
    for name in ("corpus.jsonl", "queries.jsonl"):
        with (folder / name).open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                yield f"{row.get('title', '')}\n{row['text']}"


def _exists(folder: Path, name: str) -> bool:
    return any((folder / f"{name}{suffix}").is_file() for suffix in SUFFIXES)


def _file(folder: Path, name: str) -> Path:
    packed = [folder / f"{name}{suffix}" for suffix in reversed(SUFFIXES)]
    return next((path for path in packed if path.is_file()), None) or require(
        folder / name, "part of a BEIR collection"
    )


def _qrels(folder: Path) -> list[Path]:
    """The judgements of each split; those of the test split must be there."""
    _file(folder / "qrels", "test.tsv")
    return sorted(path for suffix in SUFFIXES for path in (folder / "qrels").glob(f"*.tsv{suffix}"))


def _copy(
    path: Path, to: Path, keys: tuple[str, ...], quarantine: Quarantine, wanted: set[str] | None = None
) -> set[str]:
    """Copy rows with an id and a text (of the `wanted` ids, if given); returns the ids."""
    found: set[str] = set()
    with to.open("w", encoding="utf-8") as file:
        for record, row in json_rows(path, quarantine, ()):
            row = {**row, "title": row.get("title") or ""}
            wrong = missing(row, ("_id", "text"))
            if wrong or row["_id"] in found:
                quarantine.refuse(path, record, wrong or f"duplicate id {row['_id']}")
            elif wanted is None or row["_id"] in wanted:
                found.add(row["_id"])
                file.write(json.dumps({key: row[key] for key in keys}, ensure_ascii=False) + "\n")
    return found


def _judgements(path: Path, quarantine: Quarantine | None) -> Iterator[tuple[str, Judgement]]:
    """(record, judgement) of each line; without a quarantine, bad lines are passed over."""
    for record, line in lines(path, quarantine or Quarantine(path.parent)):
        fields = line.split("\t")
        if record == "line 1" and fields[0] == "query-id":
            continue
        if len(fields) == 3 and fields[0] and fields[1] and fields[2].strip().isdecimal():
            yield record, (fields[0], fields[1], int(fields[2]))
        elif quarantine:
            quarantine.refuse(path, record, "wants query id, document id and a whole number, tab-separated")


def _copy_judgements(path: Path, to: Path, known: set[str], asked: set[str], quarantine: Quarantine) -> int:
    count = 0
    with to.open("w", encoding="utf-8") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        for record, (query, document, grade) in _judgements(path, quarantine):
            if not grade:
                continue
            if query not in asked or document not in known:
                lost = f"query {query}" if query not in asked else f"document {document}"
                quarantine.refuse(path, record, f"{lost} is not in the collection")
                continue
            file.write(f"{query}\t{document}\t{grade}\n")
            count += 1
    return count
