"""Training batches from shards: every dataset shuffled anew each epoch, blended by weight, read ahead of the model.

What stands at a global position depends on the seed, the datasets and that position alone: Grain computes it (an
index permutation for each epoch, a fixed interleaving by weight), nothing is drawn or stored. A batch is the next
`batch` positions, of which each rank reads its part; so one number is the whole state, on any number of ranks.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accordion.data.batch import Batch
from accordion.data.grain_quiet import grain
from accordion.data.shards import Dataset, chunks, decode, open_split
from accordion.errors import ConfigError, DataError

AHEAD = 4  # batches read before they are asked for
Place = tuple[str, int]  # dataset, index of the sequence in it


class Order:
    """Which sequence stands at each global position: an endless blend of endlessly repeated, shuffled datasets.

    Args:
        sizes: sequences of each dataset, by name.
        weights: share of the positions that each gets; those of weight 0 are left out.
        seed: of the shuffling.
    """

    def __init__(self, sizes: Mapping[str, int], weights: Mapping[str, float], seed: int) -> None:
        self.names = [name for name, weight in weights.items() if weight > 0]
        for name in self.names:
            if sizes[name] < 1:
                raise ConfigError(f"dataset {name}: weight {weights[name]:g}, but it holds no sequence")
        if not self.names:
            raise ConfigError("no dataset with a weight above 0; nothing to read")
        parts = [
            grain.MapDataset.range(sizes[name]).shuffle(seed=_seed(seed, name)).repeat(None) for name in self.names
        ]
        # a blend of one still goes through the mix, which then is the identity
        self._blend = grain.MapDataset.mix(
            [part.map(_Named(name)) for name, part in zip(self.names, parts, strict=True)],
            weights=[weights[name] for name in self.names],
        )

    def places(self, start: int, stop: int) -> list[Place]:
        """Dataset and index of the sequences at the positions `start` to `stop`, exclusive."""
        return [self._blend[position] for position in range(start, stop)]


class _Named:
    """Puts the dataset's name beside an index."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, row: int) -> Place:
        return self.name, int(row)


def _seed(seed: int, name: str) -> int:
    """A 31-bit seed of its own for each dataset; Grain adds the epoch to it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4]) >> 1


class ShardLoader:
    """An endless iterator over one rank's part of the training batches.

    `state` and `restore` carry the global position. Batches that were read ahead but not taken do not count. A
    damaged shard raises where its batch would have come. `close` ends the reading ahead.

    Args:
        folder: a shard folder.
        split: `train` or `val`.
        batch: sequences in a batch, over all ranks.
        seed: of the shuffling.
        rank, ranks: which part of each batch to read.
    """

    def __init__(self, folder: Path, split: str, *, batch: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        if batch < 1 or batch % ranks:
            raise ConfigError(f"batch: got {batch}; wants a multiple of the number of ranks, {ranks}, and at least 1")
        if not 0 <= rank < ranks:
            raise ConfigError(f"rank: got {rank}; wants 0 to {ranks - 1}")
        self.datasets = open_split(Path(folder), split)
        self.batch, self.seed, self.rank, self.ranks = batch, seed, rank, ranks
        sizes = {name: len(dataset) for name, dataset in self.datasets.items()}
        self.order = Order(sizes, {name: dataset.weight for name, dataset in self.datasets.items()}, seed)
        self.position = 0  # of the next batch's first sequence, over all ranks
        self._ahead: Any = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._ahead is None:
            source = grain.MapDataset.source(_Batches(self, self.position))
            options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
            self._ahead = iter(source.to_iter_dataset(options))
        batch: Batch = next(self._ahead)
        self.position += self.batch
        return batch

    def places(self, position: int) -> list[Place]:
        """The sequences of this rank's part of the batch that begins at `position`."""
        size = self.batch // self.ranks
        start = position + self.rank * size
        return self.order.places(start, start + size)

    def read(self, position: int) -> Batch:
        """This rank's part of the batch that begins at `position`."""
        batch = read_places(self.datasets, self.places(position))
        return batch.pin_memory() if torch.cuda.is_available() else batch

    def resize(self, batch: int) -> None:
        """Read batches of `batch` sequences from here on; the order of the sequences stays."""
        if batch == self.batch:
            return
        if batch < 1 or batch % self.ranks:
            raise ConfigError(f"batch: got {batch}; wants a multiple of the number of ranks, {self.ranks}")
        self.close()
        self.batch = batch

    def state(self) -> dict[str, Any]:
        """Where the next batch begins and what that position refers to, as plain values for a checkpoint."""
        return {"position": self.position, **self._identity()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken, on whatever number of ranks.

        Raises:
            ConfigError: the state is of another seed, or of other datasets or weights.
        """
        differ = [
            f"{name} {state.get(name)}, here {own}" for name, own in self._identity().items() if state.get(name) != own
        ]
        if differ:
            raise ConfigError(
                f"loader state: {'; '.join(differ)}; resume with the settings and shards of the run, or start a new one"
            )
        self.close()
        self.position = int(state["position"])

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "sequences": {name: len(dataset) for name, dataset in self.datasets.items()},
            "weights": {name: dataset.weight for name, dataset in self.datasets.items()},
        }

    def close(self) -> None:
        """Drop what was read ahead and end its thread; the next batch is read anew."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None


class _Batches:
    """A loader's batches by number, counted from a position: what Grain reads ahead."""

    def __init__(self, loader: ShardLoader, start: int) -> None:
        self.loader, self.start = loader, start

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, number: int) -> Batch:
        return self.loader.read(self.start + number * self.loader.batch)


def read_places(datasets: Mapping[str, Dataset], places: Sequence[Place]) -> Batch:
    """The sequences at `places` as one batch, in that order."""
    records = [b""] * len(places)
    for name in dict.fromkeys(name for name, _ in places):
        wanted = [place for place, (owner, _) in enumerate(places) if owner == name]
        for place, record in zip(wanted, datasets[name].read([places[p][1] for p in wanted]), strict=True):
            records[place] = record
    layout = next(iter(datasets.values())).layout
    return Batch.from_columns(decode(records, layout))


def batches(folder: Path, split: str, batch: int) -> Iterator[Batch]:
    """Every sequence of a split once, in stored order; the last batch of a dataset may be smaller."""
    for _, _, columns in chunks(Path(folder), split, batch):
        yield Batch.from_columns(columns)


def blended(folder: Path, split: str, batch: int) -> Iterator[Batch]:
    """A split in the proportions that training reads, for readers that blend nothing themselves.

    In stored order; the dataset that lasts longest comes once, the others again until they have their weight.
    """
    datasets = {name: dataset for name, dataset in open_split(Path(folder), split).items() if dataset.weight > 0}
    whole = max(len(dataset) / dataset.weight for dataset in datasets.values())
    for dataset in datasets.values():
        count = round(whole * dataset.weight)
        for start in range(0, count, batch):
            rows = [row % len(dataset) for row in range(start, min(start + batch, count))]
            yield Batch.from_columns(dataset.columns(rows))


def sample(folder: Path, split: str, count: int) -> Batch:
    """`count` sequences (all, if there are fewer) from all over a split, the same at every call.

    Each dataset gives its part by size, and at least one: a few clips among much text are judged too.

    Raises:
        DataError: the split holds none.
    """
    datasets = open_split(Path(folder), split)
    sizes = {name: len(dataset) for name, dataset in datasets.items()}
    whole = sum(sizes.values())
    if not whole:
        raise DataError(
            f"{folder}: its split {split!r} holds no sequence to draw; give ingest more data or raise "
            "ingest.validation_share, so that some of it is held out, and pack again"
        )
    count = min(count, whole)
    taken = {name: min(size, max(1, count * size // whole)) for name, size in sizes.items()}
    while (over := sum(taken.values()) - count) != 0:
        if over > 0:
            taken[max(taken, key=lambda name: taken[name])] -= 1
        else:
            taken[max(taken, key=lambda name: sizes[name] - taken[name])] += 1
    places = [
        (name, row)
        for number, (name, size) in enumerate(sizes.items())
        for row in np.random.default_rng(number).permutation(size)[: taken[name]].tolist()
    ]
    return read_places(datasets, places)
