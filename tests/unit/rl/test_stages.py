"""The stages sft and rl as the runner calls them, and generation from what they write."""

import json
import math

import pytest
import torch

from accordion.errors import DataError, OutOfMemory, TrainingDiverged
from accordion.model import load_model, save_model
from accordion.observe import listening
from accordion.rl import verifiers
from accordion.rl.sft import answer_batch, answer_loss, sft
from accordion.rl.tasks import distinct
from accordion.rl.train import Trainer, rl
from accordion.rl.update import Updater
from accordion.rl.verifiers import register
from tests.unit.rl.tiny import TASK, rl_config, sft_config, tiny_model, tiny_tokenizer, write_policy
from tests.unit.train.synthetic_shards import write_shards


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def folder(path):
    path.mkdir()
    return path


def weights(path):
    return load_model(path).state_dict()


def test_the_loss_covers_the_answer_and_its_end_only():
    tokenizer = tiny_tokenizer()
    problems = distinct([TASK], "train", 5, 0)
    tokens, present, trained = answer_batch(tokenizer, problems)
    for row, problem in enumerate(problems):
        assert tokenizer.decode(tokens[row][trained[row]].tolist()) == problem.answer
        assert trained[row].sum() == len(tokenizer.encode(problem.answer)) + 1  # and EOS
        assert not (trained[row] & ~present[row]).any()
    model = tiny_model()
    loss = answer_loss(model, tokens, present, trained)
    logits = model.text_logits(model.hidden(tokens, present))  # (B,S,V)
    by_hand = [
        -torch.log_softmax(logits[row, at - 1], -1)[tokens[row, at]]
        for row in range(5) for at in trained[row].nonzero().flatten().tolist()
    ]  # fmt: skip
    assert loss.item() == pytest.approx(float(torch.stack(by_hand).mean()), rel=1e-5)


def test_sft_learns_its_problems_and_measures_what_it_kept(tmp_path):
    policy, text = write_policy(tmp_path)
    shards = write_shards(tmp_path / "shards")
    seen = []
    config = sft_config(steps=40, learning_rate=5e-3)
    with listening(lambda step, figures: seen.append((step, figures))):
        metrics = sft(config, out=folder(tmp_path / "out"), checkpoint=policy, text=text, shards=shards)
    curves = lines(tmp_path / "out" / "curves.jsonl")
    assert len(curves) == len(seen) == 40
    assert all(figures["flops_utilisation"] > 0 for _, figures in seen) and metrics["speed"]["flops_per_second"] > 0
    assert "flops_utilisation" not in curves[0]  # the same work gives the same files
    assert curves[-1]["loss/answer"] < 0.5 * curves[0]["loss/answer"]
    assert sum("loss/replay" in row for row in curves) == 20
    assert metrics["pass"]["count"] == metrics["pass_sampled"]["count"] == 10
    assert 0 <= metrics["pass"]["low"] <= metrics["pass"]["rate"] <= metrics["pass"]["high"] <= 1
    for when in ("before", "after"):
        assert {"text", "image", "video", "audio"} <= set(metrics["val_loss"][when])
    json.dumps(metrics, allow_nan=False)
    assert any(
        not torch.equal(a, b) for a, b in zip(*(weights(f).values() for f in (policy, tmp_path / "out")), strict=True)
    )


def test_sft_is_the_same_twice(tmp_path):
    policy, text = write_policy(tmp_path)
    shards = write_shards(tmp_path / "shards")
    runs = []
    for name in ("a", "b"):
        sft(sft_config(), out=folder(tmp_path / name), checkpoint=policy, text=text, shards=shards)
        runs.append((tmp_path / name / "model.safetensors").read_bytes())
    assert runs[0] == runs[1]


def test_rl_writes_the_policy_every_step_and_every_problem(tmp_path):
    policy, text = write_policy(tmp_path)
    out = folder(tmp_path / "out")
    seen = []
    with listening(lambda step, figures: seen.append(figures)):
        metrics = rl(rl_config(), out=out, policy=policy, text=text)
    assert len(seen) == 2 and all(figures["flops_utilisation"] > 0 for figures in seen)
    for when in ("pass_before", "pass_after"):
        assert metrics[when]["count"] == metrics["sampled"][when]["count"] == 200
    curves, problems = lines(out / "curves.jsonl"), lines(out / "problems.jsonl")
    assert [row["step"] for row in curves] == [0, 1]
    assert {"reward/mean", "reward/zero_variance_share", "policy/entropy", "response/tokens"} <= set(curves[0])
    assert len({row["prompt"] for row in problems}) == 200
    passed = sum(row["after"]["passed"] for row in problems)
    assert passed / 200 == metrics["pass_after"]["rate"]
    assert load_model(out).config == load_model(policy).config
    json.dumps(metrics, allow_nan=False)


def test_rl_raises_the_reward_of_what_is_rewarded(monkeypatch):
    """A reward a tiny random policy can learn in seconds: answers of one token, i.e. an immediate end."""
    monkeypatch.setattr(verifiers, "_registry", dict(verifiers._registry))
    register("short")(lambda problem, response: len(response) <= 1)
    task = TASK.model_copy(update={"verifier": "short"})
    torch.manual_seed(0)
    config = rl_config(tasks=(task,), steps=25, queries=8, group=8, updates=2, learning_rate=1e-2)
    trainer = Trainer(config, tiny_model(), tiny_tokenizer())
    figures = [trainer.step() for _ in range(25)]
    assert figures[-1]["reward/mean"] > figures[0]["reward/mean"] + 0.3
    updated = [row for row in figures if "policy/gap_max" in row]
    assert all(row["policy/gap_max"] < 1e-3 and row["policy/mask_fraction"] == 0.0 for row in updated)


def test_groups_of_equal_reward_update_nothing():
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = Trainer(rl_config(), model, tiny_tokenizer())
    figures = trainer.step()  # a random policy answers nothing right
    assert figures["reward/mean"] == 0 and figures["reward/zero_variance_share"] == 1
    assert "loss/policy" not in figures and trainer.update.count == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_raising_verifier_is_kept_with_its_sample_and_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(verifiers, "_registry", dict(verifiers._registry))

    @register("broken")
    def broken(problem, response):
        raise RuntimeError("no answer today")

    policy, text = write_policy(tmp_path)
    out = folder(tmp_path / "out")
    config = rl_config(tasks=(TASK.model_copy(update={"verifier": "broken"}),))
    metrics = rl(config, out=out, policy=policy, text=text)
    errors = lines(out / "verifier_errors.jsonl")
    assert metrics["verifier_errors"] == len(errors) == 2 * 4 * 4
    assert metrics["pass_after"]["rate"] == 0.0
    assert errors[0]["error"] == "RuntimeError: no answer today" and errors[0]["prompt"]


def test_a_nan_loss_or_gradient_stops_with_the_step_and_the_sample_and_leaves_the_weights():
    model = tiny_model()
    update = Updater(model, learning_rate=1e-3, warmup_steps=0, clip_norm=1.0, updates=4, decay_share=0.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weight = next(model.parameters())
    with pytest.raises(TrainingDiverged, match=r"step 3: loss is nan.*'1 \+ 1 ='"):
        update(weight.sum() * math.nan, 3, ["1 + 1 ="])
    with pytest.raises(TrainingDiverged, match="step 4: gradient norm is nan"):
        update(torch.where(weight < 1e9, weight, 0).sum() + (weight * 0).sqrt().sum(), 4, ["1 + 1 ="])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_policy_that_went_nan_stops_rl(monkeypatch):
    """NaN weights make every probability NaN; that must not end as a quiet zero reward."""
    model = tiny_model()
    with torch.no_grad():
        model.norm.weight.fill_(math.nan)
    with pytest.raises(TrainingDiverged, match="not finite"):
        Trainer(rl_config(), model, tiny_tokenizer()).step()


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_too_little_memory_names_the_settings_to_lower(tmp_path, monkeypatch, stage):
    def step(*given, **named):
        torch.empty(2**55)

    policy, text = write_policy(tmp_path)
    out, shards = folder(tmp_path / "out"), write_shards(tmp_path / "shards")
    monkeypatch.setattr("accordion.rl.sft.answer_loss", step)
    monkeypatch.setattr(Trainer, "step", step)
    if stage == "sft":
        with pytest.raises(OutOfMemory, match=r"main memory is full .*lower sft\.batch \(now 8\) or sft\.replay_batch"):
            sft(sft_config(), out=out, checkpoint=policy, text=text, shards=shards)
    else:
        with pytest.raises(OutOfMemory, match=r"lower rl\.queries \(now 4\) or rl\.group"):
            rl(rl_config(), out=out, policy=policy, text=text)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    policy, text = write_policy(tmp_path)
    model = tiny_model()
    save_model(type(model)(model.config.model_copy(update={"text_vocabulary": 40})), policy)
    with pytest.raises(DataError, match="vocabulary is 40"):
        rl(rl_config(), out=folder(tmp_path / "out"), policy=policy, text=text)


def test_the_global_generator_changes_nothing():
    rows = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        rows.append(Trainer(rl_config(), tiny_model(), tiny_tokenizer()).experience(0).rollouts.response)
    assert torch.equal(*rows)
