"""Reader of retrieval collections in the BEIR layout: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accordion.errors import DataError

Qrels = dict[str, dict[str, int]]  # query id -> document id -> relevance
Ranking = list[tuple[str, float]]  # (document id, score), best first


@dataclass(frozen=True)
class Collection:
    """A retrieval domain.

    Attributes:
        name: the domain, its folder's name.
        documents: document id -> text (title and body), in file order.
        queries: query id -> text, only those judged in `qrels`.
        qrels: query id -> document id -> relevance; every query has at least one relevant document.
    """

    name: str
    documents: dict[str, str]
    queries: dict[str, str]
    qrels: Qrels


def domains(corpus: Path) -> list[str]:
    """Names of the retrieval domains of a corpus artifact, those with training judgements first.

    Raises:
        DataError: there is none.
    """
    folders = [path.parent for path in (corpus / "retrieval").glob("*/corpus.jsonl")]
    if not folders:
        raise DataError(f"{corpus / 'retrieval'}: no domain with a corpus.jsonl; run stage ingest again")
    return [f.name for f in sorted(folders, key=lambda f: (not (f / "qrels" / "train.tsv").is_file(), f.name))]


def read_collection(folder: Path, split: str) -> Collection:
    """Read a domain folder with the judgements of one split.

    Raises:
        DataError: a file is missing or has a bad record, a judgement names an unknown query or document, or
            a judged query has no relevant document; the text names file and line.
    """
    documents = read_documents(folder / "corpus.jsonl")
    queries = {record["_id"]: record["text"] for _, record in _records(folder / "queries.jsonl")}
    qrels = read_qrels(folder / "qrels" / f"{split}.tsv", queries, documents)
    return Collection(folder.name, documents, {query: queries[query] for query in qrels}, qrels)


def read_documents(path: Path) -> dict[str, str]:
    """Document id -> `title text` of a corpus.jsonl.

    Raises:
        DataError: missing file, no document, a bad record, or an id that occurs twice.
    """
    documents: dict[str, str] = {}
    for line, record in _records(path):
        if record["_id"] in documents:
            raise DataError(f"{path}:{line}: document id {record['_id']!r} occurs twice; ids must be unique")
        title = record.get("title", "")
        documents[record["_id"]] = f"{title} {record['text']}".strip() if title else record["text"]
    if not documents:
        raise DataError(f"{path}: no documents; a collection needs at least one")
    return documents


def read_qrels(path: Path, queries: dict[str, str], documents: dict[str, str]) -> Qrels:
    """Judgements of a tab-separated file with the header `query-id corpus-id score`.

    Raises:
        DataError: missing file, bad row, unknown id, a query without a relevant document, or no judgement.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; a domain needs judgements in qrels/SPLIT.tsv")
    qrels: Qrels = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines[1:], 2):
        parts = line.split("\t")
        if len(parts) != 3 or not parts[2].lstrip("-").isdigit():
            raise DataError(f"{path}:{number}: got {line!r}; wants query-id TAB corpus-id TAB whole-number score")
        query, document, score = parts[0], parts[1], int(parts[2])
        if query not in queries:
            raise DataError(f"{path}:{number}: query {query!r} is not in queries.jsonl; add it or drop the row")
        if document not in documents:
            raise DataError(
                f"{path}:{number}: document {document!r} is not in corpus.jsonl; add it or drop the judgement"
            )
        qrels.setdefault(query, {})[document] = score
    if not qrels:
        raise DataError(f"{path}: no judgements after the header line")
    for query, judged in qrels.items():
        if max(judged.values()) < 1:
            raise DataError(f"{path}: query {query!r} has no relevant document (score >= 1); drop its judgements")
    return qrels


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, record) of a JSON-lines file whose records have string fields `_id` and `text`."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; a domain has corpus.jsonl, queries.jsonl and qrels/")
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:  # bad JSON or bad UTF-8
                raise DataError(f"{path}:{number}: not a JSON record ({error})") from None
            for key in ("_id", "text"):
                if not isinstance(record, dict) or not isinstance(record.get(key), str):
                    raise DataError(f"{path}:{number}: wants an object with a string {key!r}")
            if not record["_id"]:
                raise DataError(f"{path}:{number}: the _id is empty")
            yield number, record
