"""How larger members grow out of the smallest one, once it has been trained alone.

New experts begin as copies (sparse upcycling, arXiv 2212.05055) of which half the units keep their random start, so
that the copies part (Drop-Upcycling, arXiv 2502.19261); their router rows are copies with noise. What a new layer adds
to the residual stream begins at zero (as in Net2Net, arXiv 1511.05641), and its inside at random.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from accordion.config.pretrain import ModelConfig
from accordion.model import SubmodelSpec

ROUTER_NOISE = 0.3  # of a router row's own deviation
FRESH_UNITS = 0.5  # share of a copied expert's units that keep their random start
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

    Args:
        smallest: what was trained so far.
        generator: of what differs between an expert and its copy.
    """
    grown, state = dict(weights), dict(optimizer)
    for layer in range(config.layers):
        if layer in smallest.layers:
            kept = smallest.experts[smallest.layers.index(layer)]
            _copy_experts(f"layers.{layer}.moe.", kept, grown, state, generator)
        else:
            silent = {f"layers.{layer}.{name}" for name in ADDED} & grown.keys()
            grown |= {name: torch.zeros_like(grown[name]) for name in silent}
    return grown, state


def _copy_experts(
    prefix: str, kept: tuple[int, ...], weights: Tensors, state: Tensors, generator: torch.Generator
) -> None:
    """Make every expert that is not among `kept` a copy of one that is, in turn; `weights` and `state` are changed."""
    router, first, second = (weights[prefix + name] for name in ("router", "expert_in", "expert_out"))
    new = [expert for expert in range(len(router)) if expert not in kept]
    origin = list(range(len(router)))
    for place, expert in enumerate(new):
        origin[expert] = kept[place % len(kept)]
    for name in ("router", "bias", "expert_in", "expert_out"):
        weights[prefix + name] = weights[prefix + name][origin]
        moments = [key for key, value in state.items() if key.startswith(f"{prefix}{name}/") and value.ndim]
        state |= {key: state[key][origin] for key in moments}
    noise = torch.randn(router.shape, generator=generator).to(router) * router.std(1, keepdim=True) * ROUTER_NOISE
    weights[prefix + "router"][new] += noise[new]
    units = second.shape[1]
    for expert in new:
        fresh = torch.randperm(units, generator=generator)[: round(units * FRESH_UNITS)].to(second.device)
        columns = torch.cat((fresh, fresh + units))  # of gate and up
        weights[prefix + "expert_in"][expert][:, columns] = first[expert][:, columns]
        weights[prefix + "expert_out"][expert][fresh] = second[expert][fresh]
