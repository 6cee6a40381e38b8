"""Checkpoints that each rank writes its part of: gathered by nobody, read by any engine and number of ranks."""

import shutil

import pytest

from accordion.model import load_model
from accordion.store.manifest import Manifest
from accordion.train.checkpoint import Snapshot, newest_folder
from tests.unit.train import parts_work
from tests.unit.train.ranks import on_ranks
from tests.unit.train.synthetic_shards import write_shards
from tests.unit.train.test_ranks import STEPS, assert_same_run, config

HALF, WHOLE = "step-00000005", f"step-{STEPS:08d}"


def in_parts(**parallel):
    return config(engine="megatron", parallel={"distributed_checkpoint": True, **parallel})


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory):
    """Ten steps on two expert ranks; the checkpoints after five and ten are in `resume`."""
    folder = tmp_path_factory.mktemp("undisturbed")
    saves = on_ranks(2, parts_work.train, in_parts(expert=2), shards, folder / "out", folder / "resume")
    assert saves == [2, 2]
    return folder


def test_each_rank_writes_its_part_and_the_folder_holds_no_whole_weights(undisturbed):
    folder = undisturbed / "resume" / HALF
    held = Manifest.read(folder).files
    for part in ("weights", "exp_avg", "exp_avg_sq"):
        assert {f"parts/{part}/__{rank}_0.distcp" for rank in (0, 1)} < held.keys()
    assert not {"model.safetensors", "optimizer.safetensors"} & held.keys()
    snapshot = Snapshot.read(folder)
    assert snapshot.facts["step"] == 5 and len(snapshot.curves) == 5 and snapshot.parts == folder / "parts"
    assert snapshot.tensors.keys() == {"generators", "importance"}


@pytest.mark.parametrize(
    ("count", "settings"),
    [
        (2, in_parts(expert=2)),
        (1, in_parts()),
        (4, in_parts(expert=2, pipeline=2, microbatches=2)),
    ],
    ids=["expert-2", "megatron", "expert-2-pipeline-2"],
)
def test_a_run_killed_after_five_steps_goes_on_with_another_layout(shards, undisturbed, tmp_path, count, settings):
    resume, out = tmp_path / "resume", tmp_path / "out"
    shutil.copytree(undisturbed / "resume" / HALF, resume / HALF)
    shutil.copytree(undisturbed / "resume" / WHOLE / "parts", resume / f".{WHOLE}.cut.tmp")  # by a kill while it saved
    assert on_ranks(count, parts_work.train, settings, shards, out, resume) == [2] * count
    assert_same_run(undisturbed / "out", out)
    assert sorted(path.name for path in resume.iterdir()) == [HALF, WHOLE]
    if count == 2:
        for name in ("curves.jsonl", "model.safetensors", "state/optimizer.safetensors"):
            assert (out / name).read_bytes() == (undisturbed / "out" / name).read_bytes()


def test_a_plain_process_goes_on_from_the_parts_with_the_same_bits(shards, undisturbed, tmp_path):
    shutil.copytree(undisturbed / "resume" / WHOLE, tmp_path / "resume" / WHOLE)
    on_ranks(1, parts_work.train, config(), shards, tmp_path / "out", tmp_path / "resume")  # no step is left
    mine, theirs = load_model(tmp_path / "out").state_dict(), load_model(undisturbed / "out").state_dict()
    assert parts_work.same(mine, theirs)
    left, right = (Snapshot.read(folder / "out/state").tensors["optimizer"] for folder in (tmp_path, undisturbed))
    assert parts_work.same(left, right)


def test_a_damaged_part_is_noticed_and_the_checkpoint_before_it_is_used(undisturbed, tmp_path, capsys):
    identity = Manifest.read(undisturbed / "resume" / HALF).config
    for name in ("weights/__1_0.distcp", "exp_avg/.metadata", "steps.safetensors"):
        root = tmp_path / name.replace("/", "-")
        shutil.copytree(undisturbed / "resume", root)
        path = root / WHOLE / "parts" / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        assert newest_folder(root, identity) == root / HALF
        assert f"parts/{name} was altered; " in capsys.readouterr().err.replace("\n", " ")
        assert (root / f"damaged-{WHOLE}").is_dir()


def test_weights_and_moments_are_the_same_bits_however_many_ranks_wrote_and_read_them(tmp_path):
    two, one, four, stages = (tmp_path / name for name in ("two", "one", "four", "stages"))
    assert all(on_ranks(2, parts_work.reshard, {"expert": 2}, None, two, 5))
    assert all(on_ranks(1, parts_work.reshard, {"expert": 1}, two, one, 5))
    assert all(on_ranks(4, parts_work.reshard, {"expert": 2, "tensor": 2}, one, four, 5))
    assert all(on_ranks(2, parts_work.reshard, {"pipeline": 2}, four, stages, 5))
    assert all(on_ranks(4, parts_work.reshard, {"pipeline": 2, "expert": 2}, stages, None, 5))
    assert all(on_ranks(1, parts_work.reshard, {}, stages, None, 5))  # the plain engine


def test_only_finite_states_are_saved_and_the_newest_are_kept(tmp_path):
    for said in on_ranks(2, parts_work.save_four_times, tmp_path / "root"):
        assert "step 4: 1 tensors are not finite after it (model layers.1.moe.expert_in)" in said
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == ["step-00000002", "step-00000003"]
    found = newest_folder(tmp_path / "root", parts_work.IDENTITY)
    assert found is not None and found.name == "step-00000003"


def test_a_rank_without_space_is_an_error_of_all_and_leaves_nothing(tmp_path):
    for said in on_ranks(2, parts_work.save_without_space, tmp_path / "root"):
        assert "not every rank could write its part (1: " in said and "Free space on that disk" in said
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["step-00000001"]
