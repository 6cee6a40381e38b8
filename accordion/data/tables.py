"""Tables of the corpus as Parquet files, written and read a few rows at a time: memory is flat in their size."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from accordion.errors import DataError

Row = dict[str, Any]
TEXT, BYTES, WHOLE, REAL = pa.string(), pa.large_binary(), pa.int64(), pa.float64()
_RECORD = {"source": TEXT, "licence": TEXT, "split": TEXT, "weight": REAL}
COLUMNS: dict[str, dict[str, pa.DataType]] = {  # of each table, in their order
    "text": {"id": TEXT, "language": TEXT, "text": TEXT, "identified": TEXT, **_RECORD},
    "images": {"id": TEXT, "png": BYTES, "caption": TEXT, "captions": TEXT, **_RECORD},
    "audio": {
        "id": TEXT, "pcm": BYTES, "rate": WHOLE, "transcript": TEXT, "language": TEXT, "key": TEXT, "speaker": TEXT,
        **_RECORD,
    },
    "video": {
        "id": TEXT, "frames": BYTES, "n": WHOLE, "height": WHOLE, "width": WHOLE, "caption": TEXT, **_RECORD,
    },
}  # fmt: skip
ROWS, BYTES_HELD = 2048, 8 * 2**20  # a row group ends at whichever comes first


def require_columns(path: Path, wanted: Iterable[str], there: Iterable[str]) -> None:
    """Refuse a table that lacks a column: one of an earlier version."""
    if lacking := sorted(set(wanted) - set(there)):
        raise DataError(f"{path}: no column {', '.join(lacking)}; run the ingest stage again")


class Table:
    """One Parquet file in the making; keys of a row that are no columns are left out."""

    def __init__(self, path: Path, columns: dict[str, pa.DataType]) -> None:
        self.schema = pa.schema(list(columns.items()))
        self.writer = pq.ParquetWriter(path, self.schema)
        self.rows: list[Row] = []
        self.held = 0  # bytes, roughly
        self.count = 0

    def add(self, row: Row) -> None:
        """Append a row; it reaches the file with its row group."""
        self.rows.append({name: row[name] for name in self.schema.names})
        self.held += sum(len(value) for value in row.values() if isinstance(value, str | bytes))
        self.count += 1
        if len(self.rows) >= ROWS or self.held >= BYTES_HELD:
            self._flush()

    def _flush(self) -> None:
        if self.rows:
            self.writer.write_table(pa.Table.from_pylist(self.rows, self.schema))
            self.rows, self.held = [], 0

    def close(self) -> None:
        """Write what is left and the footer."""
        self._flush()
        self.writer.close()


class Spool:
    """The rows of a table by split, set aside on disk: held-out rows are wanted before the first training row."""

    def __init__(self, folder: Path, name: str) -> None:
        self.paths = {split: folder / f"{name}-{split}.parquet" for split in ("val", "train")}
        self.tables = {split: Table(path, COLUMNS[name]) for split, path in self.paths.items()}

    def add(self, row: Row) -> None:
        self.tables[row["split"]].add(row)

    def rows(self) -> Iterator[Row]:
        """Every row, the held-out ones first, in the order they came; the files are deleted behind it."""
        for table in self.tables.values():
            table.close()
        for path in self.paths.values():
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(64):
                    yield from batch.to_pylist()
            path.unlink()
