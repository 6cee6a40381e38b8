"""Stage pack: the corpus as tokenized documents of four modalities, packed into sequences of one length.

Documents (BOS … EOS) are whole, or pieces of a text too long for a sequence. Each is laid into the open
sequence with the least room that still holds it (best fit), in a shuffled order fixed by the seed.
"""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from accordion.config.data import PackConfig
from accordion.data.documents import Assembler, Document
from accordion.data.shards import write_meta, write_split
from accordion.data.tokenizers.audio import AudioTokenizer
from accordion.data.tokenizers.audio_training import read_pcm
from accordion.data.tokenizers.text import Dropout, TextTokenizer
from accordion.data.tokenizers.vision import VisionTokenizer
from accordion.data.tokenizers.vision_training import read_clips, read_png
from accordion.errors import DataError
from accordion.observe import progress, say

Kind = Literal["image", "video", "audio"]
_CLIPS = 32  # encoded at once


def pack(config: PackConfig, *, out: Path, corpus: Path, text: Path, vision: Path, audio: Path) -> dict[str, Any]:
    """Tokenize and pack both splits of `corpus` with the tokenizers in `text`, `vision` and `audio`.

    Returns:
        for each split: sequences, documents and positions by modality, share of padding.
    """
    tokenizers = TextTokenizer.load(text), VisionTokenizer.load(vision), AudioTokenizer.load(audio)
    assembler = Assembler(*tokenizers, sequence=config.sequence)
    metrics = {}
    for split in ("train", "val"):
        documents = _split_documents(config, corpus, split, assembler)
        sequences = best_fit([document.length for document in documents], config.sequence)
        random.Random(config.seed).shuffle(sequences)
        metrics[split] = write_split(out / split, documents, sequences, assembler)
        say(f"pack {split}: {metrics[split]}")
    write_meta(out, assembler, metrics)
    return metrics


def best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Put items into bins of `capacity`, each into the fullest bin that still holds it, longest first.

    Returns:
        for each bin the indices of its items.
    """
    bins: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        need = lengths[index]
        room = next((room for room in range(need, capacity + 1) if by_room[room]), None)
        if room is None:
            bins.append([index])
            by_room[capacity - need].append(len(bins) - 1)
        else:
            target = by_room[room].pop()
            bins[target].append(index)
            by_room[room - need].append(target)
    return bins


def _split_documents(config: PackConfig, corpus: Path, split: str, assembler: Assembler) -> list[Document]:
    """Every document of a split; training documents are cut or repeated to their share of the positions."""
    images, videos = _images(corpus, split, assembler), _videos(corpus, split, assembler)
    clips = _clips(corpus, split, assembler)
    found: dict[Kind, int] = {"image": len(images), "video": len(videos), "audio": len(clips)}
    for kind, count in found.items():
        if not count:
            raise DataError(f"{corpus}: no {split} documents of modality {kind}; check its parquet file")
    if split != "train":
        return [*_texts(corpus, split, assembler, None), *images, *videos, *_speech(clips, assembler)]
    rng = random.Random(config.seed)
    dropout = Dropout(config.dropout, config.seed) if config.dropout else None
    passes = (document for _ in range(config.passes) for document in _texts(corpus, split, assembler, dropout, rng))
    sources: dict[str, Iterator[Document]] = {
        "text": passes,
        "image": _rounds(images, rng),
        "video": _rounds(videos, rng),
        "audio": _speech_rounds(clips, assembler, config.audio_gain, rng),
    }
    return [
        document
        for kind, documents in sources.items()
        for document in _take(documents, round(config.positions * config.shares[kind]))  # type: ignore[index]
    ]


def _take(documents: Iterable[Document], positions: int) -> list[Document]:
    """The first documents, until they fill `positions` (all if they do not)."""
    taken: list[Document] = []
    length = 0
    for document in documents:
        if length >= positions:
            break
        taken.append(document)
        length += document.length
    return taken


def _rounds(documents: list[Document], rng: random.Random) -> Iterator[Document]:
    """The documents without end, shuffled anew in each round."""
    while True:
        yield from rng.sample(documents, len(documents))


def _texts(
    corpus: Path, split: str, assembler: Assembler, dropout: Dropout | None, rng: random.Random | None = None
) -> Iterator[Document]:
    """The texts, as they are needed; in the order of the corpus, or shuffled by `rng`."""
    rows = _rows(corpus, "text", ["id", "text"], split)
    if rng is not None:
        rng.shuffle(rows)
    for row in progress(rows, f"pack {split} text", unit="texts"):
        yield from assembler.texts(row.text, dropout)


def _images(corpus: Path, split: str, assembler: Assembler) -> list[Document]:
    """Both directions of each image: caption -> image and image -> caption."""
    rows = _rows(corpus, "images", ["id", "png", "caption"], split)
    size = assembler.vision.config.image_size
    pictures = [read_png(row.png, str(row.id), size)[None] for row in rows]
    documents = []
    for row, bits in zip(rows, _encode(pictures, assembler, f"pack {split} images"), strict=True):
        documents += [assembler.image(row.caption, bits, image_first=first) for first in (False, True)]
    return documents


def _videos(corpus: Path, split: str, assembler: Assembler) -> list[Document]:
    rows = _rows(corpus, "video", ["id", "frames", "n", "height", "width", "caption"], split)
    config = assembler.vision.config
    clips = [(row.caption, clip) for row in rows for clip in read_clips(row, config.image_size, config.frames)]
    encoded = _encode([clip for _, clip in clips], assembler, f"pack {split} video")
    return [assembler.video(caption, bits) for (caption, _), bits in zip(clips, encoded, strict=True)]


def _encode(clips: list[Tensor], assembler: Assembler, label: str) -> Iterator[list[Tensor]]:
    """The bits (1,T,h,h,D) by scale of each uint8 clip (T,3,H,W)."""
    for start in progress(range(0, len(clips), _CLIPS), label, unit="batches"):
        together = torch.stack(clips[start : start + _CLIPS]).float() / 255
        scales = assembler.vision.encode(together)
        for index in range(len(together)):
            yield [grid[index : index + 1] for grid in scales]


def _clips(corpus: Path, split: str, assembler: Assembler) -> list[tuple[str, Tensor]]:
    """Transcript and PCM (n,) of each clip."""
    rows = _rows(corpus, "audio", ["id", "pcm", "rate", "transcript"], split)
    rate = assembler.audio.config.sample_rate
    return [(row.transcript, read_pcm(row.pcm, int(row.rate), str(row.id), rate)) for row in rows]


def _speech(clips: list[tuple[str, Tensor]], assembler: Assembler) -> Iterator[Document]:
    """Both directions of each clip: transcript -> audio and audio -> transcript."""
    for transcript, pcm in progress(clips, "pack audio", unit="clips"):
        codes = assembler.audio.encode(pcm)
        yield from (assembler.speech(transcript, codes, audio_first=first) for first in (False, True))


def _speech_rounds(
    clips: list[tuple[str, Tensor]], assembler: Assembler, gain: float, rng: random.Random
) -> Iterator[Document]:
    """The clips without end, shuffled anew in each round, in either direction, and never twice the same codes.

    Each time a clip begins up to one frame later and is up to `gain` times quieter, so that a codec whose frames
    stand alone cuts and codes it anew; a few minutes of speech would otherwise be learnt by heart.
    """
    frame = assembler.audio.config.frame_samples
    while True:
        for transcript, pcm in rng.sample(clips, len(clips)):
            heard = torch.nn.functional.pad(pcm * rng.uniform(gain, 1.0), (rng.randrange(frame), 0))
            yield assembler.speech(transcript, assembler.audio.encode(heard), audio_first=rng.random() < 0.5)


def _rows(corpus: Path, name: str, columns: list[str], split: str) -> list[Any]:
    path = corpus / f"{name}.parquet"
    if not path.is_file():
        raise DataError(f"{path}: missing; run the ingest stage again")
    table = pd.read_parquet(path, columns=[*columns, "split"])
    return list(table[table["split"] == split].itertuples())
