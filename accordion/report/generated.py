"""What the pre-trained model makes and says of validation records: every direction, drawn once, nothing picked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from accordion.data.tokenizers.audio import AudioTokenizer
from accordion.data.tokenizers.audio_training import read_pcm
from accordion.data.tokenizers.text import BOS, TextTokenizer
from accordion.data.tokenizers.vision import VisionTokenizer
from accordion.data.tokenizers.vision_training import read_clips, read_png
from accordion.generate import Creator, Sampling
from accordion.model import load_model
from accordion.report.reconstruct import Grid, samples

SPOKEN = 3.0  # most seconds of a clip that is transcribed, and of one that is spoken
SAID = 24  # most tokens of a text
_CLIP = ["id", "frames", "n", "height", "width", "caption"]


@dataclass(frozen=True, kw_only=True)
class Voice:
    """A validation clip, what its codes give back, and the same words spoken by the model; int16 samples."""

    transcript: str
    language: str
    rate: int
    versions: dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Samples in every direction.

    Attributes:
        said: rows (what was asked, in truth, the model).
        drawn: a row for each image; films: two rows for each clip, the real one above; None: none in the corpus.
        captions: of the images in `drawn`.
    """

    said: Sequence[tuple[str, str, str]]
    drawn: Grid | None
    captions: Sequence[str]
    films: Grid | None
    voices: Sequence[Voice]


@dataclass(frozen=True)
class _Tools:
    text: TextTokenizer
    vision: VisionTokenizer
    audio: AudioTokenizer


def generate(
    checkpoint: Path, tokenizers: Sequence[Path], corpus: Path, *, images: int = 5, clips: int = 2, sounds: int = 2
) -> Generated:
    """Generate from the first validation records.

    Args:
        checkpoint: folder of the model.
        tokenizers: folders of the text, vision and audio tokenizer it was trained with.
        images, clips, sounds: how many of each.
    """
    text, vision, audio = tokenizers
    tools = _Tools(TextTokenizer.load(text), VisionTokenizer.load(vision), AudioTokenizer.load(audio))
    creator = Creator(load_model(checkpoint), tools)
    said, (drawn, captions) = _continued(creator, corpus), _drawn(creator, corpus, images)
    described = _described(creator, corpus, images)
    voices, heard = _voices(creator, corpus, sounds)
    return Generated(
        said=[*said, *described, *heard], drawn=drawn, captions=captions, films=_films(creator, corpus, clips),
        voices=voices,
    )  # fmt: skip


def _rows(corpus: Path, name: str, columns: list[str], count: int) -> list[dict[str, Any]]:
    """Up to `count` validation rows, spread over the split."""
    found = pq.read_table(corpus / f"{name}.parquet", columns=columns, filters=[("split", "=", "val")])
    rows = np.unique(np.linspace(0, max(found.num_rows - 1, 0), min(count, found.num_rows)).astype(int))
    return found.take(rows).to_pylist()


def _continued(creator: Creator, corpus: Path) -> list[tuple[str, str, str]]:
    said = []
    for row in _rows(corpus, "text", ["text"], 3):
        start, truth = row["text"][:60], row["text"][60:140]
        made = creator.continue_text([BOS, *creator.text.encode(start)], _sampling(0.7), longest=SAID)
        said.append((f"go on after “{start}”", truth, made))
    return said


def _drawn(creator: Creator, corpus: Path, count: int) -> tuple[Grid | None, list[str]]:
    rows = _rows(corpus, "images", ["id", "png", "caption"], count)
    pictures: list[np.ndarray] = []
    for row in rows:
        real = _real(creator, row)
        coded = creator.vision.decode(creator.vision.encode(real[None, None]))[0]
        made = [creator.draw(row["caption"], Sampling(seed=len(pictures), guidance=weight)) for weight in (1, 2)]
        pictures.append(_pixels(torch.stack([real, *coded, *made])))
    columns = ("real", "its codes", "drawn", "guidance 2")
    return (Grid(columns=columns, pictures=np.stack(pictures)) if rows else None), [row["caption"] for row in rows]


def _described(creator: Creator, corpus: Path, count: int) -> list[tuple[str, str, str]]:
    rows = _rows(corpus, "images", ["id", "png", "caption"], count)
    said = [
        ("describe image", row["caption"], creator.caption(_real(creator, row), _sampling(0.0), longest=SAID))
        for row in rows
    ]
    if creator.model.config.vit_layers:
        for row in _rows(corpus, "video", _CLIP, 2):
            told = creator.describe(_clip(creator, row), _sampling(0.0), longest=SAID)
            said.append(("describe clip", row["caption"], told))
    return said


def _films(creator: Creator, corpus: Path, count: int) -> Grid | None:
    config, lines = creator.vision.config, []
    for row in _rows(corpus, "video", _CLIP, count):
        clip = _clip(creator, row)
        made = creator.film(row["caption"], clip[:1], Sampling())
        lines += [_pixels(clip), _pixels(made)]
    names = tuple(f"frame {number + 1}" for number in range(config.frames))
    return Grid(columns=names, pictures=np.stack(lines)) if lines else None


def _voices(creator: Creator, corpus: Path, count: int) -> tuple[list[Voice], list[tuple[str, str, str]]]:
    rows = _rows(corpus, "audio", ["pcm", "rate", "transcript", "language", "speaker"], 50)
    short = [row for row in rows if len(row["pcm"]) / 2 <= SPOKEN * row["rate"]]
    voices, said = [], []
    for row in short[:count]:
        rate = creator.audio.config.sample_rate
        pcm = read_pcm(row["pcm"], row["rate"], row["transcript"], rate)
        said.append(("transcribe", row["transcript"], creator.transcribe(pcm, _sampling(0.0), longest=SAID)))
        spoken = creator.speak(row["transcript"], Sampling(top_p=0.95), seconds=SPOKEN)
        versions = {"real": pcm, "its codes": creator.audio.decode(creator.audio.encode(pcm)), "spoken": spoken}
        if creator.model.config.voice_size:
            other = next((each for each in rows if each is not row and each["speaker"] == row["speaker"] != ""), row)
            heard = creator.audio.voices(read_pcm(other["pcm"], other["rate"], other["transcript"], rate))
            if heard is not None:
                told = creator.speak(row["transcript"], Sampling(top_p=0.95), seconds=SPOKEN, voice=heard)
                versions["spoken in that voice"] = told
        voices.append(
            Voice(
                transcript=row["transcript"], language=row["language"], rate=rate,
                versions={name: samples(made) for name, made in versions.items()},
            )
        )  # fmt: skip
    return voices, said


def _clip(creator: Creator, row: dict[str, Any]) -> torch.Tensor:
    """The first clip (T,3,H,W) in [0,1] of a record."""
    config = creator.vision.config
    return next(iter(read_clips(_Row(row), config.image_size, config.frames))).float() / 255


class _Row:
    """A record by attributes, as the reader of clips takes it."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)


def _real(creator: Creator, row: dict[str, Any]) -> torch.Tensor:
    return read_png(row["png"], str(row["id"]), creator.vision.config.image_size).float() / 255


def _sampling(temperature: float) -> Sampling:
    return Sampling(temperature=temperature, top_p=0.9)


def _pixels(frames: torch.Tensor) -> np.ndarray:
    """(n,3,H,W) in [0,1] -> uint8 (n,H,W,3)."""
    return (frames * 255).round().to(torch.uint8).movedim(1, -1).numpy()
