"""The corpus as streams of documents, one for each kind: read a few row groups, tokenize, hand over.

No stream holds more than `GROUPS` row groups of its table and `CLIPS` pictures, whatever the size of the corpus.
"""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn.functional import pad

from accordion.config.data import PackConfig
from accordion.data import media
from accordion.data.documents import PLAIN, Assembler, Document, Spoken
from accordion.data.tables import require_columns
from accordion.data.tokenizers.audio_training import read_pcm
from accordion.data.tokenizers.text import Dropout
from accordion.data.tokenizers.vision import quantize
from accordion.data.tokenizers.vision_training import read_clips, read_png
from accordion.data.voices import Voices
from accordion.errors import DataError

CLIPS = 32  # pictures or clips read at once
ALIKE = 8  # clips of speech encoded together
GROUPS = 8  # row groups that are shuffled together
Item = TypeVar("Item")


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads for the length of the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rows(corpus: Path, name: str, columns: list[str], split: str, rng: random.Random | None = None) -> Iterator[Any]:
    """The rows of one split as named tuples, in stored order or shuffled by `rng`.

    Shuffled means: row groups in random order, and the rows of `GROUPS` of them at a time among each other.
    """
    path = corpus / f"{name}.parquet"
    if not path.is_file():
        raise DataError(f"{path}: missing; run the ingest stage again")
    with pq.ParquetFile(path) as file:
        require_columns(path, [*columns, "split"], file.schema_arrow.names)
        groups = list(range(file.num_row_groups))
        if rng is not None:
            rng.shuffle(groups)
        for some in _together(groups, 1 if rng is None else GROUPS):
            table = file.read_row_groups(some, columns=[*columns, "split"]).to_pandas()
            found = list(table[table["split"] == split].itertuples())
            if rng is not None:
                rng.shuffle(found)
            yield from found


def texts(
    corpus: Path, split: str, assembler: Assembler, dropout: Dropout | None = None, rng: random.Random | None = None
) -> Iterator[Document]:
    """Each text as one document, or several if it is longer than a sequence."""
    for row in rows(corpus, "text", ["id", "text", "weight"], split, rng):
        yield from (replace(document, weight=row.weight) for document in assembler.texts(row.text, dropout))


def images(
    corpus: Path, split: str, assembler: Assembler, rng: random.Random | None = None, *,
    understanding: bool = False, drop: float = 0.0,
) -> Iterator[Document]:  # fmt: skip
    """Both directions of each image: caption -> image and image -> caption.

    Args:
        understanding: the image that comes before its caption is given as features, not as what is generated.
        drop: chance, with an `rng`, that an image after its caption has none: what guidance compares with.
    """
    size = assembler.vision.config.image_size
    found = rows(corpus, "images", ["id", "png", "caption", "weight"], split, rng)
    pictures = ((row, read_png(row.png, str(row.id), size)[None]) for row in found)
    for row, pixels, bits, latent in _encode(pictures, assembler):
        drawn = assembler.image(_kept(row.caption, drop, rng), bits, latent, image_first=False)
        seen = (
            assembler.image_seen(row.caption, pixels, latent)
            if understanding
            else assembler.image(row.caption, bits, latent, image_first=True)
        )
        yield from (replace(document, weight=row.weight) for document in (drawn, seen))


def videos(
    corpus: Path, split: str, assembler: Assembler, rng: random.Random | None = None, *,
    understanding: bool = False, drop: float = 0.0,
) -> Iterator[Document]:  # fmt: skip
    """Each whole clip of each video after its caption; with `understanding` also before it, as features."""
    config = assembler.vision.config
    found = rows(corpus, "video", ["id", "frames", "n", "height", "width", "caption", "weight"], split, rng)
    clips = ((row, clip) for row in found for clip in read_clips(row, config.image_size, config.frames))
    for row, pixels, bits, latent in _encode(clips, assembler):
        both = [assembler.video(_kept(row.caption, drop, rng), bits, latent)]
        if understanding:
            both.append(assembler.video_seen(row.caption, pixels, latent))
        yield from (replace(document, weight=row.weight) for document in both)


def _kept(caption: str, drop: float, rng: random.Random | None) -> str:
    """The caption, or with chance `drop` none."""
    return "" if rng is not None and drop and rng.random() < drop else caption


@torch.no_grad()
def _encode(
    clips: Iterable[tuple[Any, Tensor]], assembler: Assembler
) -> Iterator[tuple[Any, Tensor, list[Tensor], Tensor]]:
    """Row, the uint8 clip (T,3,H,W) itself, its bits (1,T,h,h,D) by scale and its latent (1,T,side,side,D)."""
    for some in _together(clips, CLIPS):
        latent = assembler.vision.latent(torch.stack([clip for _, clip in some]).float() / 255)
        scales = quantize(latent, assembler.vision.config.scales)
        for index, (row, pixels) in enumerate(some):
            yield row, pixels, [grid[index : index + 1] for grid in scales], latent[index : index + 1]


def speech(corpus: Path, split: str, assembler: Assembler, voices: Voices | None) -> Iterator[Document]:
    """Both directions of each clip: transcript -> audio, in its speaker's voice, and audio -> transcript.

    Args:
        voices: gives the voices; None: no document has one.
    """

    def given() -> Iterator[tuple[tuple[Any, Spoken], Tensor]]:
        for row, pcm in _clips(corpus, split, assembler, None):
            yield (row, PLAIN if voices is None else voices.given(str(row.id), row.speaker, pcm)), pcm

    for (row, voice), codes in _encode_speech(given(), assembler):
        both = assembler.spoken(row.transcript, codes, voice), assembler.heard(row.transcript, codes)
        yield from (replace(document, weight=row.weight) for document in both)


def repeated_speech(
    corpus: Path, split: str, assembler: Assembler, voices: Voices | None, config: PackConfig, rng: random.Random
) -> Iterator[Document]:
    """The clips without end, shuffled anew in each round, in either direction, and never twice the same codes.

    Each time a clip is played at one of `audio_speeds`, begins up to one frame later and is up to `audio_gain` times
    quieter, so that other samples share a frame and are coded anew; a few minutes of speech would otherwise be learnt
    by heart. Who is played at another speed is another speaker (speed perturbation, Ko et al. 2015; as new speakers,
    Yamamoto et al. 2019), so that words and language do not tell the voice.
    """
    rate, frame = assembler.audio.config.sample_rate, assembler.audio.config.frame_samples

    def varied() -> Iterator[tuple[tuple[Any, Spoken | None], Tensor]]:
        for row, recorded in _clips(corpus, split, assembler, rng):
            speed = rng.choice(config.audio_speeds)
            pcm = at_speed(recorded, rate, speed)
            moved = pad(pcm * rng.uniform(config.audio_gain, 1.0), (rng.randrange(frame), 0))
            audio_first = rng.random() < 0.5
            voice = PLAIN
            if voices is not None:
                speaker = f"{row.speaker} x {speed:g}" if row.speaker else ""
                voice = voices.given(f"{row.id} x {speed:g}", speaker, pcm)
            yield (row, None if audio_first else voice), moved

    while True:
        heard = 0
        for (row, voice), codes in _encode_speech(varied(), assembler):
            heard += 1
            if voice is None:
                document = assembler.heard(row.transcript, codes)
            else:
                document = assembler.spoken(row.transcript, codes, voice)
            yield replace(document, weight=row.weight)
        if not heard:
            return


def at_speed(pcm: Tensor, rate: int, speed: float) -> Tensor:
    """Samples (n,) at `rate` played `speed` times as fast, pitch and all: (about n / speed,)."""
    return torch.from_numpy(media.resample(pcm.numpy(), round(rate * speed), rate))


def _encode_speech(clips: Iterable[tuple[Item, Tensor]], assembler: Assembler) -> Iterator[tuple[Item, Tensor]]:
    """What came with each clip (n,), and the clip's codes (frames,Q).

    Clips of like length are encoded together, in one thread: a step for a few seconds of sound is too little to share.
    """
    for some in _together(clips, CLIPS):
        by_length = sorted(range(len(some)), key=lambda place: len(some[place][1]))
        codes: dict[int, Tensor] = {}
        with torch_threads(1):
            for places in _together(by_length, ALIKE):
                found = assembler.audio.encode_batch([some[place][1] for place in places])
                codes.update(zip(places, found, strict=True))
        yield from ((about, codes[place]) for place, (about, _) in enumerate(some))


def _clips(corpus: Path, split: str, assembler: Assembler, rng: random.Random | None) -> Iterator[tuple[Any, Tensor]]:
    """Row and PCM (n,) of each clip."""
    rate = assembler.audio.config.sample_rate
    for row in rows(corpus, "audio", ["id", "pcm", "rate", "transcript", "speaker", "weight"], split, rng):
        yield row, read_pcm(row.pcm, int(row.rate), str(row.id), rate)


def _together(items: Iterable[Item], count: int) -> Iterator[list[Item]]:
    """The items in lists of `count`; the last may be shorter."""
    source = iter(items)
    while some := list(islice(source, count)):
        yield some
