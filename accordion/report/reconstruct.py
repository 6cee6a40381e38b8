"""Validation images and clips encoded and decoded by a run's own tokenizers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from accordion.data.tokenizers.audio import AudioTokenizer
from accordion.data.tokenizers.audio_training import read_pcm
from accordion.data.tokenizers.vision import VisionTokenizer
from accordion.data.tokenizers.vision_training import read_png


@dataclass(frozen=True, kw_only=True)
class Sound:
    """One clip and what its codes give back; int16 samples."""

    transcript: str
    language: str
    rate: int
    original: np.ndarray
    reconstruction: np.ndarray


def image_pairs(tokenizer: Path, corpus: Path, *, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Up to `count` validation images, spread over the split, and their reconstructions: uint8 (n, side, side, 3)."""
    model = VisionTokenizer.load(tokenizer)
    side = model.config.image_size
    table = pq.read_table(corpus / "images.parquet", columns=["png"], filters=[("split", "=", "val")])
    rows = np.unique(np.linspace(0, max(table.num_rows - 1, 0), min(count, table.num_rows)).astype(int))
    images = [read_png(table["png"][int(row)].as_py(), f"validation row {row}", side) for row in rows]
    if not images:
        empty = np.zeros((0, side, side, 3), np.uint8)
        return empty, empty
    originals = torch.stack(images).unsqueeze(1)  # (n, 1, 3, side, side)
    decoded = (model.decode(model.encode(originals / 255)) * 255).round().to(torch.uint8)
    return _channels_last(originals), _channels_last(decoded)


def sound_pairs(tokenizer: Path, corpus: Path, *, count: int) -> list[Sound]:
    """Up to `count` validation clips of two to six seconds, spread over languages, and their reconstructions."""
    model = AudioTokenizer.load(tokenizer)
    columns = ["pcm", "rate", "transcript", "language"]
    rows = pq.read_table(corpus / "audio.parquet", columns=columns, filters=[("split", "=", "val")]).to_pylist()
    fitting = [row for row in rows if 2 * row["rate"] <= len(row["pcm"]) / 2 <= 6 * row["rate"]]
    by_language: dict[str, dict[str, Any]] = {}
    for row in fitting:
        by_language.setdefault(row["language"], row)
    sounds = []
    for language, row in sorted(by_language.items())[:count]:
        pcm = read_pcm(row["pcm"], row["rate"], row["transcript"], model.config.sample_rate)
        decoded = model.decode(model.encode(pcm, row["rate"]))[: len(pcm)]
        both = [(part.clamp(-1, 1) * 32767).round().to(torch.int16).numpy() for part in (pcm, decoded)]
        sounds.append(Sound(transcript=row["transcript"], language=language, rate=row["rate"],
                            original=both[0], reconstruction=both[1]))  # fmt: skip
    return sounds


def _channels_last(frames: torch.Tensor) -> np.ndarray:
    """First frames of (n, 1, 3, side, side) as (n, side, side, 3)."""
    return frames[:, 0].permute(0, 2, 3, 1).numpy()
