"""The GPU computes what the CPU does: logits, losses, gradients, elastic rows, a step in bfloat16, a resume."""

from functools import partial

import pytest
import torch

from accordion.config.pretrain import ModelShape, PretrainConfig, model_config
from accordion.data.batch import COLUMNS
from accordion.model import Model, SubmodelSpec
from accordion.model.sampler import Draw
from accordion.study.data import Resident, ResidentLoader
from accordion.train.loop import Trainer
from tests.unit.model.synthetic import SIZES, small_batch, small_config

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU that torch can use; run `pytest tests/gpu` on a machine with one"
)
MEMBERS = ({}, {"layers": 3}, {"experts": 4}, {"top_k": 1}, {"layers": 4, "experts": 4, "top_k": 2})


def model(**changes) -> Model:
    return Model(small_config(hidden=32, expert_hidden=16, experts=8, **changes), seed=1)


def drawn(config) -> Draw:
    return Draw([SubmodelSpec.nested(config, **member) for member in MEMBERS], (1, 4), 0.5)


def test_logits_and_gradients_in_float32_are_those_of_the_cpu():
    ours, theirs, batch = model().train(), model().train().cuda(), small_batch(rows=5)
    left, right = ours.outputs(batch), theirs.outputs(batch.to("cuda"))
    for name in ("text", "vision", "audio", "mtp"):
        torch.testing.assert_close(getattr(right, name).cpu(), getattr(left, name), atol=2e-4, rtol=1e-4)
    totals = [sum(m(b, drawn(m.config)).aims.values()) for m, b in ((ours, batch), (theirs, batch.to("cuda")))]
    torch.testing.assert_close(totals[1].cpu(), totals[0], atol=1e-4, rtol=1e-5)
    for total in totals:
        total.backward()
    gradients = {name: weight.grad for name, weight in ours.named_parameters()}
    for name, weight in theirs.named_parameters():
        torch.testing.assert_close(weight.grad.cpu(), gradients[name], atol=1e-4, rtol=1e-3, msg=partial(_at, name))
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        assert (mine.moe.load - other.moe.load.cpu()).abs().sum() <= 4  # ties may fall the other way
        torch.testing.assert_close(mine.moe.expected, other.moe.expected.cpu())


def _at(name: str, message: str) -> str:
    return f"{name}: {message}"


def test_bfloat16_is_near_float32_with_and_without_sub_models():
    there, batch = model().train().cuda(), small_batch(rows=5).to("cuda")
    for draw in (None, drawn(there.config)):
        plain = there(batch, draw).means
        with torch.autocast("cuda", torch.bfloat16):
            mixed = there(batch, draw).means
        for name, loss in plain.items():
            assert float(mixed[name].detach()) == pytest.approx(float(loss.detach()), rel=0.02), name
    sum(mixed.values()).backward()
    assert all(torch.isfinite(weight.grad).all() for weight in there.parameters() if weight.grad is not None)


def trainer(**changes) -> Trainer:
    shape = ModelShape(hidden=16, layers=4, heads=2, experts=4, top_k=2, expert_hidden=8, shared_hidden=8)
    config = PretrainConfig.parse(
        {
            "model": shape.model_dump(),
            "optimizer": {"warmup_steps": 2},
            "steps": 40,
            "batch": 4,
            "precision": "bfloat16",
        }
        | changes
    )
    batch = small_batch(rows=24)
    data = Resident({name: getattr(batch, name).cuda() for name in COLUMNS})  # no shards: their readers are not needed
    loader = ResidentLoader(data, batch=config.batch, seed=config.seed)
    return Trainer(config, model_config(config, SIZES), loader, "cuda")


@pytest.mark.parametrize("subsets", ["nested", "random", "ranked"])
def test_elastic_training_in_bfloat16_learns_and_resumes(tmp_path, subsets):
    elastic = {"layers": (3, 4), "experts": (2, 4), "top_k": (1, 2), "distil_share": 1.0, "subsets": subsets}
    learner = trainer(elastic=elastic)
    figures = [learner.step() for _ in range(40)]
    assert figures[-1]["loss/text"] < figures[0]["loss/text"]
    first, second = trainer(elastic=elastic), trainer(elastic=elastic)
    for _ in range(6):
        first.step()
    folder = tmp_path / "snapshot"
    folder.mkdir()
    first.snapshot().write(folder)
    second.restore(first.snapshot().read(folder))
    assert second.step()["loss/total"] == pytest.approx(first.step()["loss/total"], rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flex_attention_gives_the_losses_and_gradients_of_the_mask(dtype):
    """Also under elastic rows, whose number changes from layer to layer, and for a length that is no power of two."""
    batch = small_batch(rows=5, length=150, seeing=True).to("cuda")
    found = []
    for flex in (0, 1):
        there = model(vit_layers=1).train().cuda()
        there.flex = flex
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            total = sum(there(batch, drawn(there.config)).aims.values())
        total.backward()
        found.append((total.detach(), there.layers[0].attention.qkv.weight.grad))
    bound = 1e-3 if dtype == torch.float32 else 3e-2
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(theirs, mine, atol=bound, rtol=bound)
