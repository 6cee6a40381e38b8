"""Batches from shards: shuffled anew each epoch by (seed, epoch), resumable at the exact sequence."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from accordion.data.batch import Batch
from accordion.data.shards import open_split
from accordion.errors import ConfigError


class ShardLoader:
    """An endless iterator over a split's sequences.

    The order of epoch e depends on (seed, e) only, and a batch may span two epochs, so no sequence is
    dropped. `state` and `restore` carry the position; a restored loader yields exactly what would have come.

    Args:
        folder: a shard folder.
        split: `train` or `val`.
        batch: sequences a batch.
        seed: of the shuffling.
    """

    def __init__(self, folder: Path, split: str, *, batch: int, seed: int) -> None:
        if batch < 1:
            raise ConfigError(f"batch: got {batch}; wants at least 1")
        self.columns = open_split(Path(folder), split)
        self.sequences = len(self.columns["token"])
        self.batch, self.seed = batch, seed
        self.epoch, self.offset = 0, 0
        self._order = self._shuffle()

    def _shuffle(self) -> np.ndarray:
        return np.random.default_rng((self.seed, self.epoch)).permutation(self.sequences)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return _read(self.columns, self.next_rows())

    def next_rows(self) -> np.ndarray:
        """Advance by one batch and give the indices (batch,) of its sequences."""
        parts = []
        needed = self.batch
        while needed:
            part = self._order[self.offset : self.offset + needed]
            parts.append(part)
            self.offset += len(part)
            needed -= len(part)
            if self.offset == self.sequences:
                self.epoch, self.offset = self.epoch + 1, 0
                self._order = self._shuffle()
        return np.concatenate(parts)

    def state(self) -> dict[str, int]:
        """Where the next batch begins, as plain numbers for a checkpoint."""
        return {"seed": self.seed, "epoch": self.epoch, "offset": self.offset, "sequences": self.sequences}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            ConfigError: the state is of another seed or of shards of another size.
        """
        for name, own in (("seed", self.seed), ("sequences", self.sequences)):
            if state[name] != own:
                raise ConfigError(
                    f"loader state: {name} {state[name]}, here {own}; resume with the settings and shards of the run, "
                    "or start a new one"
                )
        self.epoch, self.offset = int(state["epoch"]), int(state["offset"])
        self._order = self._shuffle()


def batches(folder: Path, split: str, batch: int) -> Iterator[Batch]:
    """Every sequence of a split once, in stored order; the last batch may be smaller."""
    columns = open_split(Path(folder), split)
    for start in range(0, len(columns["token"]), batch):
        yield _read(columns, np.arange(start, min(start + batch, len(columns["token"]))))


def _read(columns: Mapping[str, np.ndarray], rows: np.ndarray) -> Batch:
    return Batch.from_columns({name: values[rows] for name, values in columns.items()})
