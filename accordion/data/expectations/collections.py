"""Expectations on what is no modality of its own: retrieval collections, the FAQ, dictionaries."""

import json
from pathlib import Path

import pandas as pd

from accordion.config.data import ValidateConfig
from accordion.data.expectations.common import between, filled, quantiles
from accordion.data.expectations.statistics import Lengths, Statistics, counted
from accordion.data.expectations.suite import Suite, expect
from accordion.errors import DataError

GRADES = (1, 3)
DOCUMENT_CHARACTERS = (1, 100_000)


def faq(table: pd.DataFrame) -> Suite:
    """Questions and answers, one for each section and language."""
    derived = table.assign(id=table["section"] + "/" + table["language"])
    return Suite("faq", derived, [
        expect("table_columns_to_match_set", column_set=["id", "section", "language", "question", "answer"]),
        *filled("section", "language", "question", "answer"),
        expect("compound_columns_to_be_unique", column_list=["section", "language"]),
    ])  # fmt: skip


def dictionaries(folder: Path) -> Suite:
    """Words and their translations, every line of every dictionary."""
    rows = [
        {"id": f"{path.name}:{number}", "word": word, "translation": translation}
        for path in sorted(folder.glob("*.tsv"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for word, _, translation in [line.partition("\t")]
    ]
    return Suite("dictionaries", pd.DataFrame(rows, columns=["id", "word", "translation"]), [
        expect("table_row_count_to_be_between", min_value=1),
        *filled("word", "translation"),
    ])  # fmt: skip


def collection(domain: Path, config: ValidateConfig, statistics: Statistics) -> list[Suite]:
    """Documents, queries and judgements of one domain; every judgement joins a query and a document.

    Its counts and lengths are added to `statistics`.
    """
    documents = _json_lines(domain / "corpus.jsonl", ["_id", "title", "text"])
    queries = _json_lines(domain / "queries.jsonl", ["_id", "text"])
    judged = _judgements(domain / "qrels", documents["id"], queries["id"])
    name = domain.name
    statistics.counts.update({f"{name} documents": len(documents), f"{name} queries": len(queries)})
    statistics.mixes[f"{name} grades"] = counted(judged["score"])
    for part, count in judged["split"].value_counts().items():
        statistics.counts[f"{name} judgements, {part}"] = int(count)
    for part, table in (("documents", documents), ("queries", queries)):
        table["characters"] = table["text"].fillna("").str.len()
        statistics.lengths[f"{name} {part}, characters"] = Lengths.of(table["characters"])
    queries["judgements"] = queries["id"].map(judged["query-id"].value_counts()).fillna(0).astype(int)
    unique = expect("column_values_to_be_unique", column="id")
    low, high = config.query_characters
    return [
        Suite(f"{name} documents", documents, [
            *filled("id", "text"), unique, between("characters", *DOCUMENT_CHARACTERS),
            quantiles("characters", 1, (5, 20_000), DOCUMENT_CHARACTERS[1]),
        ]),
        Suite(f"{name} queries", queries, [
            *filled("id", "text"), unique, between("judgements", 1), between("characters", low, high),
            expect("column_values_to_be_unique", column="text"),
        ]),
        Suite(f"{name} judgements", judged, [
            unique,
            expect("column_values_to_not_be_null", column="grade"),
            between("grade", *GRADES),
            expect("column_values_to_be_in_set", column="query_exists", value_set=[True]),
            expect("column_values_to_be_in_set", column="document_exists", value_set=[True]),
            expect("column_values_to_be_in_set", column="splits_of_query", value_set=[1]),
            expect("column_distinct_values_to_contain_set", column="split", value_set=["test"]),
        ]),
    ]  # fmt: skip


def _judgements(folder: Path, documents: pd.Series, queries: pd.Series) -> pd.DataFrame:
    """Every line of every qrels file; `grade` is NaN where the score is no number."""
    parts = []
    for path in sorted(folder.glob("*.tsv")):
        part = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
        if missing := {"query-id", "corpus-id", "score"} - {*part.columns}:
            raise DataError(f"{path}: its first line lacks {', '.join(sorted(missing))}; wants the BEIR layout")
        parts.append(part.assign(split=path.stem))
    if not parts:
        raise DataError(f"{folder}: no judgements (test.tsv); run `ingest` again")
    judged = pd.concat(parts, ignore_index=True)
    return judged.assign(
        id=judged["split"] + ":" + judged["query-id"] + ":" + judged["corpus-id"],
        grade=pd.to_numeric(judged["score"], errors="coerce"),
        query_exists=judged["query-id"].isin(queries),
        document_exists=judged["corpus-id"].isin(documents),
        splits_of_query=judged.groupby("query-id")["split"].transform("nunique"),
    )


def _json_lines(path: Path, columns: list[str]) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(f"{path}: missing; run `ingest` again")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{path}:{number}: not JSON ({error}); run `ingest` again") from None
    return pd.DataFrame(rows, columns=columns).rename(columns={"_id": "id"})
