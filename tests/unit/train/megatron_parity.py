"""Compares a Megatron-Core backbone with the plain one on every rank of a group: what the tests of it run."""

import torch
from torch import Tensor

from accordion.config.pretrain import ModelConfig, ParallelConfig
from accordion.data.batch import Batch
from accordion.model import Model, SubmodelSpec
from accordion.model.sampler import Draw
from accordion.train.megatron.backbone import MegatronBackbone
from accordion.train.megatron.convert import join_all, scatter


def models(config: ModelConfig, parallel: ParallelConfig) -> tuple[Model, Model]:
    """A plain model with lively biases, and one with a Megatron-Core backbone and the same weights."""
    plain = Model(config, seed=1).train()
    generator = torch.Generator().manual_seed(2)
    for _, router in plain.layers.routers():
        router.bias.normal_(0, 0.1, generator=generator)
    other = Model(config, backbone=MegatronBackbone(config, parallel)).train()
    scatter(other, plain.state_dict())
    return plain, other


def draws(config: ModelConfig, rows: int = 4) -> dict[str, list[SubmodelSpec] | Draw | None]:
    """Every elastic configuration, by name."""
    full = SubmodelSpec.full(config)

    def nested(**kept: int) -> SubmodelSpec:
        return SubmodelSpec.nested(config, **kept)

    ranked = config.model_copy(update={"expert_order": ((5, 1, 3, 0, 2, 4),) * config.layers})
    generator = torch.Generator().manual_seed(3)
    anything = [tuple(sorted(torch.randperm(6, generator=generator)[:3].tolist())) for _ in range(config.layers)]
    random = SubmodelSpec(tuple(range(config.layers)), tuple(anything), (2,) * config.layers)
    by_layer = SubmodelSpec(full.layers, full.experts, tuple(1 + layer % 3 for layer in range(config.layers)))
    return {
        "full": None,
        "depth": [nested(layers=3)] * rows,
        "width": [nested(experts=3)] * rows,
        "ranked": [SubmodelSpec.nested(ranked, experts=3)] * rows,
        "random": [random] * rows,
        "top-k": [nested(top_k=1)] * rows,
        "top-k by layer": [by_layer] * rows,
        "mixed": [full, nested(layers=3, experts=3, top_k=1), random, by_layer],
        "taught": Draw([full, nested(layers=3), random, by_layer], twins=(1, 3), weight=0.5),
    }


def compare(plain: Model, other: Model, batch: Batch, draw: list[SubmodelSpec] | Draw | None) -> None:
    """Same logits, same loss, same gradients, same counts of assignments; same state when the ranks share a batch."""
    if not isinstance(draw, Draw):
        with torch.no_grad():
            ours, theirs = plain.eval().outputs(batch, draw), other.eval().outputs(batch, draw)
        for name in ("text", "vision", "audio"):
            torch.testing.assert_close(getattr(theirs, name), getattr(ours, name), rtol=1e-4, atol=1e-5)
    totals = []
    for model in (plain.train(), other.train()):
        model.zero_grad(set_to_none=True)
        total = torch.stack(list(model(batch, draw).aims.values())).sum()
        total.backward()
        totals.append(total.detach())
    torch.testing.assert_close(totals[1], totals[0], rtol=1e-5, atol=1e-6)
    for name, gradient in canonical_gradients(other).items():
        weight = plain.get_parameter(name)
        wanted = torch.zeros_like(weight) if weight.grad is None else weight.grad
        torch.testing.assert_close(
            gradient, wanted, rtol=1e-3, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def canonical_gradients(model: Model) -> dict[str, Tensor]:
    """Gradients under the names and in the shapes of the plain model, zero where there is none."""
    return join_all(
        model,
        {name: torch.zeros_like(w) if w.grad is None else w.grad for name, w in model.named_parameters()},
    )
