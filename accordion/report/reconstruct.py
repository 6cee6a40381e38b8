"""Validation images and clips encoded and decoded by a run's own tokenizers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from accordion.data.tokenizers.audio import AudioTokenizer
from accordion.data.tokenizers.audio_training import read_pcm
from accordion.data.tokenizers.vision import VisionTokenizer
from accordion.data.tokenizers.vision_training import load_pictures


@dataclass(frozen=True, kw_only=True)
class Sound:
    """One clip and what its codes give back; int16 samples, `decoded` by the number of codes used."""

    transcript: str
    language: str
    rate: int
    original: np.ndarray
    decoded: Mapping[int, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Pictures beside what each budget gives back: uint8 (picture, column, side, side, 3), named columns."""

    columns: Sequence[str]
    pictures: np.ndarray


def picture_grids(tokenizer: Path, corpus: Path, *, images: int, clips: int) -> dict[str, Grid]:
    """Validation images and the frames of validation clips, spread over the split, in the original and decoded.

    Args:
        images, clips: at most so many of each; a part that the corpus lacks is left out.

    Returns:
        `image` and `video`: columns are the original, each budget of a token with all its scales, largest first,
        then all bits with fewer and fewer scales.
    """
    model = VisionTokenizer.load(tokenizer)
    held = load_pictures(corpus, "val", model.config)
    parts = {"image": _spread(held.images.unsqueeze(1), images), "video": _spread(held.clips, clips)}
    return {name: _grid(model, part) for name, part in parts.items() if len(part)}


def _grid(model: VisionTokenizer, clips: torch.Tensor) -> Grid:
    """Clips (B,T,3,H,W), uint8, decoded from every budget; a row for each frame."""
    bits, scales = model.encode(clips.float() / 255), model.config.scales
    columns, decoded = ["original"], [clips]
    told = [(depth, len(scales)) for depth in reversed(model.config.budgets)]
    told += [(model.config.bits, kept) for kept in range(len(scales) - 1, 0, -1)]
    for depth, kept in told:
        size = depth * sum(side * side for side in scales[:kept])
        columns.append(f"{size} bits")
        restored = model.decode([grid[..., :depth] for grid in bits[:kept]])
        decoded.append((restored * 255).round().to(torch.uint8))
    pictures = torch.stack([part.flatten(0, 1) for part in decoded], dim=1)
    return Grid(columns=columns, pictures=pictures.permute(0, 1, 3, 4, 2).numpy())


def _spread(items: torch.Tensor, most: int) -> torch.Tensor:
    """At most `most` items, evenly spread."""
    rows = np.unique(np.linspace(0, max(len(items) - 1, 0), min(most, len(items))).astype(int))
    return items[torch.from_numpy(rows)]


def sounds_by_codes(tokenizer: Path, corpus: Path, *, count: int) -> list[Sound]:
    """Up to `count` validation clips of two to six seconds, spread over languages, decoded from 1, 2 and all codes."""
    model = AudioTokenizer.load(tokenizer)
    columns = ["pcm", "rate", "transcript", "language"]
    rows = pq.read_table(corpus / "audio.parquet", columns=columns, filters=[("split", "=", "val")]).to_pylist()
    fitting = [row for row in rows if 2 * row["rate"] <= len(row["pcm"]) / 2 <= 6 * row["rate"]]
    by_language: dict[str, dict[str, Any]] = {}
    for row in fitting:
        by_language.setdefault(row["language"], row)
    sounds = []
    numbers = sorted({1, min(2, model.config.levels), model.config.levels})
    for language, row in sorted(by_language.items())[:count]:
        pcm = read_pcm(row["pcm"], row["rate"], row["transcript"], model.config.sample_rate)
        codes = model.encode(pcm, row["rate"])
        decoded = {used: samples(model.decode(codes[:, :used])[: len(pcm)]) for used in numbers}
        sounds.append(Sound(transcript=row["transcript"], language=language, rate=row["rate"],
                            original=samples(pcm), decoded=decoded))  # fmt: skip
    return sounds


def spectrogram(samples: np.ndarray) -> np.ndarray:
    """int16 samples -> loudness uint8 (bins, spectra): 32 ms windows every 8 ms at 8 kHz, 70 dB, high bins first."""
    window = torch.hann_window(256)
    pcm = torch.from_numpy(samples.astype(np.float32) / 32768)
    magnitude = torch.stft(pcm, 256, 64, window=window, return_complex=True).abs() * (2 / window.sum())
    loudness = (20 * magnitude.clamp_min(1e-6).log10() + 75) / 70
    return (loudness.clamp(0, 1) * 255).byte().flip(0).numpy()


def samples(pcm: torch.Tensor) -> np.ndarray:
    """Floats in [-1, 1] as int16."""
    return (pcm.clamp(-1, 1) * 32767).round().to(torch.int16).numpy()
