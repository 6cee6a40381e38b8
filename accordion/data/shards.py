"""The shard folder: records of one packed sequence each, in ArrayRecord files of bounded size, and meta.json.

`<split>/<dataset>/00000.array_record` holds compressed, checksummed records that are read at random. A record is the
columns of `data/batch.py` one after another, little-endian; its layout stands in meta.json, so that a reader with
other columns is refused. A dataset is what the loader shuffles and weighs as one.
"""

import json
import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from accordion.data.batch import COLUMNS, empty_columns
from accordion.errors import ArtifactError

META = "meta.json"
REMEDY = "run the pack stage again, or restore the artifact with DVC"
_WRITER = "group_size:1,zstd:1"  # each record can be read alone
_READER = "readahead_buffer_size:0"
_OPEN = 64  # files a dataset keeps open


def record_type(sequence: int, bits: int, levels: int) -> np.dtype:
    """The layout of one record: each column (S,...) in the dtype of the shards, little-endian."""
    columns = empty_columns((sequence,), bits, levels)
    return np.dtype([(name, values.dtype.newbyteorder("<"), values.shape) for name, values in columns.items()])


def describe(layout: np.dtype) -> dict[str, list[Any]]:
    """Column -> [dtype, shape], as meta.json states it."""
    return {name: [layout[name].base.str, list(layout[name].shape)] for name in layout.names or ()}


class ShardWriter:
    """Appends sequences to one dataset, beginning a new file after every `limit` of them.

    Used as a context manager; what is open when the block ends is closed.
    """

    def __init__(self, folder: Path, layout: np.dtype, limit: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.layout, self.limit = folder, layout, limit
        self.counts: list[int] = []  # sequences in each file
        self._file: ArrayRecordWriter | None = None

    def add(self, columns: Mapping[str, np.ndarray]) -> None:
        """Write one sequence, columns (S,...)."""
        if self._file is None:
            self._file = ArrayRecordWriter(str(shard_path(self.folder, len(self.counts))), _WRITER)
            self.counts.append(0)
        record = np.zeros((), self.layout)
        for name in COLUMNS:
            record[name] = columns[name]
        self._file.write(record.tobytes())
        self.counts[-1] += 1
        if self.counts[-1] == self.limit:
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


def shard_path(folder: Path, number: int) -> Path:
    """The file of shard `number` of a dataset."""
    return folder / f"{number:05}.array_record"


class Dataset:
    """The sequences of one dataset over all its files, read by index.

    Attributes:
        folder: of the dataset.
        layout: dtype of a record.
        weight: share of the sequences that a training batch draws from here.
    """

    def __init__(self, folder: Path, layout: np.dtype, counts: Sequence[int], weight: float) -> None:
        self.folder, self.layout, self.weight = folder, layout, weight
        self.counts = list(counts)
        self._ends = list(accumulate(self.counts))
        self._files: dict[int, ArrayRecordReader] = {}
        self._lock = threading.Lock()  # the thread that reads ahead is not the only reader
        for number in range(len(self.counts)):
            path = shard_path(folder, number)
            if not path.is_file():
                raise ArtifactError(f"{path}: missing; {REMEDY}")

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, rows: Sequence[int]) -> list[bytes]:
        """The records `rows`, in that order.

        Raises:
            ArtifactError: a file is damaged, cut short, or of another layout; the text names it.
        """
        by_file: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            by_file.setdefault(bisect_right(self._ends, row), []).append(place)
        found = [b""] * len(rows)
        for number, places in by_file.items():
            start = self._ends[number] - self.counts[number]
            with self._lock:
                records = self._records(number, [rows[place] - start for place in places])
            for place, record in zip(places, records, strict=True):
                found[place] = record
        return found

    def _records(self, number: int, rows: list[int]) -> list[bytes]:
        path = shard_path(self.folder, number)
        try:
            records = self._open(number, path).read(rows)
        except (RuntimeError, ValueError, IndexError, OSError) as error:  # what the reader raises for damaged files
            raise ArtifactError(f"{path}: not readable ({str(error).splitlines()[0]}); {REMEDY}") from None
        if wrong := next((len(record) for record in records if len(record) != self.layout.itemsize), None):
            raise ArtifactError(f"{path}: a record of {wrong} bytes, {META} describes {self.layout.itemsize}; {REMEDY}")
        return records

    def _open(self, number: int, path: Path) -> ArrayRecordReader:
        if number not in self._files:
            reader = ArrayRecordReader(str(path), _READER)
            if reader.num_records() != self.counts[number]:
                raise ArtifactError(
                    f"{path}: {reader.num_records()} sequences, {META} says {self.counts[number]}; {REMEDY}"
                )
            if len(self._files) >= _OPEN:
                self._files.pop(next(iter(self._files))).close()
            self._files[number] = reader
        return self._files[number]

    def columns(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """The sequences `rows` as columns (n,S,...), read-only."""
        return decode(self.read(rows), self.layout)


def decode(records: Sequence[bytes], layout: np.dtype) -> dict[str, np.ndarray]:
    """Records as columns (n,S,...), views of one read-only buffer."""
    table = np.frombuffer(b"".join(records), layout)
    return {name: table[name] for name in COLUMNS}


def write_meta(folder: Path, facts: Mapping[str, Any], layout: np.dtype, splits: Mapping[str, Any]) -> None:
    """Write meta.json.

    Args:
        facts: sizes that the model and its readers need (`sequence`, `bits`, ...).
        splits: for each split its counts, its `sequence` where it is another, and `datasets`: name -> {sequences,
            shards (sequences a file), weight, ...}.
    """
    meta = {**facts, "columns": describe(layout), "splits": splits}
    (folder / META).write_text(json.dumps(meta, indent=1) + "\n")


def read_meta(folder: Path) -> dict[str, Any]:
    """meta.json of a shard folder."""
    path = folder / META
    if not path.is_file():
        raise ArtifactError(f"{path}: missing; run the pack stage, or give its output folder")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ArtifactError(f"{path}: not readable ({error}); {REMEDY}") from None


def sequence_of(meta: Mapping[str, Any], split: str) -> int:
    """Positions in a sequence of a split."""
    return int(meta["splits"][split].get("sequence", meta["sequence"]))


def open_split(folder: Path, split: str) -> dict[str, Dataset]:
    """The datasets of one split by name, in the order of meta.json.

    Raises:
        ArtifactError: the split, a file or a column is missing, or the columns are not the ones read here.
    """
    meta = read_meta(folder)
    if split not in meta["splits"]:
        raise ArtifactError(f"{folder}: no split {split!r}; it has {', '.join(meta['splits'])}; {REMEDY}")
    usual = record_type(meta["sequence"], meta["bits"], meta["audio_levels"])
    layout = record_type(sequence_of(meta, split), meta["bits"], meta["audio_levels"])
    stated, own = meta["columns"], describe(usual)
    if stated != own:
        differ = [name for name in sorted({*stated, *own}) if stated.get(name) != own.get(name)]
        lines = "; ".join(f"{name} {stated.get(name, 'absent')}, wanted {own.get(name, 'absent')}" for name in differ)
        raise ArtifactError(f"{folder / META}: other columns than are read here ({lines}); {REMEDY}")
    return {
        name: Dataset(folder / split / name, layout, entry["shards"], entry["weight"])
        for name, entry in meta["splits"][split]["datasets"].items()
    }


def chunks(folder: Path, split: str, rows: int) -> Iterator[tuple[str, int, dict[str, np.ndarray]]]:
    """Every sequence of a split once, in stored order: dataset, index of the first one, columns (<= rows,S,...)."""
    for name, dataset in open_split(folder, split).items():
        for start in range(0, len(dataset), rows):
            yield name, start, dataset.columns(range(start, min(start + rows, len(dataset))))
