"""Shards: what is written is read, files are bounded, and every kind of damage is one error that names the file."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from accordion.data.batch import COLUMNS, Columns, empty_columns
from accordion.data.shards import ShardWriter, chunks, open_split, read_meta, record_type, shard_path
from accordion.errors import ArtifactError
from tests.shard_files import write_datasets

FACTS = {"sequence": 16, "bits": 4, "audio_levels": 2}


def drawn(count: int) -> Columns:
    """Columns of random values, all over the range of each dtype."""
    rng = np.random.default_rng(0)
    columns = empty_columns((count, 16), bits=4, levels=2)
    for name, values in columns.items():
        if values.dtype.kind == "f":
            columns[name] = rng.normal(size=values.shape).astype(values.dtype)
        else:
            limits = np.iinfo(values.dtype)
            columns[name] = rng.integers(limits.min, limits.max, values.shape, values.dtype, endpoint=True)
    return columns


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_datasets(tmp_path / "shards", FACTS, {"train": {"a": drawn(20)}}, limit=8)


def test_what_is_written_is_read_in_any_order(shards: Path) -> None:
    written = drawn(20)
    dataset = open_split(shards, "train")["a"]
    assert len(dataset) == 20 and dataset.counts == [8, 8, 4]
    wanted = random.Random(0).sample(range(20), 20)
    read = dataset.columns(wanted)
    for name in COLUMNS:
        assert read[name].dtype == written[name].dtype
        assert np.array_equal(read[name], written[name][wanted]), name
    parts = list(chunks(shards, "train", 6))
    assert [(name, start, len(part["token"])) for name, start, part in parts] == [
        ("a", 0, 6), ("a", 6, 6), ("a", 12, 6), ("a", 18, 2),
    ]  # fmt: skip
    assert np.array_equal(np.concatenate([part["codes"] for _, _, part in parts]), written["codes"])


def test_an_altered_byte_is_noticed_or_changes_nothing(shards: Path) -> None:
    """Everything but the zeros that fill a file up is covered by a checksum."""
    path = shard_path(shards / "train/a", 1)
    whole, written, rng = path.read_bytes(), drawn(20), random.Random(0)
    noticed = 0
    for place in [rng.randrange(len(whole)) for _ in range(60)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            read = open_split(shards, "train")["a"].columns(range(8, 16))
        except ArtifactError as error:
            noticed += 1
            assert str(path) in str(error) and "restore the artifact" in str(error)
        else:
            assert all(np.array_equal(read[name], written[name][8:16]) for name in COLUMNS), place
    assert noticed > 0


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_a_truncated_file_is_named(shards: Path, length: int) -> None:
    path = shard_path(shards / "train/a", 2)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ArtifactError, match=r"train/a/00002.array_record: .*run the pack stage again"):
        open_split(shards, "train")["a"].columns([17])


def test_missing_parts_are_named(shards: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no split 'test'; it has train"):
        open_split(shards, "test")
    shard_path(shards / "train/a", 1).unlink()
    with pytest.raises(ArtifactError, match=r"train/a/00001.array_record: missing"):
        open_split(shards, "train")
    (shards / "meta.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"meta.json: not readable"):
        open_split(shards, "train")
    (shards / "meta.json").unlink()
    with pytest.raises(ArtifactError, match=r"meta.json: missing"):
        open_split(shards, "train")


def test_another_layout_is_refused(shards: Path) -> None:
    meta = read_meta(shards)
    changed = {**meta, "columns": {**meta["columns"], "token": ["<i8", [16]]}}
    (shards / "meta.json").write_text(json.dumps(changed))
    with pytest.raises(ArtifactError, match=r"meta.json: other columns.*token \['<i8', \[16\]\], wanted \['<i4'"):
        open_split(shards, "train")
    del changed["columns"]["token"]
    (shards / "meta.json").write_text(json.dumps(changed))
    with pytest.raises(ArtifactError, match=r"token absent, wanted"):
        open_split(shards, "train")


def test_records_and_files_of_another_run_are_refused(shards: Path) -> None:
    folder = shards / "train/a"
    with ShardWriter(shards / "other", record_type(16, bits=5, levels=2), limit=8) as writer:
        for _ in range(8):
            writer.add(empty_columns((16,), bits=5, levels=2))
    shard_path(shards / "other", 0).rename(shard_path(folder, 0))
    with pytest.raises(ArtifactError, match=r"00000.array_record: a record of \d+ bytes"):
        open_split(shards, "train")["a"].columns([0])
    shard_path(folder, 2).rename(shard_path(folder, 1))
    shard_path(folder, 2).write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"00001.array_record: 4 sequences, meta.json says 8"):
        open_split(shards, "train")["a"].columns([9])
