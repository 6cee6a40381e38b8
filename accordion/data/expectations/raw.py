"""Stage `validate_data`: what is expected of the corpus that ingest wrote, table by table, and of its drift."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from accordion.config.data import ValidateConfig
from accordion.data.expectations.collections import collection, dictionaries, faq
from accordion.data.expectations.common import between, digest, filled, language_mix, quantiles, read_table, schema
from accordion.data.expectations.drift import measure
from accordion.data.expectations.ingested import ingested
from accordion.data.expectations.statistics import Lengths, Statistics, counted
from accordion.data.expectations.suite import Expect, Suite, expect, validate
from accordion.store.manifest import identity

SPLITS = ["train", "val"]
IMAGE_SIDE = (8, 4096)
LANGUAGE_TAG = r"^[a-z]{2,3}(-[A-Za-z0-9]+)*$"  # BCP 47
SILENCE_MS = 20  # window in which loudness is looked at
RIGHTS = {"id": "text", "source": "text", "licence": "text", "split": "text"}
SCHEMA = {
    "text": {**RIGHTS, "text": "text", "language": "text"},
    "images": {**RIGHTS, "png": "bytes", "caption": "text", "captions": "text"},
    "audio": {
        **RIGHTS,
        "pcm": "bytes",
        "rate": "integer",
        "transcript": "text",
        "language": "text",
        "key": "text",
        "speaker": "text",
    },
    "video": {**RIGHTS, "frames": "bytes", "n": "integer", "height": "integer", "width": "integer", "caption": "text"},
    "faq": dict.fromkeys(("section", "language", "question", "answer"), "text"),
}


def validate_data(config: ValidateConfig, *, out: Path, corpus: Path, previous: Path | None = None) -> dict[str, Any]:
    """Check a corpus; write result.json, report.html and statistics.json.

    Args:
        previous: what this stage made of the version before; its statistics.json is what drift is measured against.

    Raises:
        ValidationFailed: names each failing expectation and its rows; they are in `out/failed_rows.jsonl`.
        DataError: a table of the corpus is missing or not readable.
        ArtifactError: `previous` holds no readable statistics.
    """
    types = schema(corpus, SCHEMA)
    if (types.table["type"] != types.table["wanted"]).any():
        validate([types], out, "raw data")  # raises: a table of another form is not looked into
    tables = {name: read_table(corpus, name) for name in SCHEMA}
    statistics = corpus_statistics(corpus, tables)
    suites = [
        types,
        *_text(tables["text"], config),
        _images(tables["images"], config),
        *_audio(tables["audio"], config),
        _video(tables["video"], config),
        faq(tables["faq"]),
        dictionaries(corpus / "dictionaries"),
    ]
    for domain in sorted(path for path in (corpus / "retrieval").iterdir() if path.is_dir()):
        suites += collection(domain, config, statistics)
    removed, unknown = ingested(corpus, config, statistics)
    statistics.write(out)
    drift = measure(statistics, previous, config.drift, "validate_data.drift")
    checked = validate([*suites, *removed, *drift.suites], out, "raw data", [*unknown, *drift.notes])
    return {**checked, "drift": drift.figures}


def measure_corpus(corpus: Path) -> Statistics:
    """The statistics that `validate_data` writes, without validating.

    Raises:
        DataError: a table or collection is missing or not readable.
    """
    config = ValidateConfig()
    statistics = corpus_statistics(corpus, {name: read_table(corpus, name) for name in SCHEMA})
    for domain in sorted(path for path in (corpus / "retrieval").iterdir() if path.is_dir()):
        collection(domain, config, statistics)
    ingested(corpus, config, statistics)
    return statistics


def corpus_statistics(corpus: Path, tables: dict[str, pd.DataFrame]) -> Statistics:
    """Rows, languages, sources and lengths of the tables of a corpus."""
    statistics = Statistics(identity(corpus))
    for name in ("text", "images", "audio", "video"):
        for split, rows in tables[name]["split"].value_counts().items():
            statistics.counts[f"{name} rows, {split}"] = int(rows)
        statistics.mixes[f"{name} sources"] = counted(tables[name]["source"])
    for name in ("text", "audio"):
        statistics.mixes[f"{name} languages"] = counted(tables[name]["language"])
    statistics.lengths.update({
        "text, characters": Lengths.of(tables["text"]["text"].str.len()),
        "image captions, characters": Lengths.of(tables["images"]["caption"].fillna("").str.len()),
        "audio, seconds": Lengths.of(tables["audio"]["pcm"].map(len) / 2 / tables["audio"]["rate"]),
        "transcripts, characters": Lengths.of(tables["audio"]["transcript"].fillna("").str.len()),
    })  # fmt: skip
    return statistics


def _common(config: ValidateConfig, name: str, columns: list[str], group: bool = True) -> list[Expect]:
    """Columns, number of rows, ids, source, licence, splits, exact copies; no group lies in two splits."""
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


def known_languages(config: ValidateConfig, languages: Sequence[str]) -> Expect:
    """No language but these, or any language tag where the profile allows others."""
    if config.other_languages:
        return expect("column_values_to_match_regex", column="language", regex=LANGUAGE_TAG)
    return expect("column_values_to_be_in_set", column="language", value_set=list(languages))


def _splits_of(table: pd.DataFrame, group: pd.Series) -> pd.Series:
    return table.groupby(group)["split"].transform("nunique")


def _text(table: pd.DataFrame, config: ValidateConfig) -> list[Suite]:
    derived = table.assign(
        characters=table["text"].str.len(),
        digest=table["text"].map(digest),
        splits_of_group=_splits_of(table, table["id"].str.rsplit("/", n=1).str[0]),
    )
    low, high = config.text_characters
    suite = Suite("text", derived, [
        *_common(config, "text", ["text", "language"]),
        *filled("text"),
        between("characters", low, high),
        quantiles("characters", low, config.text_median, high),
        known_languages(config, config.text_languages),
        expect("column_values_to_not_match_regex", column="text", regex="\ufffd"),
    ])  # fmt: skip
    mix = language_mix("text", table, config.text_languages, config.language_share)
    agreement = between("agreement", config.language_agreement)
    return [suite, Suite(mix.name, mix.table, [*mix.expectations, agreement])]


def _picture(png: bytes) -> dict[str, Any]:
    """Size, contrast (standard deviation of the values) and the share of the commonest colour."""
    try:
        with Image.open(io.BytesIO(png)) as picture:
            picture.load()
            size = {"decodes": True, "width": picture.width, "height": picture.height, "mode": picture.mode}
            pixels = np.asarray(picture.convert("RGB"), np.int64).reshape(-1, 3)  # (pixels, channels)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return {"decodes": False, "width": None, "height": None, "mode": None, "contrast": None, "flat": None}
    _, counts = np.unique(pixels @ np.array([1 << 16, 1 << 8, 1]), return_counts=True)
    return {**size, "contrast": float(pixels.std()), "flat": float(counts.max() / len(pixels))}


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
        between("contrast", config.picture_contrast),
        between("flat", None, config.flat_share),
        between("caption_languages", 1),
        between("empty_captions", 0, 0),
    ])  # fmt: skip


def _loudness(pcm: bytes, rate: int, silent: float) -> dict[str, float]:
    """Level in dB under full scale, share of silent windows, share of samples at full scale."""
    samples = np.frombuffer(pcm[: len(pcm) // 2 * 2], "<i2").astype(np.float32) / 32768
    if not samples.size:
        return {"level": -200.0, "silent": 1.0, "clipped": 0.0}
    window = max(1, min(len(samples), int(rate) * SILENCE_MS // 1000))
    windows = samples[: len(samples) // window * window].reshape(-1, window)
    levels = 20 * np.log10(np.sqrt((windows**2).mean(1)) + 1e-10)
    return {
        "level": float(20 * np.log10(np.sqrt((samples**2).mean()) + 1e-10)),
        "silent": float((levels < silent).mean()),
        "clipped": float((np.abs(samples) >= 32767 / 32768).mean()),
    }


def _audio(table: pd.DataFrame, config: ValidateConfig) -> list[Suite]:
    pairs = zip(table["pcm"].to_list(), table["rate"].to_list(), strict=True)
    heard = [_loudness(pcm, rate, config.silent_level) for pcm, rate in pairs]
    derived = table.drop(columns="pcm").join(pd.DataFrame(heard, index=table.index)).assign(
        seconds=table["pcm"].map(len) / 2 / table["rate"],
        odd_bytes=table["pcm"].map(len) % 2,
        digest=table["pcm"].map(digest),
        splits_of_group=_splits_of(table, table["key"]),
    )  # fmt: skip
    suite = Suite("audio", derived, [
        *_common(config, "audio", ["rate", "transcript", "language", "key"]),
        *filled("transcript", "key"),
        between("seconds", *config.audio_seconds),
        quantiles("seconds", config.audio_seconds[0], config.audio_median, config.audio_seconds[1]),
        between("odd_bytes", 0, 0),
        between("level", config.audio_level),
        between("silent", None, config.silent_share),
        between("clipped", None, config.clipped_share),
        expect("column_values_to_be_in_set", column="rate", value_set=[8000]),
        known_languages(config, config.audio_languages),
        expect("compound_columns_to_be_unique", column_list=["key", "language"]),
    ])  # fmt: skip
    return [suite, language_mix("audio", table, config.audio_languages, config.language_share)]


def _frames(row: Any, contrast: float) -> dict[str, float | None]:
    """Share of blank frames and of frames that equal the one before; None where the bytes do not fit the size."""
    if row.n < 1 or len(row.frames) != row.n * row.height * row.width * 3:
        return {"blank": None, "frozen": None}
    frames = np.frombuffer(row.frames, np.uint8).reshape(row.n, -1)
    same = (frames[1:] == frames[:-1]).all(1)
    return {
        "blank": float((frames.std(1, dtype=np.float32) < contrast).mean()),
        "frozen": float(same.mean()) if len(same) else 0.0,
    }


def _video(table: pd.DataFrame, config: ValidateConfig) -> Suite:
    seen = [_frames(row, config.picture_contrast) for row in table.itertuples()]
    derived = table.drop(columns="frames").join(pd.DataFrame(seen, index=table.index)).assign(
        missing_bytes=table["n"] * table["height"] * table["width"] * 3 - table["frames"].map(len),
        digest=table["frames"].map(digest),
    )  # fmt: skip
    return Suite("video", derived, [
        *_common(config, "video", ["n", "height", "width", "caption"], group=False),
        between("missing_bytes", 0, 0),
        between("n", 1, 64),
        between("height", *IMAGE_SIDE),
        between("width", *IMAGE_SIDE),
        between("blank", None, config.blank_frames),
        expect("column_values_to_be_between", column="frozen", max_value=1, strict_max=True,
               mostly=1 - config.frozen_clips),
        expect("column_values_to_not_be_null", column="caption"),
    ])  # fmt: skip
