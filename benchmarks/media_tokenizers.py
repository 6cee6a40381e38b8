"""The media tokenizers' speed beside common codecs: images/s and frames/s, encoded and decoded.

Vision: the tokenizer at the default sizes against WebP (Pillow, quality 50), image by image, on 32x32 pictures of
the shipped emoji, on one thread. `one` is a picture at a time, `64` are as many together; WebP always takes one. A
clip has four frames. The tokenizer's weights are those of its seed: its speed does not depend on them.
"""

import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from accordion.config.data import IngestConfig, SourceConfig, VisionTokenizerConfig
from accordion.data.sources.base import Quarantine
from accordion.data.sources.images import image_rows
from accordion.data.tokenizers.vision import VisionTokenizer
from accordion.data.tokenizers.vision_training import read_png
from accordion.home import REPOSITORY
from benchmarks.harness import Figures, Row, paired

REPEATS = 7
PICTURES = 64  # of one side in one repeat
QUALITY = 50
Item = TypeVar("Item")
Result = TypeVar("Result")
FIGURES = {
    "encode one": "images/s", "decode one": "images/s", "encode 64": "images/s", "decode 64": "images/s",
    "encode clips": "frames/s", "decode clips": "frames/s",
}  # fmt: skip


def run(repeats: int, source: Path = REPOSITORY / "data" / "sample") -> list[Row]:
    """Measure on the pictures of `source`, a folder in the layout of data/sample."""
    return vision(read(source, VisionTokenizerConfig().image_size), repeats)


def read(source: Path, size: int) -> Tensor:
    """The first pictures of `source`, uint8 (PICTURES,3,size,size)."""
    found = image_rows(SourceConfig(kind="images", path=str(source / "images")), Quarantine(source), IngestConfig())
    return torch.stack([read_png(row["png"], row["id"], size) for _, _, row in islice(found, PICTURES)])


def vision(pictures: Tensor, repeats: int) -> list[Row]:
    """Rows of the vision tokenizer."""
    torch.manual_seed(0)
    config = VisionTokenizerConfig()
    model = VisionTokenizer(config).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    whole = len(pictures) // config.frames * config.frames
    sides = (lambda: _tokenized(model, pictures[:whole]), lambda: _webp(pictures[:whole]))
    with one_thread():
        found = paired(*sides, repeats=repeats, label="vision tokenizer and WebP")
    return [
        Row(figure=f"vision: {name}", unit=unit, ours="tokenizer", peer="WebP",
            ours_values=found[name][0], peer_values=found[name][1])
        for name, unit in FIGURES.items()
    ]  # fmt: skip


def _tokenized(model: VisionTokenizer, pictures: Tensor) -> Figures:
    """Pictures a second of each figure, from bytes in memory to bits and back."""
    count, size = len(pictures), pictures.shape[-1]
    clips = pictures.view(-1, model.config.frames, 3, size, size)
    groupings = {
        "one": [picture[None, None] for picture in pictures],
        "64": [pictures.unsqueeze(1)],
        "clips": [clip[None] for clip in clips],
    }
    figures = {}
    for name, groups in groupings.items():
        bits, figures[f"encode {name}"] = _rate(count, groups, lambda part: model.encode(part.float() / 255))
        _, figures[f"decode {name}"] = _rate(count, bits, lambda part: (model.decode(part) * 255).round().byte())
    return figures


def _webp(pictures: Tensor) -> Figures:
    """The same of WebP, one picture at a time: its figures for `one`, `64` and `clips` are the same work."""
    images = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures]
    figures = {}
    for name in ("one", "64", "clips"):
        files, figures[f"encode {name}"] = _rate(len(images), images, _packed)
        _, figures[f"decode {name}"] = _rate(len(images), files, lambda file: np.asarray(Image.open(io.BytesIO(file))))
    return figures


def _packed(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY)
    return buffer.getvalue()


def _rate(count: int, items: Sequence[Item], work: Callable[[Item], Result]) -> tuple[list[Result], float]:
    """The results, and pictures a second."""
    started = time.perf_counter()
    results = [work(item) for item in items]
    return results, count / (time.perf_counter() - started)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
