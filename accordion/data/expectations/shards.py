"""Stage `validate_shards`: what is expected of packed sequences (the columns are described in data/batch.py).

Every check that spans columns or positions is first counted for each sequence, so that a failing
expectation names the sequences (`train/text/17`: split, dataset, index) that break it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from accordion.config.data import ValidateShardsConfig
from accordion.data.batch import AUDIO, IMAGE, PAD, TEXT, VIDEO
from accordion.data.expectations.codes import Codes
from accordion.data.expectations.common import between
from accordion.data.expectations.drift import measure
from accordion.data.expectations.statistics import Lengths, Statistics, settings_key
from accordion.data.expectations.suite import Suite, expect, validate
from accordion.data.shards import chunks, read_meta
from accordion.data.tokenizers.text import BOA, VOICE
from accordion.store.manifest import Manifest, identity

MODALITIES = {"text": TEXT, "image": IMAGE, "video": VIDEO, "audio": AUDIO}
ROWS_AT_ONCE = 256  # sequences in memory
BROKEN = {
    "modality_unknown": "positions whose modality is not 0..4",
    "group_falls": "positions whose group is below the one before",
    "group_skips": "positions whose group is more than one above the one before",
    "document_falls": "positions whose document is below the one before",
    "document_skips": "positions whose document is more than one above the one before",
    "document_without_target": "documents that nothing is learned from",
    "document_in_padding": "padding positions with a document, or others without",
    "padding_inside": "filled positions behind padding",
    "position_not_finite": "NaN or infinite coordinates",
    "position_falls": "positions of a document whose time t is below that of the one before",
    "position_unequal": "text and audio positions with t, h and w that are not the same",
    "token_outside": "input tokens outside 0..vocabulary-1",
    "target_token_outside": "text targets outside -1..vocabulary-1",
    "target_token_wrong": "text targets that are not the next token of the document",
    "target_token_missing": "text positions before a text position of the document, without a target",
    "codes_outside": "audio codes outside 0..codebook-1 at audio positions, or not -1 elsewhere",
    "target_codes_outside": "audio targets outside -1..codebook",
    "target_codes_wrong": "audio targets that are neither the next frame's codes nor the end",
    "bits_outside": "vision targets not in {0, 1} at vision positions, or not -1 elsewhere",
    "vision_index_outside": "scale or frame out of range at vision positions, or not -1 elsewhere",
    "vision_input_not_finite": "NaN or infinite vision inputs",
    "patch_outside": "patches looked at that are not there",
    "latent_not_finite": "NaN or infinite latents of vision",
    "voice_outside": "voices that are not there, or told elsewhere than at a voice token before a sound",
    "voice_not_finite": "NaN or infinite numbers that describe a voice",
}


def validate_shards(
    config: ValidateShardsConfig, *, out: Path, shards: Path, previous: Path | None = None
) -> dict[str, Any]:
    """Check packed shards; write result.json, report.html and statistics.json.

    Args:
        previous: what this stage made of the version before; its statistics.json is what drift is measured against.

    Raises:
        ValidationFailed: names each failing expectation and its sequences; they are in `out/failed_rows.jsonl`.
        ArtifactError: meta.json or a column is missing, or of another shape than meta.json states.
    """
    meta = read_meta(shards)
    statistics = Statistics(identity(shards))
    suites = []
    for split in sorted(meta["splits"]):
        sequences, codes = _measure(shards, split, meta)
        suites += [_sequences(split, sequences, config), _modalities(split, sequences, meta, config)]
        suites += codes.suites(split, config)
        _add_statistics(statistics, split, sequences, codes, meta)
    _add_dependencies(statistics, shards)
    statistics.write(out)
    drift = measure(statistics, previous, config.drift, "validate_shards.drift")
    return {**validate([*suites, *drift.suites], out, "shards", drift.notes), "drift": drift.figures}


def measure_shards(shards: Path) -> Statistics:
    """Sequences, positions by modality, lengths, and how often each token and code occurs."""
    meta = read_meta(shards)
    statistics = Statistics(identity(shards))
    for split in sorted(meta["splits"]):
        _add_statistics(statistics, split, *_measure(shards, split, meta), meta)
    _add_dependencies(statistics, shards)
    return statistics


def _add_statistics(
    statistics: Statistics, split: str, table: pd.DataFrame, codes: Codes, meta: dict[str, Any]
) -> None:
    statistics.counts[f"{split} sequences"] = len(table)
    statistics.mixes[f"{split} positions by modality"] = {name: int(table[name].sum()) for name in MODALITIES}
    if documents := meta["splits"][split].get("documents"):
        statistics.mixes[f"{split} documents by kind"] = documents
    statistics.lengths[f"{split} sequences, filled positions"] = Lengths.of(table["filled"])
    statistics.mixes.update({f"{split} {name}": mix for name, mix in codes.mixes().items()})


def _add_dependencies(statistics: Statistics, shards: Path) -> None:
    """Ids mean what their tokenizer made of them, shares what the settings of packing ask for."""
    if not statistics.of:
        return
    manifest = Manifest.read(shards)
    packing = settings_key(manifest.config)
    tokenizers = {"text tokens": "text", "audio codes": "audio", "image bits": "vision", "video bits": "vision"}
    for name in (*statistics.counts, *statistics.mixes, *statistics.lengths):
        parent = next((parent for part, parent in tokenizers.items() if part in name), "")
        statistics.rests_on[name] = manifest.parents.get(parent, "") if parent else f"packing settings {packing}"


def _sequences(split: str, table: pd.DataFrame, config: ValidateShardsConfig) -> Suite:
    return Suite(f"{split} sequences", table, [
        expect("table_row_count_to_be_between", min_value=1),
        expect("column_values_to_be_unique", column="id"),
        between("filled", 1),
        expect("column_mean_to_be_between", column="padding_share", min_value=0, max_value=config.padding_share),
        *(between(column, 0, 0) for column in BROKEN),
    ])  # fmt: skip


def _modalities(split: str, table: pd.DataFrame, meta: dict[str, Any], config: ValidateShardsConfig) -> Suite:
    """Positions of each modality, in all sequences: enough of them, and as many as meta.json says."""
    counted = {name: int(table[name].sum()) for name in MODALITIES}
    written = meta["splits"][split]["positions"]
    # the least numbers are for training; of the held-out split something of each modality is demanded
    needed = {name: config.minimum_tokens.get(name, 1) if split == "train" else 1 for name in counted}
    rows = pd.DataFrame(
        [
            {"id": name, "positions": count, "above_minimum": count - needed[name],
             "not_as_in_meta": abs(count - written.get(name, 0)),
             "share": count / max(1, sum(counted.values()))}
            for name, count in counted.items()
        ]
    )  # fmt: skip
    return Suite(f"{split} positions", rows, [
        between("above_minimum", 0), between("not_as_in_meta", 0, 0), between("share", *config.modality_share),
    ])  # fmt: skip


def _measure(shards: Path, split: str, meta: dict[str, Any]) -> tuple[pd.DataFrame, Codes]:
    """One row a sequence (id, filled, padding_share, positions of each modality, counts of BROKEN); code counts."""
    codes = Codes(meta)
    tables = []
    for dataset, start, part in chunks(shards, split, ROWS_AT_ONCE):
        counts = _counts(part) | _text_checks(part, meta) | _audio_checks(part, meta) | _vision_checks(part, meta)
        counts |= _voice_checks(part)
        codes.add(part)
        table = pd.DataFrame(counts)
        table.insert(0, "id", [f"{split}/{dataset}/{start + row}" for row in range(len(table))])
        tables.append(table)
    return pd.concat(tables, ignore_index=True), codes


def _counts(part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    modality, document, group = part["modality"], part["document"], part["group"]  # each (rows, S)
    filled, position = modality != PAD, part["position"]  # (rows, S, 3): t, h, w
    both = filled[:, 1:] & filled[:, :-1]
    same = both & (np.diff(document, axis=1) == 0)
    flat = np.isin(modality, (TEXT, AUDIO))
    return {
        "filled": filled.sum(1),
        "padding_share": 1 - filled.mean(1),
        **{name: (modality == value).sum(1) for name, value in MODALITIES.items()},
        "modality_unknown": (modality > AUDIO).sum(1),
        "group_falls": (both & (np.diff(group, axis=1) < 0)).sum(1),
        "group_skips": (both & (np.diff(group, axis=1) > 1)).sum(1),
        "document_falls": (both & (np.diff(document, axis=1) < 0)).sum(1),
        "document_skips": (both & (np.diff(document, axis=1) > 1)).sum(1),
        "document_without_target": _without_target(part),
        "document_in_padding": (filled != (document >= 0)).sum(1),
        "padding_inside": (filled[:, 1:] & ~filled[:, :-1]).sum(1),
        "position_not_finite": (~np.isfinite(position)).sum((1, 2)),
        "position_falls": (same & (np.diff(position[..., 0], axis=1) < 0)).sum(1),
        "position_unequal": (flat & (position != position[..., :1]).any(2)).sum(1),
    }


def _without_target(part: dict[str, np.ndarray]) -> np.ndarray:
    """(rows,) documents without any target: every position of theirs is masked out of the loss."""
    document = part["document"]
    learned = part["target_token"] >= 0
    for name in ("target_bits", "target_codes"):
        learned |= (part[name] >= 0).any(2)
    rows, width = len(document), int(document.max(initial=-1)) + 2
    key = np.arange(rows)[:, None] * width + document + 1  # one number for each document of each sequence
    present = np.bincount(key.reshape(-1), minlength=rows * width).reshape(rows, width)[:, 1:] > 0
    targets = np.bincount(key[learned], minlength=rows * width).reshape(rows, width)[:, 1:]
    return (present & (targets == 0)).sum(1)


def _next(part: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(rows, S) bool: a next position exists in the same document; (rows, S) its modality, 0 where none."""
    document, modality = part["document"], part["modality"]
    same = np.zeros(document.shape, bool)
    same[:, :-1] = (document[:, 1:] == document[:, :-1]) & (document[:, 1:] >= 0)
    following = np.zeros_like(modality)
    following[:, :-1] = modality[:, 1:]
    return same, np.where(same, following, 0)


def _text_checks(part: dict[str, np.ndarray], meta: dict[str, Any]) -> dict[str, np.ndarray]:
    token, target, vocabulary = part["token"], part["target_token"], meta["text_vocabulary"]
    _, following = _next(part)
    next_token = np.zeros_like(token)
    next_token[:, :-1] = token[:, 1:]
    right = (following == TEXT) & (next_token == target)
    owed = (part["modality"] == TEXT) & (following == TEXT)
    return {
        "token_outside": ((token < 0) | (token >= vocabulary)).sum(1),
        "target_token_outside": ((target < -1) | (target >= vocabulary)).sum(1),
        "target_token_wrong": ((target >= 0) & ~right).sum(1),
        "target_token_missing": (owed & (target < 0)).sum(1),
    }


def _audio_checks(part: dict[str, np.ndarray], meta: dict[str, Any]) -> dict[str, np.ndarray]:
    codes, target, end = part["codes"], part["target_codes"], meta["audio_codebook"]  # (rows, S, Q)
    audio = (part["modality"] == AUDIO)[..., None]
    _, following = _next(part)
    next_codes = np.full_like(codes, end)
    next_codes[:, :-1] = np.where(following[:, :-1, None] == AUDIO, codes[:, 1:], end)
    given = target >= 0
    return {
        "codes_outside": np.where(audio, (codes < 0) | (codes >= end), codes != -1).sum((1, 2)),
        "target_codes_outside": ((target < -1) | (target > end)).sum((1, 2)),
        "target_codes_wrong": (given & (target != next_codes)).sum((1, 2)),
    }


def _vision_checks(part: dict[str, np.ndarray], meta: dict[str, Any]) -> dict[str, np.ndarray]:
    bits, scale, frame = part["target_bits"], part["scale"], part["frame"]
    looking, rows = part["patch"] >= 0, part["patch_pixels"].shape[1]
    seen = np.isin(part["modality"], (IMAGE, VIDEO)) & looking
    vision = np.isin(part["modality"], (IMAGE, VIDEO)) & ~looking
    inside = (scale >= 0) & (scale < len(meta["scales"])) & (frame >= 0) & (frame < meta["frames"])
    return {
        "bits_outside": np.where(vision[..., None], (bits != 0) & (bits != 1), bits != -1).sum((1, 2)),
        "vision_index_outside": np.where(vision, ~inside, (scale != -1) | ((frame != -1) & ~seen)).sum(1),
        "patch_outside": ((looking & ~seen) | (part["patch"] < -1) | (part["patch"] >= rows)).sum(1),
        "vision_input_not_finite": (~np.isfinite(part["vision_input"])).sum((1, 2)),
        "latent_not_finite": (~np.isfinite(part["latent"])).sum((1, 2))
        + (~np.isfinite(part["patch_latent"])).sum((1, 2)),
    }


def _voice_checks(part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    voice, rows, token = part["voice"], part["voice_vector"].shape[1], part["token"]
    following = np.zeros_like(token)
    following[:, :-1] = token[:, 1:]
    asked = (part["modality"] == TEXT) & (token == VOICE) & (following == BOA)
    return {
        "voice_outside": ((voice < -1) | (voice >= rows) | ((voice >= 0) & ~asked)).sum(1),
        "voice_not_finite": (~np.isfinite(part["voice_vector"])).sum((1, 2)),
    }
