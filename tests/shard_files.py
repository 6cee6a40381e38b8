"""Shards written from columns in memory, for tests of those who read them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from accordion.data.shards import ShardWriter, record_type, write_meta

Columns = Mapping[str, np.ndarray]


def write_datasets(
    folder: Path,
    facts: Mapping[str, Any],
    splits: Mapping[str, Mapping[str, Columns]],
    *,
    weights: Mapping[str, float] | None = None,
    positions: Mapping[str, Mapping[str, int]] | None = None,
    limit: int = 7,
) -> Path:
    """Write split -> dataset -> columns (n,S,...) as the pack stage does.

    Args:
        facts: what meta.json states beside the splits: sequence, bits, audio_levels, ...
        weights: of the datasets; the same for all if left out.
        positions: split -> modality -> count, for meta.json.
        limit: sequences in a file.
    """
    described = {}
    for split, datasets in splits.items():
        sequence = next(iter(datasets.values()))["modality"].shape[1]
        layout = record_type(sequence, facts["bits"], facts["audio_levels"])
        entries = {}
        for name, columns in datasets.items():
            with ShardWriter(folder / split / name, layout, limit) as writer:
                for row in range(len(columns["modality"])):
                    writer.add({column: values[row] for column, values in columns.items()})
            weight = (weights or {}).get(name, 1 / len(datasets))
            entries[name] = {"sequences": sum(writer.counts), "shards": writer.counts, "weight": weight}
        total = sum(entry["sequences"] for entry in entries.values())
        held = (positions or {}).get(split, {})
        described[split] = {"sequences": total, "sequence": sequence, "positions": held, "datasets": entries}
    usual = record_type(facts["sequence"], facts["bits"], facts["audio_levels"])
    write_meta(folder, facts, usual, described)
    return folder
