"""Stage pack: the corpus as tokenized documents of four modalities, packed into sequences of one length.

Documents (BOS … EOS) are whole, or pieces of a text too long for a sequence. Each is laid into the open
sequence with the least room that still holds it (best fit), in a shuffled order fixed by the seed.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

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

MEDIA = ("image", "video", "audio")


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
    """Every document of a split; training media are repeated or cut to their share of the positions."""
    media = {
        "image": _images(corpus, split, assembler),
        "video": _videos(corpus, split, assembler),
        "audio": _audio(corpus, split, assembler),
    }
    passes = config.passes if split == "train" else 1
    dropout = Dropout(config.dropout, config.seed) if split == "train" and config.dropout else None
    written = [
        piece for _ in range(passes) for piece in _texts(corpus, split, assembler, dropout, random.Random(config.seed))
    ]
    if split != "train":
        return written + [document for name in MEDIA for document in media[name]]
    total = config.positions
    documents = _take(written, round(total * config.shares["text"]), random.Random(config.seed))
    for name in MEDIA:
        if not media[name]:
            raise DataError(f"{corpus}: no training documents of modality {name}; check its parquet file")
        documents += _repeat(media[name], round(total * config.shares[name]), random.Random(config.seed))
    return documents


def _take(documents: list[Document], positions: int, rng: random.Random) -> list[Document]:
    """A random part of the documents of about `positions` in all (all of them if there are fewer)."""
    order = rng.sample(documents, len(documents))
    taken, length = [], 0
    for document in order:
        if length >= positions:
            break
        taken.append(document)
        length += document.length
    return taken


def _repeat(documents: list[Document], positions: int, rng: random.Random) -> list[Document]:
    """The documents, shuffled anew in each round, again and again until they fill `positions`."""
    taken: list[Document] = []
    length = 0
    while length < positions:
        part = _take(documents, positions - length, rng)
        taken += part
        length += sum(document.length for document in part)
    return taken


def _texts(
    corpus: Path, split: str, assembler: Assembler, dropout: Dropout | None, rng: random.Random
) -> Iterator[Document]:
    rows = _rows(corpus, "text", ["id", "text"], split)
    rng.shuffle(rows)
    for row in progress(rows, f"pack {split} text", unit="texts"):
        yield from assembler.texts(row.text, dropout)


def _images(corpus: Path, split: str, assembler: Assembler) -> list[Document]:
    """Both directions of each image: caption -> image and image -> caption."""
    rows = _rows(corpus, "images", ["id", "png", "caption"], split)
    size = assembler.vision.config.image_size
    pixels = [read_png(row.png, str(row.id), size) for row in rows]
    documents = []
    for row, picture in progress(list(zip(rows, pixels, strict=True)), f"pack {split} images", unit="images"):
        bits = assembler.vision.encode(picture[None, None].float() / 255)
        documents += [assembler.image(row.caption, bits, image_first=first) for first in (False, True)]
    return documents


def _videos(corpus: Path, split: str, assembler: Assembler) -> list[Document]:
    rows = _rows(corpus, "video", ["id", "frames", "n", "height", "width", "caption"], split)
    config = assembler.vision.config
    documents = []
    for row in progress(rows, f"pack {split} video", unit="clips"):
        for clip in read_clips(row, config.image_size, config.frames):
            documents.append(assembler.video(row.caption, assembler.vision.encode(clip[None].float() / 255)))
    return documents


def _audio(corpus: Path, split: str, assembler: Assembler) -> list[Document]:
    """Both directions of each clip: transcript -> audio and audio -> transcript."""
    rows = _rows(corpus, "audio", ["id", "pcm", "rate", "transcript"], split)
    documents = []
    for row in progress(rows, f"pack {split} audio", unit="clips"):
        pcm = read_pcm(row.pcm, int(row.rate), str(row.id), assembler.audio.config.sample_rate)
        codes = assembler.audio.encode(pcm)
        documents += [assembler.speech(row.transcript, codes, audio_first=first) for first in (False, True)]
    return documents


def _rows(corpus: Path, name: str, columns: list[str], split: str) -> list[Any]:
    path = corpus / f"{name}.parquet"
    if not path.is_file():
        raise DataError(f"{path}: missing; run the ingest stage again")
    table = pd.read_parquet(path, columns=[*columns, "split"])
    return list(table[table["split"] == split].itertuples())
