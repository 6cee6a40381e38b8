"""How larger members grow out of the smallest one, once it has been trained alone: at first they compute what it does.

Experts are copied as in Net2Net (arXiv 1511.05641) and sparse upcycling (arXiv 2212.05055), with a little noise on the
routers, so that the copies part; what a new layer adds to the residual stream begins at zero, and its inside at random.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from accordion.config.pretrain import ModelConfig
from accordion.model import SubmodelSpec

ROUTER_NOISE = 0.02  # of a router row's own deviation
BY_EXPERT = ("router", "bias", "expert_in", "expert_out")
ADDED = ("attention.out.weight", "moe.expert_out", "moe.shared_out.weight")  # what a layer adds, by its last product
Tensors = dict[str, Tensor]


def grow(
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    config: ModelConfig,
    smallest: SubmodelSpec,
    generator: torch.Generator,
) -> tuple[Tensors, Tensors]:
    """The canonical weights and AdamW's moments (`name/field`) after growth; what is given is not altered.

    Expert e of a layer that `smallest` keeps becomes a copy of its expert e mod n, of n in their order.

    Args:
        smallest: what was trained so far.
        generator: of the noise.
    """
    grown, state = dict(weights), dict(optimizer)
    for layer in range(config.layers):
        if layer not in smallest.layers:
            for name in ADDED:
                key = f"layers.{layer}.{name}"
                if key in grown:
                    grown[key] = torch.zeros_like(grown[key])
            continue
        kept = smallest.experts[smallest.layers.index(layer)]
        origin = _origins(kept, config.experts[layer])
        for name in BY_EXPERT:
            key = f"layers.{layer}.moe.{name}"
            grown[key] = grown[key][origin]
            for field in [field for field in state if field.startswith(f"{key}/") and state[field].ndim]:
                state[field] = state[field][origin]
        key = f"layers.{layer}.moe.router"
        rows = grown[key]
        noise = torch.randn(rows.shape, generator=generator).to(rows) * rows.std(1, keepdim=True) * ROUTER_NOISE
        new = torch.tensor([expert not in kept for expert in range(len(rows))], device=rows.device)
        grown[key] = rows + noise * new.unsqueeze(1)
    return grown, state


def _origins(kept: tuple[int, ...], count: int) -> list[int]:
    """For each of `count` experts, the kept one that it begins as."""
    new = iter(range(count))
    return [expert if expert in kept else kept[next(new) % len(kept)] for expert in range(count)]
