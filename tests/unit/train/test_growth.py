"""Larger members out of the smallest: what they compute at the moment of growth, what is copied, and a resumed run."""

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


def grown(model: Model, noise: float, monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setattr("accordion.train.growth.ROUTER_NOISE", noise)
    smallest = SubmodelSpec.nested(model.config, **SMALL)
    weights, _ = grow(model.state_dict(), {}, model.config, smallest, torch.Generator().manual_seed(2))
    larger = Model(model.config).eval()
    larger.load_state_dict(weights)
    return larger


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_grown_model_computes_what_the_smallest_did(model, monkeypatch, top_k):
    """Six experts are two copies of three, and layers that come in add nothing yet."""
    batch = small_batch()
    wanted = model(batch, [SubmodelSpec.nested(model.config, **SMALL)] * len(batch))
    larger = grown(model, 0.0, monkeypatch)
    given = larger(batch, [SubmodelSpec.nested(model.config, top_k=top_k)] * len(batch))
    for name, loss in wanted.means.items():
        assert float(given.means[name]) == pytest.approx(float(loss), abs=2e-5), name


def test_noise_parts_the_copies_and_spares_the_originals(model, monkeypatch):
    larger = grown(model, 0.02, monkeypatch).state_dict()
    router, before = larger["layers.0.moe.router"], model.state_dict()["layers.0.moe.router"]
    assert torch.equal(router[:3], before[:3]) and not torch.equal(router[3:], before[:3])
    assert (router[3:] - before[:3]).std() < 0.05 * before.std()
    assert torch.equal(larger["layers.0.moe.expert_in"][3:], model.state_dict()["layers.0.moe.expert_in"][:3])


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
