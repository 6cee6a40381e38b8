"""The pre-training stage: what it writes and returns, and that a resumed run is the same run."""

import json
import os
import signal

import numpy as np
import pytest
import torch

from accordion.config.extract import RecoverConfig
from accordion.config.posttrain import RlConfig, SftConfig
from accordion.config.pretrain import MemberSpec, PretrainConfig, model_config
from accordion.config.retrieval import DistilConfig
from accordion.data.loader import ShardLoader
from accordion.data.shards import read_meta
from accordion.device import device, training_device
from accordion.errors import ArtifactError, ConfigError, Interrupted, OutOfMemory, TrainingDiverged
from accordion.model import SubmodelSpec, load_model, save_model
from accordion.observe import listening
from accordion.store.manifest import Manifest
from accordion.train.loop import TIMES, PosteriorScale, Trainer
from accordion.train.pretrain import long_loader, pretrain
from accordion.train.unigram import unigram_losses
from accordion.train.validate import validation_batches
from tests.unit.train.synthetic_shards import doubled, small_columns, tiny_config, write_columns, write_shards

SPEED = ("tokens_per_second", "flops_per_second", "flops_utilisation")


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "shards")


def run(tmp_path, config, shards, name):
    out = tmp_path / name
    out.mkdir()
    return out, pretrain(config, shards=shards, out=out, resume=tmp_path / f"{name}-resume")


def trainer(config, shards) -> Trainer:
    loader = ShardLoader(shards, "train", batch=config.batch, seed=config.seed)
    return Trainer(config, model_config(config, read_meta(shards)), loader)


def test_it_writes_a_model_and_measures_every_member(tmp_path, shards):
    seen = []
    with listening(lambda step, figures: seen.append((step, figures))):
        out, metrics = run(tmp_path, tiny_config(), shards, "a")
    modalities = {"text", "image", "video", "audio"}
    assert set(metrics["val_loss_full"]) == set(metrics["val_loss_unigram"]) == modalities
    full, small = metrics["submodels"]
    assert full["val_loss"] == pytest.approx(metrics["val_loss_full"])
    assert small["val_loss"]["text"] != full["val_loss"]["text"]
    assert small["parameters"] < full["parameters"] and small["active_parameters"] < full["active_parameters"]
    assert metrics["steps"] == 12 and metrics["tokens"] == 12 * 4 * 48 - pad_count(shards, 12, 4)
    curves = [json.loads(line) for line in (out / "curves.jsonl").read_text().splitlines()]
    assert [line["step"] for line in curves] == [step for step, _ in seen] == list(range(1, 13))
    assert curves[3]["loss/text"] == seen[3][1]["loss/text"] and {"loss/video", "loss/mtp"} <= set(curves[0])
    assert all(figures["flops_utilisation"] > 0 for _, figures in seen)
    assert metrics["speed"].items() >= {name: seen[-1][1][name] for name in SPEED}.items()
    assert load_model(out).config.layers == 4
    assert sum(weight.numel() for weight in load_model(out).parameters()) == full["parameters"]


def pad_count(shards, steps, rows):
    loader = ShardLoader(shards, "train", batch=rows, seed=0)
    return sum(int((next(loader).modality == 0).sum()) for _ in range(steps))


def test_training_learns_and_changes_every_expert(shards):
    config = tiny_config(steps=40)
    learner = trainer(config, shards)
    before = {name: weight.detach().clone() for name, weight in learner.model.named_parameters()}
    figures = [learner.step() for _ in range(40)]
    for name in ("text", "image", "audio"):
        assert figures[-1][f"loss/{name}"] < figures[0][f"loss/{name}"]
    experts = 0
    for name, weight in learner.model.named_parameters():
        changed = weight != before[name]
        assert changed.any(), name
        if "expert_" in name:
            experts += len(weight)
            assert changed.flatten(1).any(1).all(), name  # of each expert
    assert experts >= 2 * 4 * 4  # in and out, of four layers of four experts
    assert any(layer.moe.bias.any() for layer in learner.model.layers)


@pytest.mark.parametrize("stop", [5, 6])
def test_a_resumed_run_is_bitwise_the_unbroken_one(tmp_path, shards, stop):
    """24 sequences, 4 a step: after step 6 each was read once, and a resume begins with the next epoch."""
    config = tiny_config()
    whole = trainer(config, shards)
    for _ in range(12):
        whole.step()
    first = trainer(config, shards)
    for _ in range(stop):
        first.step()
    assert first.snapshot().facts["loader"]["position"] == 4 * stop
    folder = tmp_path / "snapshot"
    folder.mkdir()
    first.snapshot().write(folder)
    second = trainer(config, shards)
    second.restore(first.snapshot().read(folder))
    for _ in range(12 - stop):
        second.step()
    assert second.curves == whole.curves
    left, right = whole.snapshot(), second.snapshot()
    for stem, tensors in left.tensors.items():
        assert tensors.keys() == right.tensors[stem].keys()
        assert all(torch.equal(tensor, right.tensors[stem][name]) for name, tensor in tensors.items()), stem
    times = dict.fromkeys(TIMES, 0)
    assert left.facts | times == right.facts | times


@pytest.mark.parametrize(
    "elastic",
    [
        {"subsets": "ranked", "warmup_share": 0.25},
        {"subsets": "random", "top_k_by_layer": True, "distil_share": 0.5},
        {"grow_share": 0.25, "warmup_share": 0.0},
    ],
)
def test_a_resumed_run_with_ranks_and_twins_is_bitwise_the_unbroken_one(tmp_path, shards, elastic):
    config = tiny_config(elastic={"layers": (3, 4), "experts": (2, 4), "top_k": (1, 2), **elastic})
    whole = trainer(config, shards)
    for _ in range(12):
        whole.step()
    for stop in (2, 5):  # while experts are being ranked or the smallest is alone, and after
        first, second = trainer(config, shards), trainer(config, shards)
        for _ in range(stop):
            first.step()
        folder = tmp_path / f"snapshot-{stop}"
        folder.mkdir()
        first.snapshot().write(folder)
        second.restore(first.snapshot().read(folder))
        for _ in range(12 - stop):
            second.step()
        assert second.curves == whole.curves
        assert second.model.config == whole.model.config
    assert (whole.model.config.expert_order is None) == (elastic.get("subsets") != "ranked")


def test_ranked_members_keep_the_experts_of_largest_gate_mass_and_the_checkpoint_says_which(tmp_path, shards):
    config = tiny_config(elastic={**tiny_config().elastic.model_dump(), "subsets": "ranked", "warmup_share": 0.25})
    learner = trainer(config, shards)
    for _ in range(3):
        learner.step()
    mass = [layer.moe.mass.clone() for layer in learner.model.layers]
    assert all(float(m.sum()) > 0 for m in mass) and learner.model.config.expert_order is None
    learner.step()
    order = learner.model.config.expert_order
    assert order == tuple(tuple(m.argsort(descending=True).tolist()) for m in mass)
    save_model(learner.model, tmp_path)
    spec = SubmodelSpec.nested(load_model(tmp_path).config, experts=2, top_k=1)
    assert spec.experts == tuple(tuple(sorted(layer[:2])) for layer in order)
    assert {learner.sampler.specs[key].experts for key in learner.sampler.specs if key[:2] == (4, 2)} == {spec.experts}


def test_a_deterministic_run_on_a_cpu_is_the_usual_one(tmp_path, shards):
    usual, _ = run(tmp_path, tiny_config(steps=3), shards, "usual")
    strict, _ = run(tmp_path, tiny_config(steps=3, deterministic=True), shards, "strict")
    assert (usual / "model.safetensors").read_bytes() == (strict / "model.safetensors").read_bytes()


def test_a_finished_run_is_not_trained_again(tmp_path, shards):
    config = tiny_config()
    out, first = run(tmp_path, config, shards, "a")
    again = tmp_path / "again"
    again.mkdir()
    second = pretrain(config, shards=shards, out=again, resume=tmp_path / "a-resume")
    assert (again / "curves.jsonl").read_text() == (out / "curves.jsonl").read_text()
    del first["speed"]["flops_utilisation"], second["speed"]["flops_utilisation"]  # against a peak measured each time
    assert second == first
    assert len(list((tmp_path / "a-resume").iterdir())) == config.checkpoints_kept


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_continued(tmp_path, shards):
    config = tiny_config()
    out, _ = run(tmp_path, config, shards, "a")
    resume = tmp_path / "a-resume"
    weights = resume / "step-00000012" / "optimizer.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    (resume / ".step-00000016.abc.tmp").mkdir()
    again = tmp_path / "again"
    again.mkdir()
    pretrain(config, shards=shards, out=again, resume=resume)
    assert (again / "curves.jsonl").read_text() == (out / "curves.jsonl").read_text()
    assert {path.name for path in resume.iterdir()} == {"damaged-step-00000012", "step-00000008", "step-00000012"}
    Manifest.read(resume / "step-00000012").verify(resume / "step-00000012")


def test_other_settings_and_other_data_are_refused_with_the_difference(tmp_path, shards):
    run(tmp_path, tiny_config(), shards, "a")
    with pytest.raises(ArtifactError, match=r"pretrain.batch: 4 -> 3"):
        pretrain(tiny_config(batch=3), shards=shards, out=tmp_path, resume=tmp_path / "a-resume")
    other = small_columns(24, seed=0)
    other["token"] = other["token"][::-1]
    write_columns(shards, {"train": other, "val": small_columns(8, seed=1)})
    with pytest.raises(ArtifactError, match=r"shards: '"):
        pretrain(tiny_config(), shards=shards, out=tmp_path, resume=tmp_path / "a-resume")


def test_a_non_finite_loss_stops_before_the_optimizer_and_names_the_sequence(tmp_path):
    columns = small_columns(24, seed=0)
    columns["position"][5] = np.nan
    shards = write_columns(tmp_path / "shards", {"train": columns})
    learner = trainer(tiny_config(batch=24), shards)
    before = {name: weight.detach().clone() for name, weight in learner.model.named_parameters()}
    with pytest.raises(TrainingDiverged, match=r"step 1: loss is not finite.*of which \['all/5'\] give"):
        learner.step()
    assert all(torch.equal(weight, before[name]) for name, weight in learner.model.named_parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_before_the_optimizer(shards, value):
    learner = trainer(tiny_config(), shards)
    learner.step()
    before = {name: tensor.clone() for name, tensor in learner.snapshot().tensors["model"].items()}
    hook = learner.model.embeddings.text.weight.register_hook(lambda gradient: gradient * value)
    with pytest.raises(TrainingDiverged, match=r"step 2: gradient is not finite.*'all/\d+'.*of which none give"):
        learner.step()
    hook.remove()
    after = learner.snapshot()
    assert after.facts["step"] == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.tensors["model"].items())


def test_weights_that_a_step_of_a_number_loss_makes_infinite_are_not_saved(tmp_path, shards):
    config = tiny_config(checkpoint_every=1, optimizer={"learning_rate": 1e39, "clip": 1.0})
    with pytest.raises(TrainingDiverged, match=r"step 1: \d+ tensors are not finite after it.*learning_rate"):
        run(tmp_path, config, shards, "a")
    assert not list(tmp_path.glob("a-resume/*"))


@pytest.mark.parametrize("section", [PretrainConfig, SftConfig, RlConfig, RecoverConfig, DistilConfig])
def test_a_run_of_no_steps_is_refused(section):
    with pytest.raises(ConfigError, match=r"steps: got 0; input should be greater than or equal to 1"):
        section.parse({"steps": 0})


def test_an_impossible_member_is_refused_before_training(tmp_path, shards):
    config = tiny_config(family=(MemberSpec(name="deep", layers=9, experts=4, top_k=2),))
    with pytest.raises(ConfigError, match="layers 9"):
        pretrain(config, shards=shards, out=tmp_path, resume=tmp_path / "r")


def test_the_sampler_warms_up_then_draws_every_member_and_the_full_model(shards):
    learner = trainer(tiny_config(steps=100), shards)
    assert learner.sampler.draw(9, 4).specs is None
    drawn = [spec for step in range(10, 100) for spec in learner.sampler.draw(step, 4).specs]
    share = sum(spec == learner.sampler.full for spec in drawn) / len(drawn)
    assert set(learner.sampler.specs.values()) == set(drawn)
    assert 0.45 < share < 0.68  # half by full_share, an eighth of the rest by chance
    off = trainer(tiny_config(elastic={"enabled": False}), shards)
    assert all(off.sampler.draw(step, 4).specs is None for step in range(12))


def test_posterior_scaling_brings_modalities_to_one_interval():
    scale = PosteriorScale(memory=0.5)
    weights = {name: torch.tensor(value, requires_grad=True) for name, value in (("text", 6.0), ("image", 0.6))}
    total = scale.total(dict(weights), mtp_weight=0.3)
    assert total.item() == pytest.approx(1.0)
    total.backward()
    assert weights["text"].grad * 6 == pytest.approx(float(weights["image"].grad) * 0.6)
    scale.total({"text": torch.tensor(2.0)}, mtp_weight=0.3)
    assert scale.running == pytest.approx({"text": 4.0, "image": 0.6})


def test_a_gpu_that_is_not_there_is_a_clear_error():
    with device("cpu"):
        assert training_device().type == "cpu"
    if not torch.cuda.is_available():
        with device("auto"):
            assert training_device().type == "cpu"
        with device("cuda"), pytest.raises(ConfigError, match=r"runtime\.device: got cuda"):
            training_device()


def test_unigram_losses_are_the_entropies_of_the_marginals(shards):
    config = model_config(tiny_config(), read_meta(shards))
    losses = unigram_losses(shards, config, validation_batches(shards, 64))
    targets = small_columns(24, seed=0)["target_token"]
    counts = np.bincount(targets[targets >= 0], minlength=config.text_vocabulary) + 0.5
    held_out = small_columns(8, seed=1)["target_token"]
    expected = -np.log(counts / counts.sum())[held_out[held_out >= 0]].mean()
    assert losses["text"] == pytest.approx(expected)
    assert losses["image"] == pytest.approx(np.log(2), abs=0.02)  # fair random bits
    assert losses["audio"] < np.log(config.audio_codebook + 1)


@pytest.fixture
def staged(tmp_path):
    """Shards with long sequences, twice as long as the others."""
    splits = {
        "train": small_columns(24, seed=0),
        "val": small_columns(8, seed=1),
        "long": doubled(small_columns(12, seed=5)),
    }
    return write_columns(tmp_path / "staged", splits)


def test_stage_two_reads_long_sequences_with_a_cosine_and_resumes_bitwise(tmp_path, staged):
    stages = {"share": 0.5, "mtp_weight": 0.1, "balance_step": 1e-5}
    config = PretrainConfig.parse(
        {**tiny_config(steps=8).model_dump(), "long_context": stages, "batch_ramp": 0.5}
    )  # fmt: skip

    def staged_trainer():
        loader = ShardLoader(staged, "train", batch=config.batch, seed=0)
        return Trainer(config, model_config(config, read_meta(staged)), loader, long=long_loader(config, staged))

    whole, read = staged_trainer(), []
    for _ in range(8):
        before = whole.tokens
        whole.step()
        read.append(whole.tokens - before)
    assert whole.snapshot().facts["long_loader"]["position"] == 4 * 2  # half as many sequences, twice as long
    assert whole.snapshot().facts["loader"]["position"] == 1 + 1 + 2 + 3
    assert max(read[:2]) < read[3] < min(read[4:])
    rates = [json.loads(line)["learning_rate"] for line in whole.curves]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(0.1 * config.optimizer.learning_rate * config.optimizer.decay_to)
    first, second = staged_trainer(), staged_trainer()
    for _ in range(6):
        first.step()
    folder = tmp_path / "snapshot"
    folder.mkdir()
    first.snapshot().write(folder)
    second.restore(first.snapshot().read(folder))
    for _ in range(2):
        second.step()
    assert second.curves == whole.curves


def test_stage_two_without_long_sequences_is_refused(tmp_path, shards):
    config = PretrainConfig.parse({**tiny_config().model_dump(), "long_context": {"share": 0.5}})
    with pytest.raises(ConfigError, match=r"holds no long sequences; set pack\.long_sequence"):
        run(tmp_path, config, shards, "a")
    with pytest.raises(ConfigError, match="there are no long sequences"):
        trainer(config, shards)


def test_a_run_asked_to_stop_saves_the_step_and_goes_on_as_the_whole_one(tmp_path, shards):
    config = tiny_config(steps=10, checkpoint_every=100)
    whole, _ = run(tmp_path, config, shards, "whole")
    out = tmp_path / "stopped"
    out.mkdir()

    def stop_at_five(step, figures):
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 5 of 10, which is saved"):  # noqa: SIM117
        with listening(stop_at_five):
            pretrain(config, shards=shards, out=out, resume=tmp_path / "stopped-resume")
    other = {"validation_sequences": 7, "family": config.family[:1], "checkpoint_every": 3, "checkpoints_kept": 1}
    other["attention"] = "mask"  # what `auto` means here
    pretrain(config.model_copy(update=other), shards=shards, out=out, resume=tmp_path / "stopped-resume")
    for name in ("model.safetensors", "curves.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_a_step_whose_loss_jumps_changes_nothing_and_is_counted(shards):
    one = trainer(tiny_config(spike_deviations=5.0), shards)
    one.step()
    one.guard.recent.extend([0.1] * 40)  # as if the losses had been a tenth of what comes
    before = {name: weight.clone() for name, weight in one.model.state_dict().items()}
    running = one.scale.running
    figures = one.step()
    assert figures["skipped"] == 1.0 and one.guard.skipped == 1 and one.done == 2
    assert all(torch.equal(weight, before[name]) for name, weight in one.model.state_dict().items())
    assert one.scale.running == running
    assert not any(router.load.any() for _, router in one.model.layers.routers())
    one.guard.recent.clear()
    assert "skipped" not in one.step()
    assert not torch.equal(one.model.state_dict()["layers.0.moe.router"], before["layers.0.moe.router"])


def test_loads_of_the_experts_are_among_the_figures(shards):
    one = trainer(tiny_config(), shards)
    figures = one.step()
    one.step()
    assert figures["load/max_over_mean"] >= 1 and figures["load/idle_experts"] >= 0
    first, second = map(json.loads, one.curves)
    shares = [[first[f"load/{layer}.{expert}"] for expert in range(4)] for layer in range(4)]
    assert all(sum(layer) == pytest.approx(1, abs=1e-4) for layer in shares)
    most = sum(4 * max(layer) for layer in shares) / 4
    assert most == pytest.approx(figures["load/max_over_mean"], abs=1e-3)
    assert "load/0.0" not in second and "load/0.0" not in figures


def test_the_speed_of_a_run_names_its_share_of_what_the_machine_can_do(tmp_path, shards):
    _, metrics = run(tmp_path, tiny_config(steps=3), shards, "speed")
    assert 0 < metrics["speed"]["flops_utilisation"] < 1 and metrics["speed"]["flops_per_second"] > 0


def test_memory_that_is_too_small_for_judging_names_the_settings_to_lower(tmp_path, shards, monkeypatch):
    with monkeypatch.context() as small:
        small.setattr("accordion.train.pretrain.validation_losses", lambda *_: torch.empty(2**55))
        with pytest.raises(OutOfMemory, match=r"lower pretrain\.validation_sequences \(now 64\), pack\.sequence or"):
            run(tmp_path, tiny_config(steps=1), shards, "judged")
    again, trained = tmp_path / "again", []
    again.mkdir()
    with listening(lambda step, figures: trained.append(step)):  # as the error says, with fewer
        pretrain(
            tiny_config(steps=1, validation_sequences=7), shards=shards, out=again, resume=tmp_path / "judged-resume"
        )
    assert not trained
    assert (again / "model.safetensors").read_bytes() == (tmp_path / "judged" / "model.safetensors").read_bytes()
