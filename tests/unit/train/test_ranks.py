"""Several processes train what one trains: DDP, FSDP2 and Megatron-Core's kinds of parallelism, on gloo."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from itertools import islice

import pytest
import torch

from accordion.config.pretrain import ParallelConfig, PretrainConfig, model_config
from accordion.config.profile import load_profile
from accordion.data.batch import TEXT
from accordion.data.loader import ShardLoader
from accordion.data.shards import read_meta
from accordion.errors import ConfigError
from accordion.home import REPOSITORY
from accordion.model import load_model
from accordion.observe import listening
from accordion.train.__main__ import main
from accordion.train.checkpoint import Snapshot
from accordion.train.loop import Trainer
from accordion.train.pretrain import long_loader, pretrain
from accordion.train.ranks import check_processes, joined
from accordion.train.schedule import long_batch
from tests.unit.train import rank_work
from tests.unit.train.ranks import on_ranks
from tests.unit.train.synthetic_shards import tiny_config, write_shards, write_sparse_shards

STEPS = 10


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("data") / "shards")


def config(**changes) -> PretrainConfig:
    elastic = {
        **tiny_config().elastic.model_dump(),
        "warmup_share": 0.2,
        "distil_share": 0.5,
        "subsets": "random",
        "grow_share": 0.1,
    }
    values = {"elastic": elastic, "steps": STEPS, "checkpoint_every": 5, "validation_sequences": 4, **changes}
    return tiny_config(**values)


@pytest.fixture(scope="module")
def alone(shards, tmp_path_factory):
    """The run on one process with the plain engine."""
    folder = tmp_path_factory.mktemp("alone")
    on_ranks(1, rank_work.train, config(), shards, folder / "out", folder / "resume")
    return folder


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """Shards most of whose sequences are text alone."""
    return write_sparse_shards(tmp_path_factory.mktemp("data") / "sparse")


def staged(**changes) -> PretrainConfig:
    """A batch that grows from one sequence a process, then long sequences, by a model that understands images."""
    seeing = {**tiny_config().model.model_dump(), "vit_layers": 1, "vit_width": 32}
    stages = {"seed": 4, "model": seeing, "batch": 8, "batch_ramp": 0.5, "long_context": {"share": 0.2}}
    return PretrainConfig.parse({**config().model_dump(), **stages, **changes})


@pytest.fixture(scope="module")
def sparse_alone(sparse, tmp_path_factory):
    """The run of such shards on one process with the plain engine."""
    folder = tmp_path_factory.mktemp("sparse")
    on_ranks(1, rank_work.train, staged(), sparse, folder / "out", folder / "resume")
    return folder


def curves(folder) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]


def assert_same_run(one, other, tolerance: float = 1e-4) -> None:
    assert len(curves(one)) == len(curves(other)) == STEPS
    for mine, theirs in zip(curves(one), curves(other), strict=True):
        assert mine.keys() == theirs.keys()
        assert mine == pytest.approx(theirs, rel=tolerance), (mine, theirs)
    weights = load_model(other).state_dict()
    for name, tensor in load_model(one).state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=2e-3, msg=name)
    left, right = Snapshot.read(one / "state"), Snapshot.read(other / "state")
    assert left.tensors["optimizer"].keys() == right.tensors["optimizer"].keys()
    for name, tensor in left.tensors["optimizer"].items():
        if name.endswith("/step"):
            assert torch.equal(tensor, right.tensors["optimizer"][name]), name
    assert left.facts["running_losses"] == pytest.approx(right.facts["running_losses"], rel=tolerance)
    for fact in ("step", "tokens", "flops", "loader", "long_loader"):
        assert left.facts[fact] == right.facts[fact]


@pytest.mark.parametrize(
    ("count", "changes"),
    [
        (2, {}),
        (2, {"parallel": {"shard": True}}),
        (1, {"engine": "megatron"}),
        (2, {"engine": "megatron", "parallel": {"expert": 2}}),
        (2, {"engine": "megatron", "parallel": {"tensor": 2}}),
        (2, {"engine": "megatron", "parallel": {"context": 2}}),
        (2, {"engine": "megatron", "parallel": {"pipeline": 2, "microbatches": 3}}),
        (4, {"engine": "megatron", "parallel": {"pipeline": 2, "microbatches": 2, "expert": 2}}),
    ],
    ids=["ddp", "fsdp2", "megatron", "expert-2", "tensor-2", "context-2", "pipeline-2", "pipeline-2-expert-2"],
)
def test_any_engine_and_number_of_processes_is_the_plain_run(shards, alone, tmp_path, count, changes):
    on_ranks(count, rank_work.train, config(**changes), shards, tmp_path / "out", tmp_path / "resume")
    assert_same_run(alone / "out", tmp_path / "out")


@pytest.mark.parametrize(
    "changes",
    [{}, {"parallel": {"shard": True}}, {"engine": "megatron", "parallel": {"expert": 2}}],
    ids=["ddp", "fsdp2", "expert-2"],
)
def test_ranks_that_read_different_modalities_train_what_one_process_trains(sparse, sparse_alone, tmp_path, changes):
    with closing(ShardLoader(sparse, "train", batch=2, seed=staged().seed)) as loader:
        text = [(batch.modality == TEXT).all(1).tolist() for batch in islice(loader, 2)]  # of the first two steps
    assert text == [[False, True], [True, True]]
    parallel = {**changes.get("parallel", {}), "patience": 60.0}
    on_ranks(2, rank_work.train, staged(**{**changes, "parallel": parallel}), sparse, tmp_path / "out", tmp_path / "r")
    assert_same_run(sparse_alone / "out", tmp_path / "out")


PIPELINE = {"pipeline": 2, "microbatches": 2}


@pytest.mark.parametrize("parallel", [{"expert": 2}, PIPELINE], ids=["expert-2", "pipeline-2"])
def test_a_run_goes_on_with_another_engine_on_another_number_of_processes(shards, alone, tmp_path, parallel):
    first = config(engine="megatron", parallel=ParallelConfig(**parallel))
    resume = tmp_path / "resume"
    on_ranks(2, rank_work.train, first, shards, tmp_path / "first", resume)
    (resume / f"step-{STEPS:08d}").rename(tmp_path / "gone")  # as if it had been stopped after step 5
    on_ranks(1, rank_work.train, config(), shards, tmp_path / "second", resume)
    assert_same_run(alone / "out", tmp_path / "second")


def test_ranks_agree_bit_for_bit_after_a_resume(shards, alone):
    longer = config(steps=STEPS + 2)
    first, second = on_ranks(2, rank_work.weights_after_a_resume, longer, shards, alone / "resume")
    assert first == second and first[0] == STEPS


def test_a_rank_that_hangs_is_an_error_of_the_others_within_their_patience():
    (said, seconds), _ = on_ranks(2, rank_work.wait_for_one_who_does_not_come, 2.0)
    assert "died or did not answer for 2 s" in said and "raise pretrain.parallel.patience" in said
    assert 1 < seconds < 5


def test_a_run_of_one_process_goes_on_in_two_stages(shards, alone, tmp_path):
    step = "step-00000005"
    shutil.copytree(alone / "resume" / step, tmp_path / "resume" / step)
    second = config(engine="megatron", parallel=ParallelConfig(**PIPELINE))
    on_ranks(2, rank_work.train, second, shards, tmp_path / "second", tmp_path / "resume")
    assert_same_run(alone / "out", tmp_path / "second")


def test_every_elastic_configuration_is_the_same_on_two_tensor_ranks():
    on_ranks(2, rank_work.tensor_parity)


def test_every_elastic_configuration_is_the_same_on_two_expert_ranks():
    on_ranks(2, rank_work.expert_parity)


@pytest.mark.parametrize(
    ("changes", "world", "message"),
    [
        ({"engine": "megatron", "parallel": {"tensor": 2}}, 3, r"tensor x context x pipeline is 2, which does not"),
        ({"engine": "megatron", "parallel": PIPELINE}, 3, r"x pipeline is 2, which does not divide the 3 processes"),
        ({"engine": "megatron", "parallel": {"expert": 2}}, 3, r"expert: got 2, which .* the 3 processes of the run"),
        ({"engine": "megatron", "parallel": {**PIPELINE, "expert": 2}}, 2, r"expert: got 2, .* 1 processes of a stage"),
        ({"engine": "megatron", "parallel": {"pipeline": 2, "microbatches": 5}}, 2, r"microbatches: got 5, .* reads 4"),
        ({"batch": 4}, 3, r"pretrain\.batch: got 4; wants a multiple of the 3"),
        (
            {"batch": 8, "batch_ramp": 0.5},
            4,
            r"pretrain\.batch_ramp: steps of it read 2 .* of the 4 .* pretrain\.batch a multiple of 16, start fewer",
        ),
    ],
)
def test_a_number_of_processes_that_does_not_fit_is_refused(monkeypatch, changes, world, message):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    with pytest.raises(ConfigError, match=message), joined(config(**changes), rank_work.CPU):
        pass


@pytest.mark.parametrize(("name", "most"), [("smoke", 2), ("workstation", 8), ("cluster", 32)])
def test_every_step_of_a_shipped_profile_can_be_shared_out_among_the_processes_it_is_for(name, most):
    profile = load_profile(name)
    for readers in (2**power for power in range(most.bit_length())):
        check_processes(profile.pretrain, readers)
        if profile.pretrain.long_context.share:
            pack = profile.pack
            assert long_batch(profile.pretrain.batch, usual=pack.sequence, long=pack.long_sequence) % readers == 0


def test_long_sequences_that_cannot_be_shared_out_are_refused_before_the_first_step(sparse):
    with pytest.raises(
        ConfigError, match=r"pretrain\.long_context: its steps read 4 .* of 96 .* \(8\) of 48, .* the 8"
    ):
        long_loader(staged(batch_ramp=0), sparse, rank=0, ranks=8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel": {"tensor": 2}}, r"parallel\.tensor above 1 needs engine: megatron"),
        ({"engine": "megatron", "parallel": {"shard": True}}, r"parallel\.shard belongs to engine: plain"),
        ({"engine": "megatron", "parallel": {"expert": 3}}, r"parallel\.expert is 3; it must divide model\.experts"),
        ({"engine": "megatron", "parallel": {"tensor": 4}}, r"parallel\.tensor is 4; it must divide model\.heads"),
        ({"parallel": {"distributed_checkpoint": True}}, r"distributed_checkpoint belongs to engine: megatron; the"),
        ({"parallel": {"pipeline": 2}}, r"parallel\.pipeline above 1 needs engine: megatron"),
        ({"engine": "megatron", "parallel": {"microbatches": 2}}, r"microbatches above 1 needs parallel\.pipeline"),
        ({"engine": "megatron", "parallel": {"pipeline": 3}}, r"parallel\.pipeline is 3; it must divide model\.layers"),
        ({"engine": "megatron", "attention": "flex"}, r"attention: flex belongs to engine: plain"),
        ({"engine": "other"}, r"engine"),
    ],
)
def test_settings_that_no_engine_can_do_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        PretrainConfig.parse({**config().model_dump(), **changes})


def test_stages_that_part_the_layers_of_the_audio_heads_are_refused(shards, tmp_path):
    four = config(engine="megatron", parallel={"pipeline": 4})
    with pytest.raises(ConfigError, match=r"pipeline: got 4, by which the last stage holds 1 of 4 layers; the top 2"):
        pretrain(four, shards=shards, out=tmp_path, resume=tmp_path)


def test_the_command_trains_and_says_what_is_wrong(shards, tmp_path, capsys):
    call = ["--profile", "smoke", "--shards", str(shards), "--out", str(tmp_path / "out"), "--device", "cpu"]
    call += ["--resume", str(tmp_path / "resume"), "--set", "pretrain.steps=2", "--set", "pretrain.batch=4"]
    assert main(call) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["steps"] == 2 and load_model(tmp_path / "out").config.hidden > 0
    assert main(call) == 2 and "exists and is not empty; name a new folder" in capsys.readouterr().err
    assert main([*call, "--set", "pretrain.parallel.tensor=2"]) == 2
    assert "parallel.tensor above 1 needs engine: megatron" in capsys.readouterr().err


def test_the_status_of_a_run_that_was_stopped_tells_a_scheduler_to_call_again(shards, tmp_path, capsys):
    call = ["--profile", "smoke", "--shards", str(shards), "--out", str(tmp_path / "out"), "--device", "cpu"]
    call += ["--resume", str(tmp_path / "resume"), "--set", "pretrain.steps=3", "--set", "pretrain.batch=4"]
    with listening(lambda step, _: os.kill(os.getpid(), signal.SIGTERM) if step == 1 else None):
        assert main(call) == 3
    assert "error: pretrain: stopped by SIGTERM after step 1 of 3, which is saved" in capsys.readouterr().err
    assert main(call) == 0


def test_megatron_trains_without_a_word_that_is_not_ours(shards, tmp_path):
    call = [sys.executable, "-m", "accordion.train", "--profile", "smoke", "--shards", str(shards), "--device", "cpu"]
    call += ["--out", str(tmp_path / "out"), "--resume", str(tmp_path / "resume")]
    for change in ("steps=2", "batch=2", "validation_sequences=4", "engine=megatron"):
        call += ["--set", f"pretrain.{change}"]
    done = subprocess.run(call, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "arning" not in done.stderr and "deprecated" not in done.stderr


def test_an_engine_of_several_processes_is_refused_outside_of_the_stage(shards):
    with pytest.raises(ConfigError, match=r"only the pre-training stage runs engine: megatron"):
        Trainer(config(engine="megatron"), model_config(config(), read_meta(shards)), None)
