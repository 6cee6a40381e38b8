"""Stage `validate_data`: what is expected of the corpus that ingest wrote, table by table."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from accordion.config.data import ValidateConfig
from accordion.data.expectations.suite import Expect, Suite, expect, validate
from accordion.errors import DataError

SPLITS = ["train", "val"]
IMAGE_SIDE = (8, 4096)
GRADES = (1, 3)
LANGUAGE_TAG = r"^[a-z]{2,3}(-[A-Za-z0-9]+)*$"  # BCP 47


def validate_data(config: ValidateConfig, *, out: Path, corpus: Path) -> dict[str, Any]:
    """Check a corpus; write result.json and report.html.

    Raises:
        ValidationFailed: names each failing expectation and its rows; they are in `out/failed_rows.jsonl`.
        DataError: a table of the corpus is missing or not readable.
    """
    suites = [
        _text(_table(corpus, "text"), config),
        _images(_table(corpus, "images"), config),
        _audio(_table(corpus, "audio"), config),
        _video(_table(corpus, "video"), config),
        _faq(_table(corpus, "faq")),
        _dictionaries(corpus / "dictionaries"),
    ]
    for domain in sorted(path for path in (corpus / "retrieval").iterdir() if path.is_dir()):
        suites += _collection(domain)
    return validate(suites, out, "raw data")


def _table(corpus: Path, name: str) -> pd.DataFrame:
    path = corpus / f"{name}.parquet"
    if not path.is_file():
        raise DataError(f"{path}: missing; run `ingest` again")
    return pd.read_parquet(path)


def digest(value: str | bytes) -> str:
    """Short SHA-256 of a cell, so that equal long contents are found and named briefly."""
    return hashlib.sha256(value.encode() if isinstance(value, str) else value).hexdigest()[:16]


def filled(*columns: str) -> list[Expect]:
    """Each column holds a value that is not blank in every row."""
    return [
        each
        for column in columns
        for each in (
            expect("column_values_to_not_be_null", column=column),
            expect("column_values_to_match_regex", column=column, regex=r"\S"),
        )
    ]


def between(column: str, low: float | None, high: float | None = None) -> Expect:
    """Every value of the column lies in [low, high]."""
    return expect("column_values_to_be_between", column=column, min_value=low, max_value=high)


def known_languages(config: ValidateConfig, languages: list[str]) -> Expect:
    """No language but these, or any language tag where the profile allows others."""
    if config.other_languages:
        return expect("column_values_to_match_regex", column="language", regex=LANGUAGE_TAG)
    return expect("column_values_to_be_in_set", column="language", value_set=languages)


def _common(config: ValidateConfig, name: str, columns: list[str], group: bool = True) -> list[Expect]:
    """Schema, number of rows, ids, source, licence, splits; no group lies in two splits."""
    wanted = ["id", "source", "licence", "split", *columns]
    return [
        expect("table_columns_to_match_set", column_set=wanted, exact_match=False),
        expect("table_row_count_to_be_between", min_value=config.minimum_rows.get(name, 1)),
        *filled("id", "source", "licence"),
        expect("column_values_to_be_unique", column="id"),
        expect("column_distinct_values_to_equal_set", column="split", value_set=SPLITS),
        *([expect("column_values_to_be_in_set", column="splits_of_group", value_set=[1])] if group else []),
        expect("column_values_to_be_unique", column="digest"),
    ]


def _splits_of(table: pd.DataFrame, group: pd.Series) -> pd.Series:
    return table.groupby(group)["split"].transform("nunique")


def _text(table: pd.DataFrame, config: ValidateConfig) -> Suite:
    derived = table.assign(
        characters=table["text"].str.len(),
        digest=table["text"].map(digest),
        splits_of_group=_splits_of(table, table["id"].str.rsplit("/", n=1).str[0]),
    )
    low, high = config.text_characters
    languages = list(config.text_languages)
    return Suite("text", derived, [
        *_common(config, "text", ["text", "language"]),
        *filled("text"),
        between("characters", low, high),
        known_languages(config, languages),
        expect("column_distinct_values_to_contain_set", column="language", value_set=languages),
        expect("column_values_to_not_match_regex", column="text", regex="\ufffd"),
    ])  # fmt: skip


def _picture(png: bytes) -> dict[str, Any]:
    try:
        with Image.open(io.BytesIO(png)) as picture:
            picture.load()
            return {"decodes": True, "width": picture.width, "height": picture.height, "mode": picture.mode}
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return {"decodes": False, "width": None, "height": None, "mode": None}


def _images(table: pd.DataFrame, config: ValidateConfig) -> Suite:
    pictures = pd.DataFrame([_picture(png) for png in table["png"]], index=table.index)
    captions = table["captions"].map(json.loads)
    derived = table.drop(columns="png").join(pictures).assign(
        digest=table["png"].map(digest),
        caption_languages=captions.map(len),
        empty_captions=captions.map(lambda names: sum(not name.strip() for name in names.values())),
    )  # fmt: skip
    return Suite("images", derived, [
        *_common(config, "images", ["caption", "captions"], group=False),
        *filled("caption"),
        expect("column_values_to_be_in_set", column="decodes", value_set=[True]),
        between("width", *IMAGE_SIDE),
        between("height", *IMAGE_SIDE),
        expect("column_values_to_be_in_set", column="mode", value_set=["RGB"]),
        between("caption_languages", 1),
        between("empty_captions", 0, 0),
    ])  # fmt: skip


def _audio(table: pd.DataFrame, config: ValidateConfig) -> Suite:
    samples = table["pcm"].map(lambda pcm: np.frombuffer(pcm[: len(pcm) // 2 * 2], "<i2").astype(np.int32))
    derived = table.drop(columns="pcm").assign(
        seconds=samples.map(len) / table["rate"],
        odd_bytes=table["pcm"].map(len) % 2,
        peak=samples.map(lambda values: int(np.abs(values).max(initial=0))),
        digest=table["pcm"].map(digest),
        splits_of_group=_splits_of(table, table["key"]),
    )
    languages = list(config.audio_languages)
    return Suite("audio", derived, [
        *_common(config, "audio", ["rate", "transcript", "language", "key"]),
        *filled("transcript", "key"),
        between("seconds", *config.audio_seconds),
        between("odd_bytes", 0, 0),
        between("peak", 1),
        expect("column_values_to_be_in_set", column="rate", value_set=[8000]),
        known_languages(config, languages),
        expect("column_distinct_values_to_contain_set", column="language", value_set=languages),
        expect("compound_columns_to_be_unique", column_list=["key", "language"]),
    ])  # fmt: skip


def _video(table: pd.DataFrame, config: ValidateConfig) -> Suite:
    derived = table.drop(columns="frames").assign(
        missing_bytes=table["n"] * table["height"] * table["width"] * 3 - table["frames"].map(len),
        digest=table["frames"].map(digest),
    )
    return Suite("video", derived, [
        *_common(config, "video", ["n", "height", "width", "caption"], group=False),
        between("missing_bytes", 0, 0),
        between("n", 1, 64),
        between("height", *IMAGE_SIDE),
        between("width", *IMAGE_SIDE),
        expect("column_values_to_not_be_null", column="caption"),
    ])  # fmt: skip


def _faq(table: pd.DataFrame) -> Suite:
    derived = table.assign(id=table["section"] + "/" + table["language"])
    return Suite("faq", derived, [
        expect("table_columns_to_match_set", column_set=["id", "section", "language", "question", "answer"]),
        *filled("section", "language", "question", "answer"),
        expect("compound_columns_to_be_unique", column_list=["section", "language"]),
    ])  # fmt: skip


def _dictionaries(folder: Path) -> Suite:
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


def _json_lines(path: Path, columns: list[str]) -> pd.DataFrame:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return pd.DataFrame(rows, columns=columns).rename(columns={"_id": "id"})


def _collection(domain: Path) -> list[Suite]:
    """Documents, queries and judgements of one domain; every judgement joins a query and a document."""
    documents = _json_lines(domain / "corpus.jsonl", ["_id", "title", "text"])
    queries = _json_lines(domain / "queries.jsonl", ["_id", "text"])
    parts = [
        pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False).assign(split=path.stem)
        for path in sorted((domain / "qrels").glob("*.tsv"))
    ]
    judged = pd.concat(parts, ignore_index=True)
    judged = judged.assign(
        id=judged["split"] + ":" + judged["query-id"] + ":" + judged["corpus-id"],
        grade=pd.to_numeric(judged["score"]),
        query_exists=judged["query-id"].isin(queries["id"]),
        document_exists=judged["corpus-id"].isin(documents["id"]),
        splits_of_query=judged.groupby("query-id")["split"].transform("nunique"),
    )
    queries["judgements"] = queries["id"].map(judged["query-id"].value_counts()).fillna(0).astype(int)
    unique = expect("column_values_to_be_unique", column="id")
    name = domain.name
    return [
        Suite(f"{name} documents", documents, [*filled("id", "text"), unique]),
        Suite(f"{name} queries", queries, [*filled("id", "text"), unique, between("judgements", 1)]),
        Suite(f"{name} judgements", judged, [
            unique,
            between("grade", *GRADES),
            expect("column_values_to_be_in_set", column="query_exists", value_set=[True]),
            expect("column_values_to_be_in_set", column="document_exists", value_set=[True]),
            expect("column_values_to_be_in_set", column="splits_of_query", value_set=[1]),
            expect("column_distinct_values_to_contain_set", column="split", value_set=["test"]),
        ]),
    ]  # fmt: skip
