"""Expectations that several tables share: filled and bounded columns, schema, language mix, length quantiles."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from accordion.data.expectations.suite import Expect, Suite, expect
from accordion.errors import DataError


def digest(value: str | bytes) -> str:
    """Short SHA-256 of a cell, so that equal long contents are found and named briefly."""
    return hashlib.sha256(value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value).hexdigest()[:16]


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


def quantiles(column: str, smallest: float, median: tuple[float, float], largest: float) -> Expect:
    """The 5, 50 and 95 % quantiles of the column: at least `smallest`, a median within bounds, at most `largest`."""
    ranges = {"quantiles": [0.05, 0.5, 0.95], "value_ranges": [[smallest, None], list(median), [None, largest]]}
    return expect("column_quantile_values_to_be_between", column=column, quantile_ranges=ranges)


def read_table(corpus: Path, name: str) -> pd.DataFrame:
    """A table of the corpus.

    Raises:
        DataError: it is missing or not readable.
    """
    path = corpus / f"{name}.parquet"
    if not path.is_file():
        raise DataError(f"{path}: missing; run `ingest` again")
    try:
        return pd.read_parquet(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: not readable ({error}); run `ingest` again") from None


def schema(corpus: Path, wanted: Mapping[str, Mapping[str, str]]) -> Suite:
    """Type of each column that later stages read, over all tables: `wanted` is table -> column -> type.

    Raises:
        DataError: a table is missing or not readable.
    """
    rows = []
    for name, columns in wanted.items():
        path = corpus / f"{name}.parquet"
        if not path.is_file():
            raise DataError(f"{path}: missing; run `ingest` again")
        try:
            found = pq.read_schema(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path}: not readable ({error}); run `ingest` again") from None
        types = {field.name: _family(field.type) for field in found}
        rows += [
            {"id": f"{name}.{column}", "type": types.get(column, "absent"), "wanted": kind}
            for column, kind in columns.items()
        ]
    columns_equal = expect("column_pair_values_to_be_equal", column_A="type", column_B="wanted")
    return Suite("schema", pd.DataFrame(rows), [columns_equal, expect("column_values_to_be_unique", column="id")])


def _family(kind: pa.DataType) -> str:
    tests = {
        "text": lambda: pa.types.is_string(kind) or pa.types.is_large_string(kind),
        "bytes": lambda: pa.types.is_binary(kind) or pa.types.is_large_binary(kind),
        "integer": lambda: pa.types.is_integer(kind),
        "number": lambda: pa.types.is_floating(kind),
    }
    return next((name for name, holds in tests.items() if holds()), str(kind))


def language_mix(name: str, table: pd.DataFrame, wanted: Sequence[str], share: tuple[float, float]) -> Suite:
    """One row a language: its share of the records, and how often ingest identified it as what was declared.

    Wanted languages that are missing have the share 0; one that is wanted alone may have all; of others there may be
    as few as there are.
    """
    languages = table["language"].fillna("unknown")
    agree = table.get("identified", table["language"]) == table["language"]
    found = languages.value_counts()
    rows = [
        {
            "id": language,
            "records": int(found.get(language, 0)),
            "share": found.get(language, 0) / max(len(table), 1),
            "agreement": float(agree[languages == language].mean()) if language in found.index else 1.0,
        }
        for language in sorted(wanted)
    ]
    low, high = share
    return Suite(f"{name} languages", pd.DataFrame(rows), [
        between("share", low, high if len(wanted) > 1 else None),
    ])  # fmt: skip
