"""Loader: order and blend as a function of the position, any number of ranks, reading ahead, evaluation in order."""

import json
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accordion.data.batch import COLUMNS, Batch, Columns, empty_columns
from accordion.data.loader import AHEAD, Order, ShardLoader, batches, blended, sample
from accordion.data.shards import Dataset, read_meta, shard_path
from accordion.errors import ArtifactError, ConfigError, DataError
from tests.shard_files import write_datasets

SEQUENCE = 16
FACTS = {"sequence": SEQUENCE, "bits": 4, "audio_levels": 2}
SIZES = {"a": 130, "b": 57}  # every sequence is full of its own number; those of b begin at 1000
WEIGHTS = {"a": 0.75, "b": 0.25}


def numbered(count: int, first: int = 0) -> Columns:
    columns = empty_columns((count, SEQUENCE), bits=4, levels=2)
    columns["token"][:] = first + np.arange(count)[:, None]
    return columns


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    train = {"a": numbered(SIZES["a"]), "b": numbered(SIZES["b"], 1000)}
    folder = tmp_path_factory.mktemp("shards")
    return write_datasets(folder, FACTS, {"train": train, "val": {"all": numbered(10)}}, weights=WEIGHTS)


def rows(batch: Batch) -> list[int]:
    return batch.token[:, 0].tolist()


def numbers(order: Order, start: int, stop: int) -> list[int]:
    return [row + (1000 if name == "b" else 0) for name, row in order.places(start, stop)]


blends = st.dictionaries(
    st.sampled_from("abcd"), st.tuples(st.integers(1, 40), st.floats(0.02, 1)), min_size=1, max_size=4
)


def blend(drawn: Mapping[str, tuple[int, float]]) -> tuple[dict[str, int], dict[str, float]]:
    total = sum(weight for _, weight in drawn.values())
    return {name: size for name, (size, _) in drawn.items()}, {name: w / total for name, (_, w) in drawn.items()}


@given(blends, st.integers(0, 2**31))
@settings(deadline=None, max_examples=30)
def test_no_sequence_is_lost_or_repeated_in_an_epoch_of_its_dataset(drawn, seed: int) -> None:
    sizes, weights = blend(drawn)
    places = Order(sizes, weights, seed).places(0, 90)
    for name, size in sizes.items():
        read = [row for owner, row in places if owner == name]
        for start in range(0, len(read), size):
            epoch = read[start : start + size]
            assert len(set(epoch)) == len(epoch) and set(epoch) <= set(range(size))
            assert len(epoch) < size or sorted(epoch) == list(range(size))


@given(blends, st.integers(0, 5000))
@settings(deadline=None, max_examples=20)
def test_every_stretch_holds_the_weights(drawn, start: int) -> None:
    sizes, weights = blend(drawn)
    places = Order({name: 1000 * size for name, size in sizes.items()}, weights, 0).places(start, start + 200)
    for name, weight in weights.items():
        # a few sequences off by interleaving, and weights are kept to a hundredth of the smallest
        assert sum(owner == name for owner, _ in places) == pytest.approx(200 * weight, abs=4 + 200 * 0.012)


@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 4)), min_size=1, max_size=4),
    st.integers(0, 3),
)
@settings(deadline=None, max_examples=25)
def test_any_change_of_ranks_gives_the_same_global_batches(shards: Path, stages, seed: int) -> None:
    """Each stage is a run on some ranks that reads some batches, saves its state and is stopped."""
    order = Order(SIZES, WEIGHTS, seed)
    state, position = None, 0
    for ranks, count in stages:
        loaders = [ShardLoader(shards, "train", batch=12, seed=seed, rank=rank, ranks=ranks) for rank in range(ranks)]
        for loader in loaders:
            if state is not None:
                loader.restore(state)
        for _ in range(count):
            parts = [rows(next(loader)) for loader in loaders]
            assert [row for part in parts for row in part] == numbers(order, position, position + 12)
            position += 12
        states = [json.loads(json.dumps(loader.state())) for loader in loaders]
        assert all(other == states[0] for other in states)
        state = states[0]
        for loader in loaders:
            loader.close()


def test_resume_is_exact_at_every_position_and_of_another_batch_size(shards: Path) -> None:
    with closing(ShardLoader(shards, "train", batch=3, seed=7)) as straight:
        expected = [row for _ in range(12) for row in rows(next(straight))]
    for stop in range(12):
        first = ShardLoader(shards, "train", batch=3, seed=7)
        before = [row for _ in range(stop) for row in rows(next(first))]
        second = ShardLoader(shards, "train", batch=36 - 3 * stop, seed=7)
        second.restore(first.state())
        assert before + rows(next(second)) == expected
        first.close()
        second.close()


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    one, two, other = (Order({"a": 50}, {"a": 1.0}, seed).places(0, 100) for seed in (1, 1, 2))
    assert one == two != other
    assert one[:50] != one[50:]
    both = Order({"a": 50, "b": 50}, {"a": 0.5, "b": 0.5}, 1).places(0, 100)
    assert [row for name, row in both if name == "a"] != [row for name, row in both if name == "b"]


def test_what_is_read_ahead_is_not_counted_and_not_lost(shards: Path) -> None:
    with closing(ShardLoader(shards, "train", batch=2, seed=0)) as loader:
        first = rows(next(loader))
        time.sleep(0.2)
        state = loader.state()
        assert state["position"] == 2
        second = rows(next(loader))
        loader.restore(state)
        assert rows(next(loader)) == second != first


class Slow(Dataset):
    """A dataset that takes its time and counts its readings."""

    readings = 0

    def read(self, rows):
        type(self).readings += 1
        time.sleep(0.02)
        return super().read(rows)


def test_batches_are_read_ahead_but_only_a_few(shards: Path) -> None:
    loader = ShardLoader(shards, "train", batch=1, seed=0)
    for dataset in loader.datasets.values():
        dataset.__class__ = Slow
    next(loader)
    time.sleep(0.5)
    assert AHEAD <= Slow.readings <= AHEAD + 2
    clock = time.monotonic()
    next(loader)
    assert time.monotonic() - clock < 0.015  # it was there
    loader.close()


def test_a_damaged_shard_raises_where_its_batch_would_have_come_and_threads_end(tmp_path: Path) -> None:
    before = threading.active_count()
    write_datasets(tmp_path, FACTS, {"train": {"a": numbered(40)}}, limit=20)
    broken = shard_path(tmp_path / "train/a", 1)
    data = bytearray(broken.read_bytes())
    data[len(data) // 2] ^= 1
    broken.write_bytes(data)
    loader = ShardLoader(tmp_path, "train", batch=1, seed=0)
    with pytest.raises(ArtifactError, match=r"train/a/00001.array_record: not readable.*run the pack stage again"):
        for _ in range(40):
            next(loader)
    assert loader.position < 40
    loader.close()
    time.sleep(0.1)
    assert threading.active_count() <= before


def test_state_of_another_run_is_refused_with_the_difference(shards: Path) -> None:
    loader = ShardLoader(shards, "train", batch=4, seed=0)
    good = loader.state()
    with pytest.raises(ConfigError, match="seed 1, here 0"):
        loader.restore({**good, "seed": 1})
    with pytest.raises(ConfigError, match=r"sequences \{'a': 9\}, here \{'a': 130, 'b': 57\}"):
        loader.restore({**good, "sequences": {"a": 9}})
    with pytest.raises(ConfigError, match="weights"):
        loader.restore({**good, "weights": {"a": 0.5, "b": 0.5}})
    with pytest.raises(ConfigError, match=r"seed None, here 0.*resume with the settings"):
        loader.restore({"position": 3})


def test_impossible_settings_are_refused(shards: Path) -> None:
    with pytest.raises(ConfigError, match="batch: got 0"):
        ShardLoader(shards, "train", batch=0, seed=0)
    with pytest.raises(ConfigError, match=r"batch: got 4; wants a multiple of the number of ranks, 3"):
        ShardLoader(shards, "train", batch=4, seed=0, ranks=3)
    with pytest.raises(ConfigError, match=r"rank: got 2; wants 0 to 1"):
        ShardLoader(shards, "train", batch=4, seed=0, rank=2, ranks=2)
    with pytest.raises(ConfigError, match=r"dataset b: weight 0.5, but it holds no sequence"):
        Order({"a": 3, "b": 0}, {"a": 0.5, "b": 0.5}, 0)
    with pytest.raises(ConfigError, match="no dataset with a weight above 0"):
        Order({"a": 3}, {"a": 0.0}, 0)


def test_evaluation_reads_each_sequence_once_in_order(shards: Path) -> None:
    assert [row for batch in batches(shards, "val", 4) for row in rows(batch)] == list(range(10))
    assert [row for batch in batches(shards, "train", 4) for row in rows(batch)] == [*range(130), *range(1000, 1057)]
    assert sorted(rows(sample(shards, "train", 999))) == [*range(130), *range(1000, 1057)]
    drawn = rows(sample(shards, "train", 8))
    assert drawn == rows(sample(shards, "train", 8)) != list(range(8)) and len(set(drawn)) == 8
    assert sum(row < 1000 for row in drawn) == 6  # 130 of 187 sequences, and at least one of each dataset
    assert sorted(row < 1000 for row in rows(sample(shards, "train", 2))) == [False, True]


@pytest.mark.parametrize("datasets", [{}, {"text": {"sequences": 0, "shards": [], "weight": 0.0}}])
def test_a_sample_of_a_split_that_holds_nothing_says_what_to_do(tmp_path: Path, datasets: dict[str, object]) -> None:
    shards = write_datasets(tmp_path, FACTS, {"train": {"a": numbered(3)}})
    meta = json.loads((shards / "meta.json").read_text())
    meta["splits"]["val"] = {"sequences": 0, "datasets": datasets}
    (shards / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(
        DataError, match=rf"{shards}: its split 'val' holds no sequence.* raise ingest\.validation_share"
    ):
        sample(shards, "val", 8)


def test_a_blend_to_keep_repeats_what_is_small(tmp_path: Path) -> None:
    write_datasets(tmp_path, FACTS, {"train": {"a": numbered(30), "b": numbered(4, 1000)}}, weights=WEIGHTS)
    held = [row for batch in blended(tmp_path, "train", 7) for row in rows(batch)]
    assert held == [*range(30), *range(1000, 1004), *range(1000, 1004), 1000, 1001]


def test_a_batch_has_the_contracts_types(shards: Path) -> None:
    batch = next(batches(shards, "train", 2))
    assert {name: getattr(batch, name).dtype for name in COLUMNS} == {name: kind for name, (kind, _) in COLUMNS.items()}
    assert batch.position.shape == (2, SEQUENCE, 3)
    assert len(batch.select([1])) == 1
    assert torch.equal(batch.select(torch.tensor([False, True])).token, batch.token[1:])
    assert batch.to("cpu").codes.shape == (2, SEQUENCE, 2)
    batch.token[0, 0] = 7  # a batch of its own, not a view of what was read
    with pytest.raises(DataError, match="group"):
        Batch.from_columns({name: getattr(batch, name) for name in COLUMNS if name != "group"})
    assert read_meta(shards)["columns"]["position"] == ["<f4", [SEQUENCE, 3]]
