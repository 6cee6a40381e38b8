"""Validation images and clips encoded and decoded by a run's own tokenizers."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from accordion.data.tokenizers.vision import VisionTokenizer
from accordion.data.tokenizers.vision_training import read_png


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


def _channels_last(frames: torch.Tensor) -> np.ndarray:
    """First frames of (n, 1, 3, side, side) as (n, side, side, 3)."""
    return frames[:, 0].permute(0, 2, 3, 1).numpy()
