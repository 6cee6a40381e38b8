"""Packed sequences held in memory for many short runs: exported from shards once, read by every run.

`columns/<split>/<name>.xz` holds one column of a split, compressed after taking differences along the sequence; a
GPU machine then needs neither the shards nor the libraries that read them.
"""

import io
import json
import lzma
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from accordion.data.batch import AUDIO, COLUMNS, IMAGE, TEXT, VIDEO, Batch
from accordion.errors import ArtifactError, ConfigError, DataError
from accordion.observe import say
from accordion.store.atomic import atomic_folder, atomic_write

SPLITS = ("train", "val")
KINDS = (TEXT, IMAGE, VIDEO, AUDIO)
POSITION_UNIT = 64  # positions are stored in 64ths: centres of vision cells are whole multiples
_RAW = (
    "modality",
    "scale",
    "vision_input",
    "latent",
    "patch_pixels",
    "patch_latent",
    "voice_vector",
    "target_bits",
)  # differences along the sequence would not help
_READ = 256  # sequences read at a time


def export(shards: Path, out: Path) -> dict[str, int]:
    """Write the columns of both splits of `shards` into the new folder `out`; sequences by split.

    Raises:
        DataError: `out` exists, or a position is no multiple of 1/64.
        ArtifactError: `shards` is no folder of shards.
    """
    from accordion.data import shards as packed  # reading shards needs more libraries than the experiment does
    from accordion.data.loader import batches, blended

    if out.exists():
        raise DataError(f"{out}: exists; name a new folder")
    meta = packed.read_meta(shards)
    sizes = {}
    with atomic_folder(out) as folder:
        for split in SPLITS:
            parts: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
            for batch in (blended if split == "train" else batches)(shards, split, _READ):
                for name, (_, kind) in COLUMNS.items():
                    parts[name].append(getattr(batch, name).numpy().astype(kind))
            (folder / "columns" / split).mkdir(parents=True)
            sizes[split] = sum(len(part) for part in parts["token"])
            for name in COLUMNS:
                values = np.concatenate(parts.pop(name))
                _write(folder / "columns" / split / f"{name}.xz", name, values)
            say(f"study data: {sizes[split]} sequences of {split}")
        kept = {name: value for name, value in meta.items() if name not in ("splits", "columns")}
        atomic_write(folder / "meta.json", json.dumps({**kept, "sequences": sizes}, indent=1) + "\n")
    return sizes


def _write(path: Path, name: str, values: np.ndarray) -> None:
    header = json.dumps({"shape": values.shape, "dtype": values.dtype.str}).encode() + b"\n"
    if name == "position":
        whole = np.round(values * POSITION_UNIT)
        if not np.array_equal(whole, values * POSITION_UNIT):
            raise DataError(f"{path.name}: a position is no multiple of 1/{POSITION_UNIT}")
        values = whole.astype(np.int32)
    if name not in _RAW:
        values = np.diff(values, axis=1, prepend=values[:, :1] * 0)
    flat = np.ascontiguousarray(values).view(np.uint8).reshape(-1, values.dtype.itemsize)
    path.write_bytes(lzma.compress(header + flat.T.tobytes(), preset=2))  # bytes of equal weight side by side


def _read(path: Path, name: str) -> np.ndarray:
    try:
        header, _, body = lzma.decompress(path.read_bytes()).partition(b"\n")
    except (OSError, lzma.LZMAError) as error:
        raise ArtifactError(f"{path}: not readable ({error}); export the shards again") from None
    about = json.loads(header)
    kind = np.dtype(about["dtype"])
    stored = np.dtype(np.int32) if name == "position" else kind
    flat = np.frombuffer(body, np.uint8).reshape(stored.itemsize, -1).T
    values = np.ascontiguousarray(flat).view(stored).reshape(about["shape"])
    if name not in _RAW:
        values = np.cumsum(values, axis=1, dtype=stored)
    return (values / POSITION_UNIT).astype(kind) if name == "position" else values


def _unpacked(folder: Path, split: str, name: str, cache: Path | None) -> np.ndarray:
    kept = None if cache is None else cache / split / f"{name}.npy"
    if kept is not None and kept.is_file():
        return np.load(kept, mmap_mode="r")
    values = _read(folder / "columns" / split / f"{name}.xz", name)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        whole = io.BytesIO()
        np.save(whole, values)
        atomic_write(kept, whole.getvalue())
    return values


def read_meta(folder: Path) -> dict[str, Any]:
    """meta.json of an exported folder: the sizes a model needs, and `sequences` by split.

    Raises:
        ArtifactError: it is missing or unreadable, or the folder holds shards.
    """
    path = folder / "meta.json"
    if not path.is_file():
        raise ArtifactError(f"{path}: missing; make the folder with `python -m accordion.study export`")
    try:
        meta = json.loads(path.read_text())
    except ValueError as error:
        raise ArtifactError(f"{path}: not readable ({error}); export the shards again") from None
    if "sequences" not in meta:
        raise ArtifactError(f"{folder}: these are shards; export them with `python -m accordion.study export` first")
    return meta


def _spread(rows: Tensor, count: int) -> Tensor:
    """At most `count` of `rows`, evenly spread over them."""
    if len(rows) <= count:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, count, device=rows.device).round().long()]


class Resident:
    """The sequences of one split on one device, in the types of the shards."""

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        self.columns = dict(columns)

    @classmethod
    def load(cls, folder: Path, split: str, device: torch.device, cache: Path | None = None) -> Self:
        """Read a split of an exported folder; `cache` keeps it unpacked for the processes that come after."""
        with ThreadPoolExecutor() as pool:
            values = list(pool.map(lambda name: _unpacked(folder, split, name, cache), COLUMNS))
        found = (torch.from_numpy(np.array(value)).to(device) for value in values)
        return cls(dict(zip(COLUMNS, found, strict=True)))

    def __len__(self) -> int:
        """How many sequences there are."""
        return len(self.columns["token"])

    def batch(self, rows: Tensor) -> Batch:
        """The sequences `rows` (n,) of the device."""
        return Batch(**{name: self.columns[name].index_select(0, rows).to(kind) for name, (kind, _) in COLUMNS.items()})

    def batches(self, size: int, count: int) -> Iterator[Batch]:
        """About `count` sequences, `size` at a time: a quarter of each kind, or all of a kind that has fewer."""
        rows = torch.cat([_spread(rows, count // len(KINDS)) for rows in self._by_kind()])
        for start in range(0, len(rows), size):
            yield self.batch(rows[start : start + size])

    def _by_kind(self) -> list[Tensor]:
        """The sequences that hold nothing but text, and those of which each of the other modalities has most."""
        modality = self.columns["modality"]
        counts = torch.stack([(modality == kind).sum(1) for kind in KINDS], 1)  # (sequences, kinds)
        counts[:, 0] = (counts[:, 1:].sum(1) == 0).long()
        kind = counts.argmax(1)
        return [(kind == index).nonzero().squeeze(1) for index in range(len(KINDS))]


class ResidentLoader:
    """Endless batches from memory: the order of epoch e depends on (seed, e) only, so that every run of a seed reads
    the same sequences in the same order.

    Attributes:
        position: sequences read so far, the whole state.
    """

    def __init__(self, data: Resident, *, batch: int, seed: int, position: int = 0) -> None:
        self.data, self.size, self.seed, self.position = data, batch, seed, position
        self._epochs: dict[int, np.ndarray] = {}

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        rows = self.next_rows()
        return self.data.batch(torch.from_numpy(rows).to(self.data.columns["token"].device))

    def resize(self, batch: int) -> None:
        """Read batches of `batch` sequences from here on."""
        self.size = batch

    def next_rows(self) -> np.ndarray:
        """Advance by one batch and give the indices of its sequences."""
        rows = self.rows(self.position)
        self.position += self.size
        return rows

    def rows(self, position: int) -> np.ndarray:
        """Indices (batch,) of the sequences at `position` and after."""
        places = np.arange(position, position + self.size)
        epochs, offsets = places // len(self.data), places % len(self.data)
        rows = np.empty(self.size, np.int64)
        for epoch in np.unique(epochs):
            rows[epochs == epoch] = self._order(int(epoch))[offsets[epochs == epoch]]
        return rows

    def places(self, position: int) -> list[tuple[str, int]]:
        """Split and index of the sequences of the batch at `position`."""
        return [("train", int(row)) for row in self.rows(position)]

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.data))
            self._epochs = {key: value for key, value in self._epochs.items() if key == epoch - 1} | {epoch: order}
        return self._epochs[epoch]

    def state(self) -> dict[str, Any]:
        """Where the next batch begins."""
        return {"position": self.position, "seed": self.seed, "sequences": len(self.data)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            ConfigError: the state is of another seed or of other data.
        """
        if (state["seed"], state["sequences"]) != (self.seed, len(self.data)):
            raise ConfigError(
                f"study: the run read {state['sequences']} sequences with seed {state['seed']}, here are "
                f"{len(self.data)} with {self.seed}; use the data it began with, or a new folder"
            )
        self.position = int(state["position"])
