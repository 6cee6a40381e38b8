"""Loader: exact resume, each sequence once an epoch, seeds, finite batches, damaged shards."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from accordion.data.batch import COLUMNS, Batch
from accordion.data.documents import empty_columns
from accordion.data.loader import ShardLoader, batches
from accordion.errors import ArtifactError, ConfigError, DataError

COUNT, SEQUENCE = 10, 16


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Ten sequences, each full of its own index."""
    columns = empty_columns((COUNT, SEQUENCE), bits=4, levels=2)
    columns["token"][:] = np.arange(COUNT)[:, None]
    (tmp_path / "train").mkdir()
    for name, values in columns.items():
        np.save(tmp_path / "train" / f"{name}.npy", values)
    (tmp_path / "meta.json").write_text(json.dumps({"sequence": SEQUENCE, "splits": {"train": {"sequences": COUNT}}}))
    return tmp_path


def rows(batch: Batch) -> list[int]:
    return batch.token[:, 0].tolist()


def test_resume_is_exact_at_every_position(shards: Path) -> None:
    straight = ShardLoader(shards, "train", batch=3, seed=7)
    expected = [rows(next(straight)) for _ in range(12)]
    for stop in range(12):
        first = ShardLoader(shards, "train", batch=3, seed=7)
        before = [rows(next(first)) for _ in range(stop)]
        second = ShardLoader(shards, "train", batch=3, seed=7)
        second.restore(json.loads(json.dumps(first.state())))
        assert before + [rows(next(second)) for _ in range(12 - stop)] == expected


def test_every_epoch_has_every_sequence_once_in_another_order(shards: Path) -> None:
    loader = ShardLoader(shards, "train", batch=4, seed=0)
    seen = [row for _ in range(5) for row in rows(next(loader))]  # 20 = two epochs
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_the_seed_decides_the_order_and_large_batches_span_epochs(shards: Path) -> None:
    one, two, other = (ShardLoader(shards, "train", batch=25, seed=seed) for seed in (1, 1, 2))
    first = rows(next(one))
    assert first == rows(next(two))
    assert first != rows(next(other))
    assert max(first.count(row) for row in range(10)) == 3


def test_state_of_another_run_is_refused(shards: Path) -> None:
    loader = ShardLoader(shards, "train", batch=4, seed=0)
    with pytest.raises(ConfigError, match="seed 1, here 0"):
        loader.restore({"seed": 1, "epoch": 0, "offset": 0, "sequences": 10})
    with pytest.raises(ConfigError, match="sequences 9"):
        loader.restore({"seed": 0, "epoch": 0, "offset": 0, "sequences": 9})
    with pytest.raises(ConfigError, match="batch: got 0"):
        ShardLoader(shards, "train", batch=0, seed=0)


def test_evaluation_reads_each_sequence_once_in_order(shards: Path) -> None:
    assert [row for batch in batches(shards, "train", 4) for row in rows(batch)] == list(range(10))


def test_a_batch_has_the_contracts_types(shards: Path) -> None:
    batch = next(ShardLoader(shards, "train", batch=2, seed=0))
    assert {name: getattr(batch, name).dtype for name in COLUMNS} == {name: kind for name, (kind, _) in COLUMNS.items()}
    assert batch.position.shape == (2, SEQUENCE, 3)
    assert len(batch.select([1])) == 1
    assert torch.equal(batch.select(torch.tensor([False, True])).token, batch.token[1:])
    assert batch.to("cpu").codes.shape == (2, SEQUENCE, 2)
    with pytest.raises(DataError, match="group"):
        Batch.from_columns({name: getattr(batch, name) for name in COLUMNS if name != "group"})


def test_damaged_shards_are_named(shards: Path) -> None:
    with pytest.raises(ArtifactError, match="no split 'test'"):
        ShardLoader(shards, "test", batch=1, seed=0)
    np.save(shards / "train" / "token.npy", np.zeros((3, SEQUENCE), np.int32))
    with pytest.raises(ArtifactError, match=r"token.npy: shape \(3, 16\)"):
        ShardLoader(shards, "train", batch=1, seed=0)
    (shards / "train" / "token.npy").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"token.npy: not readable"):
        ShardLoader(shards, "train", batch=1, seed=0)
