"""Stage train_vision_tokenizer: reads the corpus' pictures, trains on one split and measures on the other."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from accordion.config.data import VisionTokenizerConfig
from accordion.data.media import read_image
from accordion.data.media.image import on_square
from accordion.data.tokenizers.vision_features import Features
from accordion.data.tokenizers.vision_fit import Pictures, fit
from accordion.data.tokenizers.vision_metrics import measure
from accordion.errors import DataError


def train_vision_tokenizer(config: VisionTokenizerConfig, *, out: Path, corpus: Path) -> dict[str, Any]:
    """Train on the corpus' images and clips and write `model.safetensors` and `config.json` into `out`.

    Returns:
        `loss` and its terms, and for held-out images and clips the figures of `vision_metrics.measure`.
    """
    pictures = {split: load_pictures(corpus, split, config) for split in ("train", "val")}
    for split, held in pictures.items():
        if not len(held.images) or not len(held.clips):
            raise DataError(f"{corpus}: no {split} images or clips; the vision tokenizer needs both in each split")
    model, loss = fit(config, pictures["train"])
    model.save(out)
    held, features = pictures["val"], Features()
    return {
        "loss": loss.pop("all"),
        "loss_terms": loss,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "image": measure(model, held.images.unsqueeze(1), features),
        "video": measure(model, held.clips, features),
    }


def load_pictures(corpus: Path, split: str, config: VisionTokenizerConfig) -> Pictures:
    """Read one split of images.parquet and video.parquet."""
    images = pd.read_parquet(corpus / "images.parquet", columns=["id", "png", "split"])
    rows: Iterable[Any] = images[images["split"] == split].itertuples()
    pixels = [read_png(row.png, str(row.id), config.image_size) for row in rows]
    video = pd.read_parquet(corpus / "video.parquet", columns=["id", "frames", "n", "height", "width", "split"])
    scenes: Iterable[Any] = video[video["split"] == split].itertuples()
    clips = [clip for row in scenes for clip in read_clips(row, config.image_size, config.frames)]
    size = config.image_size
    return Pictures(
        torch.stack(pixels) if pixels else torch.empty(0, 3, size, size, dtype=torch.uint8),
        torch.stack(clips) if clips else torch.empty(0, config.frames, 3, size, size, dtype=torch.uint8),
    )


def read_png(data: bytes, name: str, size: int) -> Tensor:
    """An image as uint8 (3,size,size); transparent parts become white, another size is scaled to fit a square.

    Raises:
        DataError: the bytes are no readable image.
    """
    return torch.from_numpy(on_square(read_image(data, f"image {name}"), size)).permute(2, 0, 1)


def read_clips(row: Any, size: int, frames: int) -> Iterator[Tensor]:
    """Cut a row of video.parquet into whole clips of `frames` frames, uint8 (frames,3,size,size).

    Raises:
        DataError: the bytes do not fit the stated shape, the frames are not `size` squares, or there are too few.
    """
    wanted = row.n * row.height * row.width * 3
    if len(row.frames) != wanted:
        raise DataError(f"video {row.id}: {len(row.frames)} bytes; {row.n} frames of its size are {wanted} bytes")
    if (row.height, row.width) != (size, size):
        raise DataError(f"video {row.id}: frames of {row.height}x{row.width}; wants {size}x{size}; run ingest again")
    if row.n < frames:
        raise DataError(f"video {row.id}: {row.n} frames; a clip has {frames}, set tokenizers.vision.frames")
    pixels = np.frombuffer(row.frames, np.uint8).reshape(row.n, size, size, 3)
    for start in range(0, row.n - frames + 1, frames):
        yield torch.from_numpy(pixels[start : start + frames].copy()).permute(0, 3, 1, 2)
