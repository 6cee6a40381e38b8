"""The media tokenizers' speed beside common codecs: images/s, frames/s and seconds of speech a second, both ways.

Vision: the tokenizer at the default sizes against WebP (Pillow, quality 50), image by image, on 32x32 pictures of
the shipped emoji, on one thread. `one` is a picture at a time, `64` are as many together; WebP always takes one. A
clip has four frames. The tokenizer's weights are those of its seed: its speed does not depend on them.

Speech: the tokenizer at the default sizes against the EnCodec architecture of `transformers` at the same sample rate,
frame rate, number and size of codebooks and its own default widths, both with the weights of a seed, prompt by prompt,
on one thread. Nothing is said about quality: the weights of EnCodec itself are not used. `decode` includes the phase
(Griffin-Lim), `decode to magnitudes` does not.
"""

import io
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import EncodecConfig, EncodecModel

from accordion.config.data import AudioTokenizerConfig, IngestConfig, SourceConfig, VisionTokenizerConfig
from accordion.data import media
from accordion.data.sources.base import Quarantine
from accordion.data.sources.images import image_rows
from accordion.data.tokenizers.audio import AudioTokenizer
from accordion.data.tokenizers.vision import VisionTokenizer
from accordion.data.tokenizers.vision_training import read_png
from accordion.home import REPOSITORY
from benchmarks.harness import Figures, Row, paired

REPEATS = 7
PICTURES = 64  # of one side in one repeat
QUALITY = 50
CLIPS = 24  # prompts of one side in one repeat
STRIDES = (8, 5, 4, 4)  # of EnCodec, 640 samples a frame
ROUNDED_RATE = 13  # frames a second as EnCodec's settings count them, 12.5 rounded up
Item = TypeVar("Item")
Result = TypeVar("Result")
FIGURES = {
    "encode one": "images/s", "decode one": "images/s", "encode 64": "images/s", "decode 64": "images/s",
    "encode clips": "frames/s", "decode clips": "frames/s",
}  # fmt: skip


def run(repeats: int, source: Path = REPOSITORY / "data" / "sample") -> list[Row]:
    """Measure on the pictures and the speech of `source`, a folder in the layout of data/sample."""
    return vision(read(source, VisionTokenizerConfig().image_size), repeats) + speech(read_speech(source), repeats)


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


def read_speech(source: Path) -> list[Tensor]:
    """Every so many prompts of `source`, CLIPS in all: float PCM (n,)."""
    with zipfile.ZipFile(source / "audio/prompts.zip") as archive:
        names = sorted(archive.namelist())
        some = names[:: max(1, len(names) // CLIPS)][:CLIPS]
        return [torch.from_numpy(media.read_audio(archive.read(name), name)[0]) for name in some]


def speech(clips: Sequence[Tensor], repeats: int) -> list[Row]:
    """Rows of the audio tokenizer: how many seconds of clips (n,) in one second."""
    config = AudioTokenizerConfig()
    torch.manual_seed(0)
    model, peer = AudioTokenizer(config).eval(), encodec(config)
    with one_thread():
        found = paired(lambda: _spoken(model, clips), lambda: _encodec(peer, clips), repeats=repeats,
                       label="audio tokenizer and EnCodec")  # fmt: skip
    return [
        Row(figure=f"speech: {name}", unit="x real time", ours="tokenizer", peer="EnCodec architecture",
            ours_values=values[0], peer_values=values[1])
        for name, values in found.items()
    ]  # fmt: skip


def encodec(config: AudioTokenizerConfig) -> Any:
    """EnCodec's architecture at the rate of the tokenizer, its codebooks filled from the seed (new ones are zero)."""
    bits = (config.codebook - 1).bit_length()
    settings = EncodecConfig(
        sampling_rate=config.sample_rate,
        upsampling_ratios=STRIDES,
        codebook_size=config.codebook,
        target_bandwidths=(ROUNDED_RATE * config.levels * bits / 1000, ROUNDED_RATE * config.levels * 10 / 1000),
    )
    model = EncodecModel(settings).eval()
    for layer in model.quantizer.layers:
        torch.nn.init.normal_(layer.codebook.embed)
    return model


def _spoken(model: AudioTokenizer, clips: Sequence[Tensor]) -> Figures:
    seconds = sum(map(len, clips)) / model.config.sample_rate
    codes, encoding = _rate(seconds, clips, model.encode)
    _, decoding = _rate(seconds, codes, model.decode)
    return {"encode": encoding, "decode": decoding, "decode to magnitudes": _rate(seconds, codes, model.magnitudes)[1]}


@torch.no_grad()
def _encodec(model: Any, clips: Sequence[Tensor]) -> Figures:
    """The same of EnCodec, whose decoding has one way only."""
    seconds = sum(map(len, clips)) / model.config.sampling_rate
    found, encoding = _rate(seconds, clips, lambda clip: model.encode(clip[None, None]))
    _, decoding = _rate(seconds, found, lambda one: model.decode(
        one.audio_codes, one.audio_scales, last_frame_pad_length=one.last_frame_pad_length))  # fmt: skip
    return {"encode": encoding, "decode": decoding, "decode to magnitudes": decoding}


def _packed(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY)
    return buffer.getvalue()


def _rate(count: float, items: Sequence[Item], work: Callable[[Item], Result]) -> tuple[list[Result], float]:
    """The results, and how much of `count` in a second."""
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
