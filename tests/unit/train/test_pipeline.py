"""Layers in stages: a pipeline is the plain model in every elastic configuration, and its ranks act as one."""

import numpy as np
import pytest

from accordion.config.pretrain import model_config
from accordion.data.shards import read_meta
from accordion.model import parameter_counts
from accordion.train.checkpoint import Snapshot
from tests.unit.train import pipeline_work, rank_work
from tests.unit.train.ranks import on_ranks
from tests.unit.train.synthetic_shards import small_columns, tiny_config, write_columns, write_shards


def staged(**changes):
    return tiny_config(
        engine="megatron", parallel={"pipeline": 2, "microbatches": 2}, validation_sequences=4, **changes
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.mark.parametrize(("stages", "microbatches"), [(2, 2), (3, 4)])
def test_every_elastic_configuration_is_the_plain_model(stages, microbatches):
    on_ranks(stages, pipeline_work.parity, stages, microbatches)


def test_a_rank_holds_its_stage_of_the_weights_and_its_share_of_the_moments(shards):
    def held(count, **parallel):
        config = tiny_config(engine="megatron", parallel=parallel)
        return on_ranks(count, pipeline_work.bytes_held, config, shards)

    shape = model_config(tiny_config(), read_meta(shards))
    moments, table = 2 * 4 * parameter_counts(shape)[0], 2 * 4 * shape.text_vocabulary * shape.hidden  # bytes
    (one,), copies, stages = held(1), held(2), held(2, pipeline=2)
    assert one["moments"] == moments
    assert sum(rank["moments"] for rank in copies) == moments  # nothing is there twice
    assert all(rank["weights"] == one["weights"] and rank["moments"] < 0.52 * moments for rank in copies)
    assert sum(rank["moments"] for rank in stages) == moments + table  # the text table is on both ends
    assert all(rank["weights"] < 0.6 * one["weights"] for rank in stages)


def test_a_signal_to_one_rank_stops_all_after_the_same_step(shards, tmp_path):
    config, resume = staged(steps=6, checkpoint_every=100), tmp_path / "resume"
    said = on_ranks(2, pipeline_work.stopped_on_the_last_rank, config, shards, tmp_path / "out", resume)
    assert "stopped by a signal to another process after step 3 of 6" in said[0]
    assert "stopped by SIGTERM after step 3 of 6" in said[1]
    assert Snapshot.read(resume / "step-00000003").facts["step"] == 3
    on_ranks(2, rank_work.train, config, shards, tmp_path / "out", resume)
    on_ranks(2, rank_work.train, config, shards, tmp_path / "whole", tmp_path / "other")
    for name in ("curves.jsonl", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_loss_that_is_not_finite_is_known_on_every_stage_with_its_sequence(tmp_path):
    columns = small_columns(8, seed=0)
    columns["position"][5] = np.nan
    data = write_columns(tmp_path / "shards", {"train": columns, "val": small_columns(8, seed=1)})
    for said in on_ranks(2, pipeline_work.diverged, staged(batch=8), data, tmp_path / "out"):
        assert "step 1: loss is not finite" in said and "of which ['all/5'] give" in said


def test_ranks_decide_by_the_same_numbers():
    assert on_ranks(2, pipeline_work.told, staged()) == [(0.0, True, False)] * 2
