"""Stage pack: the corpus as tokenized documents of four modalities, packed into sequences of one length.

Documents (BOS … EOS) are whole, or pieces of a text too long for a sequence. They come one by one and are laid into
the open sequence with the least room that still holds them; few sequences are open at once, so memory does not grow
with the corpus. Sequences go to a dataset for each kind of document, and for each weight of sources within it; the
loader blends those of training: a medium is encoded once and read as often as its share asks for. What a medium leaves
of a sequence, text fills.
"""

import random
from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from accordion.config.data import PackConfig
from accordion.data.batch import MODALITIES, PAD, TABLES, VOICE_SIZE, Columns, empty_columns
from accordion.data.documents import Assembler, Document, Pool
from accordion.data.encode import images, repeated_speech, speech, texts, torch_threads, videos
from accordion.data.shards import ShardWriter, record_type, write_meta
from accordion.data.tokenizers.audio import AudioTokenizer
from accordion.data.tokenizers.text import Dropout, TextTokenizer
from accordion.data.tokenizers.vision import VisionTokenizer
from accordion.data.voices import Voices
from accordion.errors import DataError
from accordion.observe import progress, say

FILLER = "text"  # the kind that fills what others leave
LEAST_FILL = 32  # positions of a gap that a longer text is cut for
# Channels of a vision tokenizer from which its convolutions are shared among threads. At 32 two threads gain nothing on
# free cores, and beside another busy process they take three times as long as one.
WIDE = 64


def pack(config: PackConfig, *, out: Path, corpus: Path, text: Path, vision: Path, audio: Path) -> dict[str, Any]:
    """Tokenize and pack both splits of `corpus` with the tokenizers in `text`, `vision` and `audio`.

    With `config.long_sequence` the training documents are packed once more, into sequences of that length.

    Returns:
        for each split: sequences, documents and positions by modality, share of padding; the same and the
        weight for each of its datasets.
    """
    tokenizers = TextTokenizer.load(text), VisionTokenizer.load(vision), AudioTokenizer.load(audio)
    threads = torch.get_num_threads() if tokenizers[1].config.channels >= WIDE else 1
    splits, metrics = {}, {}
    for split, settings in config.splits.items():
        assembler = Assembler(*tokenizers, sequence=settings.sequence)
        documents = _documents(settings, corpus, split, assembler)
        with torch_threads(threads):
            tallies = _write_split(settings, out / split, documents, assembler)
        whole = sum(tallies.values(), Tally())
        if split != "val":
            weights = blend_weights(dict(config.shares.items()), tallies)
        else:
            weights = {pool: sum(tally.shards) / sum(whole.shards) for pool, tally in tallies.items()}
        datasets = {pool.name: tally.to_json() | {"weight": weights[pool]} for pool, tally in tallies.items()}
        metrics[split] = whole.to_json() | {"datasets": datasets}
        stored = {pool.name: datasets[pool.name] | {"shards": tally.shards} for pool, tally in tallies.items()}
        splits[split] = whole.to_json() | {"sequence": settings.sequence, "datasets": stored}
        say(f"pack {split}: {metrics[split]}")
    assembler = Assembler(*tokenizers, sequence=config.sequence)
    write_meta(
        out,
        _facts(assembler, config),
        record_type(config.sequence, assembler.bits, assembler.levels),
        splits,
    )
    return metrics


def _facts(assembler: Assembler, config: PackConfig) -> dict[str, Any]:
    vision, audio = assembler.vision.config, assembler.audio.config
    return {
        "sequence": assembler.sequence,
        "text_vocabulary": assembler.text.vocabulary,
        "bits": vision.bits,
        "scales": list(vision.scales),
        "frames": vision.frames,
        "understanding": config.understanding,
        "voice_size": VOICE_SIZE if config.voices else 0,
        "audio_levels": audio.levels,
        "audio_codebook": audio.codebook,
    }


def _documents(config: PackConfig, corpus: Path, split: str, assembler: Assembler) -> Iterator[Document]:
    """Every document of a split, kinds interleaved; of the training splits at most each kind's share."""
    if split == "val":
        streams = {
            "text": texts(corpus, split, assembler),
            "image": images(corpus, split, assembler, understanding=config.understanding),
            "video": videos(corpus, split, assembler, understanding=config.understanding),
            "audio": speech(corpus, split, assembler, _voices(config, split, assembler)),
        }
        return interleave(streams, dict.fromkeys(streams, 1.0), None, where=f"{corpus}, split {split}")
    split = "train"
    # a generator of its own for each stream: how far one is read must not change another
    rng = {kind: random.Random(f"{config.seed}/{kind}") for kind in config.shares}
    dropout = Dropout(config.dropout, config.seed) if config.dropout else None
    seeing: dict[str, Any] = {"understanding": config.understanding, "drop": config.drop_captions}
    streams = {
        "text": (text for _ in range(config.passes) for text in texts(corpus, split, assembler, dropout, rng["text"])),
        "image": images(corpus, split, assembler, rng["image"], **seeing),
        "video": videos(corpus, split, assembler, rng["video"], **seeing),
        "audio": repeated_speech(corpus, split, assembler, _voices(config, split, assembler), config, rng["audio"]),
    }
    shares: dict[str, float] = {kind: share for kind, share in config.shares.items() if share > 0}
    wanted = {kind: streams[kind] for kind in shares}
    return interleave(wanted, shares, config.positions, where=f"{corpus}, split {split}")


def _voices(config: PackConfig, split: str, assembler: Assembler) -> Voices | None:
    """The voices that spoken documents of a split are given; of held-out ones all are told."""
    if not config.voices:
        return None
    drop = 0.0 if split == "val" else config.drop_voices
    return Voices(assembler.audio.voices, drop, random.Random(f"{config.seed}/voices/{split}"))


def interleave(
    streams: Mapping[str, Iterator[Document]], shares: Mapping[str, float], positions: int | None, *, where: str
) -> Iterator[Document]:
    """Documents of all streams, next always one of the kind that is furthest behind its share.

    A kind ends with its stream, or when it has filled its share of `positions`.

    Raises:
        DataError: a stream is empty.
    """
    given = dict.fromkeys(streams, 0)
    running = dict(streams)
    while running:
        kind = min(running, key=lambda name: given[name] / shares[name])
        full = positions is not None and given[kind] >= positions * shares[kind]
        document = None if full else next(running[kind], None)
        if document is None:
            del running[kind]
            if not given[kind]:
                raise DataError(f"{where}: no documents of modality {kind}; check its parquet file")
            continue
        given[kind] += document.length
        yield document


class Sequence(NamedTuple):
    """A full sequence: its dataset and its documents, in order."""

    dataset: Pool
    documents: list[Document]


class Packer:
    """Sequences being filled: each document goes into the one of its dataset with the least room that still holds it.

    What a closed sequence leaves, `FILLER` documents fill, cut to its length.

    Args:
        capacity: positions of a sequence.
        window: sequences open at once; beyond it the fullest is closed.
        cut: how to cut a `FILLER` document at a length; None: what is left stays empty.
    """

    def __init__(
        self, capacity: int, window: int, cut: Callable[[Document, int], tuple[Document, Document]] | None = None
    ) -> None:
        self.capacity, self.window, self.cut = capacity, window, cut
        self._rooms: dict[Pool, list[tuple[int, int]]] = {}  # dataset -> sorted (room, number of the sequence)
        self._open: dict[int, list[Document]] = {}
        self._patches: Counter[int] = Counter()  # rows of the tables of patches that an open sequence has filled
        self._opened = 0
        self._gaps: deque[tuple[Pool, list[Document], int]] = deque()  # closed, with its room, until text has come

    def add(self, document: Document, dataset: Pool) -> Iterator[Sequence]:
        """Lay in one document; yields what that closes."""
        if document.kind == FILLER and self._gaps:
            yield from self._fill(document, dataset)
            return
        rooms = self._rooms.setdefault(dataset, [])
        place = bisect_left(rooms, (document.length, 0))
        while place < len(rooms) and self._patches[rooms[place][1]] + document.patches > self.capacity:
            place += 1
        if place < len(rooms):
            room, number = rooms.pop(place)
        else:
            if len(self._open) == self.window:
                yield from self._close_fullest()
            room, number = self.capacity, self._opened
            self._opened += 1
            self._open[number] = []
        self._open[number].append(document)
        self._patches[number] += document.patches
        if room == document.length:
            del self._patches[number]
            yield Sequence(dataset, self._open.pop(number))
        else:
            insort(rooms, (room - document.length, number))

    def _fill(self, document: Document, dataset: Pool) -> Iterator[Sequence]:
        """Put a text into the gap that waits longest; what does not fit is a text of its own."""
        owner, members, room = self._gaps.popleft()
        rest = None
        if document.length > room:
            assert self.cut is not None  # there are no gaps without
            document, rest = self.cut(document, room)
        members.append(document)
        if room - document.length < LEAST_FILL:
            yield Sequence(owner, members)
        else:
            self._gaps.appendleft((owner, members, room - document.length))
        if rest is not None:
            yield from self.add(rest, dataset)

    def _close_fullest(self) -> Iterator[Sequence]:
        owner = min((name for name, rooms in self._rooms.items() if rooms), key=lambda name: self._rooms[name][0])
        room, number = self._rooms[owner].pop(0)
        members = self._open.pop(number)
        del self._patches[number]
        if self.cut is not None and room >= LEAST_FILL and len(self._gaps) < self.window:
            self._gaps.append((owner, members, room))
        else:
            yield Sequence(owner, members)

    def rest(self) -> Iterator[Sequence]:
        """Close everything that is open, fullest first; no text comes any more."""
        self.cut = None
        yield from (Sequence(owner, members) for owner, members, _ in self._gaps)
        self._gaps.clear()
        while self._open:
            yield from self._close_fullest()


def lay_out(documents: list[Document], capacity: int, bits: int, levels: int) -> Columns:
    """The documents of one sequence as columns (S,...): documents numbered, groups counted on, padded to the end.

    The tables have as many rows as that many positions can have.
    """
    packed = empty_columns((capacity,), bits, levels)
    start = groups = 0
    used = dict.fromkeys(TABLES.values(), 0)  # rows of the tables, by the column that points to them
    for number, document in enumerate(documents):
        stop = start + document.length
        for name, values in document.columns.items():
            first = used[TABLES[name]] if name in TABLES else start
            packed[name][first : first + len(values)] = values
        for name, rows in (("patch", document.patches), ("voice", document.voices)):
            pointing = packed[name][start:stop]
            pointing[pointing >= 0] += used[name]
            used[name] += rows
        packed["document"][start:stop] = number
        packed["group"][start:stop] += groups
        groups = int(packed["group"][stop - 1]) + 1
        start = stop
    return packed


@dataclass
class Tally:
    """What a dataset holds.

    Attributes:
        pools: positions by what documents they are of (a caption counts for its image).
        modalities: positions by modality, padding included.
        documents: by kind.
        shards: sequences in each file.
    """

    pools: Counter[Pool] = field(default_factory=Counter)
    modalities: Counter[str] = field(default_factory=Counter)
    documents: Counter[str] = field(default_factory=Counter)
    shards: list[int] = field(default_factory=list)

    def count(self, documents: list[Document], columns: Columns) -> None:
        """Add one sequence."""
        for document in documents:
            self.pools[document.pool] += document.length
            self.documents[document.kind] += 1
        held = np.bincount(columns["modality"], minlength=len(MODALITIES))
        self.modalities.update(dict(zip(MODALITIES, held.tolist(), strict=True)))

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.pools + other.pools,
            self.modalities + other.modalities,
            self.documents + other.documents,
            self.shards + other.shards,
        )

    def to_json(self) -> dict[str, Any]:
        """Sequences, positions by modality, documents by kind, share of padding."""
        return {
            "sequences": sum(self.shards),
            "positions": {name: self.modalities[name] for name in MODALITIES[1:]},
            "documents": dict(sorted(self.documents.items())),
            "padding_share": self.modalities[MODALITIES[PAD]] / self.modalities.total(),
        }


def _write_split(
    config: PackConfig, folder: Path, documents: Iterator[Document], assembler: Assembler
) -> dict[Pool, Tally]:
    """Pack and write the documents of one split; what each of its datasets holds."""
    layout = record_type(config.sequence, assembler.bits, assembler.levels)
    training = folder.name != "val"
    # held-out texts stay whole: what is cut off would be judged without its context
    packer = Packer(config.sequence, config.window, assembler.cut if training else None)
    tallies: dict[Pool, Tally] = {}
    with ExitStack() as files:
        writers: dict[Pool, ShardWriter] = {}

        def write(dataset: Pool, members: list[Document]) -> None:
            if dataset not in writers:
                writer = ShardWriter(folder / dataset.name, layout, config.shard_sequences)
                writers[dataset] = files.enter_context(writer)
                tallies[dataset] = Tally(shards=writer.counts)
            columns = lay_out(members, config.sequence, assembler.bits, assembler.levels)
            writers[dataset].add(columns)
            tallies[dataset].count(members, columns)

        for document in progress(documents, f"pack {folder.name}", unit="documents"):
            for closed in packer.add(document, document.pool if training else Pool(document.kind)):
                write(*closed)
        for closed in packer.rest():
            write(*closed)
    return dict(sorted(tallies.items()))


def blend_weights(shares: Mapping[str, float], tallies: Mapping[Pool, Tally]) -> dict[Pool, float]:
    """The share of sequences to draw from each dataset, so that kinds of document get their share of the positions.

    A kind's share is divided among its pools by positions times weight. With m[d][p] the mean positions of pool p in a
    sequence of dataset d: a pool of media needs share[p] / m[p][p] sequences, and the datasets of text give what the
    fillers of media have not given yet.

    Raises:
        DataError: the fillers alone are more text than its share.
    """
    mean = {
        name: {pool: held / sum(tally.shards) for pool, held in tally.pools.items()} for name, tally in tallies.items()
    }
    wanted = _pool_shares(shares, sum((tally.pools for tally in tallies.values()), Counter()))
    needed = {pool: wanted[pool] / mean[pool][pool] for pool in tallies if pool.kind != FILLER}
    if texts := [pool for pool in tallies if pool.kind == FILLER]:
        given: Counter[Pool] = Counter()
        for name, count in needed.items():
            given.update({pool: count * held for pool, held in mean[name].items() if pool.kind == FILLER})
        filled = sum(given.values())
        if filled >= shares[FILLER]:
            raise DataError(
                f"pack.shares.{FILLER}: {shares[FILLER]:g}, but the text that fills sequences of media is already "
                f"{filled:.3f} of the positions; raise it, or lengthen pack.sequence"
            )
        lacking = {pool: max(0.0, wanted[pool] - given[pool]) for pool in texts}  # a light pool may fill too often
        if not any(lacking.values()):
            lacking = {pool: wanted[pool] for pool in texts}
        scale = (shares[FILLER] - filled) / sum(lacking.values())
        needed |= {pool: scale * lacking[pool] / mean[pool][pool] for pool in texts}
    total = sum(needed.values())
    return {name: needed[name] / total for name in tallies}


def _pool_shares(shares: Mapping[str, float], held: Mapping[Pool, int]) -> dict[Pool, float]:
    """The share of the positions of each pool; `held`: positions that are stored."""
    weighed: Counter[str] = Counter()
    for pool, positions in held.items():
        weighed[pool.kind] += positions * pool.weight  # type: ignore[assignment]  # counts of any number
    return {pool: shares[pool.kind] * held[pool] * pool.weight / weighed[pool.kind] for pool in held}
