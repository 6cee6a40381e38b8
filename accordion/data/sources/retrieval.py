"""Retrieval collections in the BEIR layout: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv."""

from dataclasses import dataclass
from pathlib import Path

from accordion.data.sources.base import Quarantine, Row, json_rows, lines, require, require_rows


@dataclass(frozen=True)
class Collection:
    """One domain.

    Attributes:
        corpus: rows of _id, title (may be empty), text.
        queries: rows of _id, text.
        qrels: split -> rows of (query id, document id, grade).
    """

    corpus: list[Row]
    queries: list[Row]
    qrels: dict[str, list[tuple[str, str, int]]]


def read_collections(folder: Path, quarantine: Quarantine) -> dict[str, Collection]:
    """Domain -> collection, for each folder of `retrieval/`; files may be gzip."""
    part = require(folder / "retrieval", "retrieval collections")
    found = {path.name: _read(path, quarantine) for path in sorted(part.iterdir()) if path.is_dir()}
    require_rows([row for collection in found.values() for row in collection.corpus], part, quarantine)
    return found


def _read(domain: Path, quarantine: Quarantine) -> Collection:
    corpus = [
        {"_id": row["_id"], "title": row.get("title") or "", "text": row["text"]}
        for _, row in json_rows(_file(domain, "corpus.jsonl"), quarantine, ("_id", "text"))
    ]
    queries = [
        {"_id": row["_id"], "text": row["text"]}
        for _, row in json_rows(_file(domain, "queries.jsonl"), quarantine, ("_id", "text"))
    ]
    require(domain / "qrels/test.tsv", "judgements")
    qrels = {path.stem: _judgements(path, quarantine) for path in sorted((domain / "qrels").glob("*.tsv"))}
    require_rows(corpus, domain / "corpus.jsonl", quarantine)
    require_rows(queries, domain / "queries.jsonl", quarantine)
    return Collection(corpus, queries, qrels)


def _file(domain: Path, name: str) -> Path:
    packed = domain / f"{name}.gz"
    return packed if packed.is_file() else require(domain / name, "part of a BEIR collection")


def _judgements(path: Path, quarantine: Quarantine) -> list[tuple[str, str, int]]:
    rows = []
    for record, line in lines(path, quarantine):
        fields = line.split("\t")
        if record == "line 1" and fields[0] == "query-id":
            continue
        if len(fields) == 3 and fields[0] and fields[1] and fields[2].strip().isdecimal():
            rows.append((fields[0], fields[1], int(fields[2])))
        else:
            quarantine.refuse(path, record, "wants query id, document id and a whole number, tab-separated")
    return rows
