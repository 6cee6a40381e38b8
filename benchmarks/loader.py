"""Data loader: tokens/s against the model's consumption and other stores, waits in training, growth with the corpus.

The sequences are synthetic, in the shape of the smoke profile: text, with features that do not compress. Peers read
the same batches at random from the same records: columns as memory-mapped .npy files, Megatron-Core's indexed
dataset; WebDataset reads its tar in order, which is all it can. A peer that is not installed is named and left out.
Waits are measured in the smoke model's training, and in two processes at once that train the model of the smallest
profile (tests/workflows/tiny.yaml), each on its half of the batches. Gradients are not exchanged there, which would
only make the steps longer.
"""

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from accordion.config.data import AudioTokenizerConfig, PackConfig, VisionTokenizerConfig
from accordion.config.pretrain import model_config
from accordion.config.profile import Profile, load_profile
from accordion.data.batch import COLUMNS, TEXT, Batch, Columns, empty_columns
from accordion.data.loader import AHEAD, Order, ShardLoader, read_places
from accordion.data.shards import ShardWriter, decode, open_split, record_type, write_meta
from accordion.home import REPOSITORY
from accordion.observe import progress, say
from accordion.train.loop import Trainer
from benchmarks.harness import Row, paired

REPEATS = 5
SEQUENCES = 512  # of the corpus x1
READ = 64  # batches of one repeat
STEPS = 6  # training steps of one repeat
RANK_STEPS = 40  # training steps of a rank
SIZES = (1, 2, 4, 8)
TINY = REPOSITORY / "tests/workflows/tiny.yaml"
SEQUENCE, BITS, LEVELS = PackConfig().sequence, VisionTokenizerConfig().bits, AudioTokenizerConfig().levels
VOCABULARY = 2048
Reader = Callable[[list[int]], Batch]


def run(repeats: int) -> list[Row]:
    """Write the stores and measure."""
    folder = Path(tempfile.mkdtemp(prefix="accordion-loader-"))
    try:
        for size in SIZES:
            write(folder / f"x{size}", SEQUENCES * size)
        profile = load_profile("smoke")
        return [
            *consumption(folder / "x1", profile, repeats),
            ranks(folder / "x1", repeats),
            *peers(folder, profile.pretrain.batch, repeats),
            *growth(folder, profile.pretrain.batch, repeats),
            memory(folder, profile.pretrain.batch, repeats),
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sequences(count: int) -> Columns:
    """Text sequences as columns (count,S,...); the vision inputs, which text does not use, are noise."""
    rng = np.random.default_rng(0)
    columns = empty_columns((count, SEQUENCE), BITS, LEVELS)
    place = np.arange(SEQUENCE)
    columns["modality"][:], columns["document"][:], columns["group"][:] = TEXT, 0, place
    columns["position"][:] = place[:, None]
    columns["token"][:] = (rng.zipf(1.3, (count, SEQUENCE)) + 16) % VOCABULARY
    columns["target_token"][:, :-1] = columns["token"][:, 1:]
    columns["vision_input"][:] = rng.normal(size=columns["vision_input"].shape)
    return columns


def write(folder: Path, count: int) -> None:
    """A shard folder of `count` training sequences, written 256 at a time."""
    layout = record_type(SEQUENCE, BITS, LEVELS)
    with ShardWriter(folder / "train/text", layout, PackConfig().shard_sequences) as writer:
        for start in range(0, count, 256):
            columns = sequences(min(256, count - start))
            for row in range(len(columns["token"])):
                writer.add({name: values[row] for name, values in columns.items()})
    facts = {
        "sequence": SEQUENCE, "text_vocabulary": VOCABULARY, "bits": BITS, "scales": VisionTokenizerConfig().scales,
        "frames": VisionTokenizerConfig().frames, "audio_levels": LEVELS,
        "audio_codebook": AudioTokenizerConfig().codebook,
    }  # fmt: skip
    datasets = {"text": {"sequences": count, "weight": 1.0, "shards": writer.counts}}
    write_meta(folder, facts, layout, {"train": {"sequences": count, "positions": {}, "datasets": datasets}})


def consumption(shards: Path, profile: Profile, repeats: int) -> list[Row]:
    """Loader alone against training alone, and the waits of a training that reads through the loader."""
    config = profile.pretrain
    meta = json.loads((shards / "meta.json").read_text())
    tokens = config.batch * SEQUENCE
    with closing(ShardLoader(shards, "train", batch=config.batch, seed=0)) as loader:
        trainer = Trainer(config, model_config(config, meta), loader)
        waits: list[tuple[float, float]] = []

        def reading() -> dict[str, float]:
            clock = time.perf_counter()
            for number in range(READ):
                loader.read(number * config.batch)
            return {"tokens": READ * tokens / (time.perf_counter() - clock)}

        def training() -> dict[str, float]:
            before, waited = trainer.seconds, trainer.waited
            for _ in range(STEPS):
                trainer.step()
            seconds = trainer.seconds - before
            waits.append((trainer.waited - waited, seconds))
            return {"tokens": STEPS * tokens / seconds}

        ours, model = paired(reading, training, repeats=repeats, label="loader and training")["tokens"]
    waits = waits[-repeats:]
    return [
        Row(figure="loader against the smoke model", unit="tokens/s", ours="loader, one thread", peer="training",
            ours_values=ours, peer_values=model, aim="never the bottleneck"),
        Row(figure=f"waits in {STEPS} training steps", unit="s", ours="waits", peer="whole steps",
            ours_values=[max(wait, 1e-9) for wait, _ in waits], peer_values=[whole for _, whole in waits],
            aim="<= 0.02"),
    ]  # fmt: skip


_RANK = """
import json, sys
from contextlib import closing
from pathlib import Path
import torch
from accordion.config.pretrain import model_config
from accordion.config.profile import load_profile
from accordion.data.loader import ShardLoader
from accordion.train.loop import Trainer
torch.set_num_threads(1)
shards, profile, rank, ranks, steps = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
config = load_profile(profile).pretrain
with closing(ShardLoader(shards, "train", batch=config.batch, seed=0, rank=rank, ranks=ranks)) as loader:
    trainer = Trainer(config, model_config(config, json.loads((shards / "meta.json").read_text())), loader)
    for _ in range(steps):
        trainer.step()
print(json.dumps([trainer.waited, trainer.seconds]))
"""


def ranks(shards: Path, repeats: int, count: int = 2, steps: int = RANK_STEPS) -> Row:
    """Waits of `count` processes that train at once, each on its part of the batches; the first step's are in it."""
    command = [sys.executable, "-c", _RANK, str(shards), str(TINY)]
    waits, seconds = [], []
    for _ in progress(range(repeats), "ranks", total=repeats, unit="repeats"):
        running = [
            subprocess.Popen([*command, str(rank), str(count), str(steps)], stdout=subprocess.PIPE, text=True)
            for rank in range(count)
        ]
        found = [json.loads(each.communicate()[0]) for each in running]
        waits.append(max(1e-9, max(waited for waited, _ in found)))
        seconds.append(min(whole for _, whole in found))
    return Row(figure=f"waits in {steps} steps of the tiny model, {count} ranks", unit="s", ours="waits",
               peer="whole steps", ours_values=waits, peer_values=seconds, aim="<= 0.02")  # fmt: skip


def peers(folder: Path, batch: int, repeats: int) -> list[Row]:
    """Batches at random from our records, against the same records in other stores."""
    datasets = open_split(folder / "x1", "train")
    records = datasets["text"].read(range(SEQUENCES))
    layout = datasets["text"].layout

    def ours(rows: list[int]) -> Batch:
        return read_places(datasets, [("text", row) for row in rows])

    stores: dict[str, Reader] = {"memory-mapped .npy": mapped(folder / "npy", decode(records, layout))}
    if importlib.util.find_spec("megatron"):
        stores["Megatron-Core indexed"] = megatron(folder / "megatron", records, layout)
    if importlib.util.find_spec("webdataset"):
        stores["WebDataset, in order"] = webdataset(folder / "records.tar", records, layout)
    absent = [name for name in ("megatron", "webdataset", "litdata") if not importlib.util.find_spec(name)]
    if absent:
        say(f"not installed, left out: {', '.join(absent)}")
    rows = []
    for name, reader in stores.items():
        values = paired(timed(ours, batch), timed(reader, batch), repeats=repeats, label=name)["tokens"]
        rows.append(Row(figure="batches from a store", unit="tokens/s", ours="ArrayRecord", peer=name,
                        ours_values=values[0], peer_values=values[1]))  # fmt: skip
    with (
        closing(ShardLoader(folder / "x1", "train", batch=batch, seed=0)) as loader,
        closing(torch_loader(folder / "npy", batch)) as other,
    ):
        sides = [timed(following(source), batch) for source in (loader, other)]
        values = paired(*sides, repeats=repeats, label="torch DataLoader")["tokens"]
    rows.append(Row(figure="batches read ahead", unit="tokens/s", ours="ShardLoader, a thread",
                    peer="torch DataLoader over .npy, a process", ours_values=values[0],
                    peer_values=values[1]))  # fmt: skip
    return rows


class _Mapped(torch.utils.data.Dataset[Columns]):
    """Rows of memory-mapped columns."""

    def __init__(self, folder: Path) -> None:
        self.columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in COLUMNS}

    def __getitem__(self, row: int) -> Columns:
        return {name: values[row] for name, values in self.columns.items()}


def _collate(rows: list[Columns]) -> Batch:
    return Batch.from_columns({name: np.stack([row[name] for row in rows]) for name in COLUMNS})


def torch_loader(folder: Path, batch: int) -> Generator[Batch, None, None]:
    """Endless shuffled batches of torch's DataLoader, read ahead by one worker process."""
    source = iter(
        torch.utils.data.DataLoader(
            _Mapped(folder), batch, sampler=_Endless(SEQUENCES), num_workers=1, prefetch_factor=AHEAD,
            collate_fn=_collate, multiprocessing_context="fork",
        )
    )  # fmt: skip
    yield from source


class _Endless(torch.utils.data.Sampler[int]):
    """Every row in a new order in each of endless epochs."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng(0)
        while True:
            yield from rng.permutation(self.count).tolist()


def timed(reader: Reader, batch: int) -> Callable[[], dict[str, float]]:
    """Reads `READ` batches of rows drawn once, the same for every reader."""
    drawn = np.random.default_rng(0).integers(0, SEQUENCES, (READ, batch)).tolist()

    def once() -> dict[str, float]:
        clock = time.perf_counter()
        for rows in drawn:
            reader(rows)
        return {"tokens": READ * batch * SEQUENCE / (time.perf_counter() - clock)}

    return once


def following(source: Iterator[Batch]) -> Reader:
    """The next batch of a source that chooses its rows itself."""
    return lambda rows: next(source)


def mapped(folder: Path, columns: Columns) -> Reader:
    """One memory-mapped .npy file a column."""
    folder.mkdir()
    for name, values in columns.items():
        np.save(folder / f"{name}.npy", values)
    opened = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in COLUMNS}
    return lambda rows: Batch.from_columns({name: values[rows] for name, values in opened.items()})


def megatron(prefix: Path, records: list[bytes], layout: np.dtype) -> Reader:
    """Megatron-Core's indexed dataset. It has one dtype and no float16, so a record is stored as bytes."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint8)
    for record in records:
        builder.add_item(torch.frombuffer(bytearray(record), dtype=torch.uint8))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
    dataset = IndexedDataset(str(prefix))
    return lambda rows: Batch.from_columns(decode([dataset[row].tobytes() for row in rows], layout))


def webdataset(tar: Path, records: list[bytes], layout: np.dtype) -> Reader:
    """WebDataset: the next records of a tar that is read over and over."""
    from webdataset import TarWriter, WebDataset

    with TarWriter(str(tar)) as writer:
        for number, record in enumerate(records):
            writer.write({"__key__": f"{number:06}", "bin": record})
    source = iter(WebDataset(str(tar), shardshuffle=False).repeat())
    return lambda rows: Batch.from_columns(decode([next(source)["bin"] for _ in rows], layout))


def growth(folder: Path, batch: int, repeats: int) -> list[Row]:
    """Seconds of an epoch by size of the corpus, and the exponent of their growth."""

    def epoch(size: int) -> Callable[[], dict[str, float]]:
        datasets = open_split(folder / f"x{size}", "train")
        order = Order({"text": SEQUENCES * size}, {"text": 1.0}, 0)

        def once() -> dict[str, float]:
            clock = time.perf_counter()
            for start in range(0, SEQUENCES * size, batch):
                read_places(datasets, order.places(start, start + batch))
            return {"seconds": time.perf_counter() - clock}

        return once

    rows = []
    for size in SIZES[1:]:
        large, small = paired(epoch(size), epoch(1), repeats=repeats, label=f"epoch x{size}")["seconds"]
        exponent = np.median([math.log(a / b) for a, b in zip(large, small, strict=True)]) / math.log(size)
        rows.append(Row(figure=f"epoch of the corpus x{size}", unit="s", ours=f"x{size}", peer="x1",
                        ours_values=large, peer_values=small, aim=f"exponent 1; here {exponent:.2f}"))  # fmt: skip
    return rows


_EPOCH = """
import sys
from contextlib import closing
from pathlib import Path
from accordion.data.loader import ShardLoader
folder, batch, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
with closing(ShardLoader(folder, "train", batch=batch, seed=0)) as loader:
    next(loader)
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(count // batch):
        next(loader)
line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM:"))
print(int(line.split()[1]) * 1024)
"""


def memory(folder: Path, batch: int, repeats: int) -> Row:
    """Peak resident memory of a process that reads one epoch, by size of the corpus."""

    def peak(size: int) -> Callable[[], dict[str, float]]:
        command = [sys.executable, "-c", _EPOCH, str(folder / f"x{size}"), str(batch), str(SEQUENCES * size)]

        def once() -> dict[str, float]:
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
            return {"bytes": float(done.stdout)}

        return once

    large, small = paired(peak(SIZES[-1]), peak(1), repeats=min(repeats, 3), label="memory", warm_up=0)["bytes"]
    return Row(figure="peak memory of an epoch", unit="bytes", ours=f"x{SIZES[-1]}", peer="x1",
               ours_values=large, peer_values=small, aim="flat: <= 1.05")  # fmt: skip
