"""Larger members out of the smallest: what they compute at the moment of growth, and what is copied."""

import pytest
import torch

from accordion.model import Model, SubmodelSpec
from accordion.train.growth import grow
from tests.unit.model.synthetic import small_batch, small_config

SMALL = {"layers": 4, "experts": 3, "top_k": 1}


@pytest.fixture
def model() -> Model:
    model = Model(small_config(), seed=0).eval()
    with torch.no_grad():
        for _, router in model.layers.routers():
            router.bias.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    return model


def grown(model: Model, monkeypatch: pytest.MonkeyPatch, noise: float = 0.3, fresh: float = 0.5) -> Model:
    monkeypatch.setattr("accordion.train.growth.ROUTER_NOISE", noise)
    monkeypatch.setattr("accordion.train.growth.FRESH_UNITS", fresh)
    smallest = SubmodelSpec.nested(model.config, **SMALL)
    weights, _ = grow(model.state_dict(), {}, model.config, smallest, torch.Generator().manual_seed(2))
    larger = Model(model.config).eval()
    larger.load_state_dict(weights)
    return larger


@pytest.mark.parametrize("top_k", [1, 2])
def test_whole_copies_and_layers_that_come_in_compute_what_the_smallest_did(model, monkeypatch, top_k):
    """Six experts are two copies of three, and new layers add nothing yet."""
    batch = small_batch()
    wanted = model(batch, [SubmodelSpec.nested(model.config, **SMALL)] * len(batch))
    larger = grown(model, monkeypatch, noise=0.0, fresh=0.0)
    given = larger(batch, [SubmodelSpec.nested(model.config, top_k=top_k)] * len(batch))
    for name, loss in wanted.means.items():
        assert given.means[name].item() == pytest.approx(loss.item(), abs=2e-5), name


def test_copies_part_from_the_originals_which_stay(model, monkeypatch):
    larger, before = grown(model, monkeypatch).state_dict(), model.state_dict()
    router, was = larger["layers.0.moe.router"], before["layers.0.moe.router"]
    assert torch.equal(router[:3], was[:3]) and not torch.equal(router[3:], was[:3])
    assert 0.1 < (router[3:] - was[:3]).std() / was.std() < 0.6
    for name, axis in (("expert_in", 1), ("expert_out", 2)):
        after, start = (state[f"layers.0.moe.{name}"] for state in (larger, before))
        assert torch.equal(after[:3], start[:3])
        copied, fresh = ((after[3:] == source).all(axis) for source in (start[:3], start[3:]))  # by unit
        assert copied.sum(1).tolist() == fresh.sum(1).tolist() == [copied.shape[1] // 2] * 3
        assert (copied ^ fresh).all()


def test_moments_go_with_the_experts_and_what_is_given_stays(model):
    smallest = SubmodelSpec.nested(model.config, **SMALL)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    key = "layers.0.moe.expert_in/exp_avg"
    optimizer = {
        key: torch.randn_like(weights["layers.0.moe.expert_in"]),
        "layers.0.moe.expert_in/step": torch.tensor(3.0),
    }
    given = optimizer[key].clone()
    _, state = grow(weights, optimizer, model.config, smallest, torch.Generator())
    assert torch.equal(state[key][3:], given[:3]) and torch.equal(optimizer[key], given)
    assert float(state["layers.0.moe.expert_in/step"]) == 3
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
