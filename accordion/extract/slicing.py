"""Cutting the weights of a sub-model out of the full model's."""

import re

import torch

from accordion.model import Model, SubmodelSpec
from accordion.model.files import load_weights

_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
_PER_EXPERT = frozenset({"moe.router", "moe.expert_in", "moe.expert_out", "moe.bias"})  # first dimension: expert


def cut(model: Model, spec: SubmodelSpec) -> Model:
    """The plain model that `spec` selects from `model`, in evaluation mode, with weights of its own.

    Its logits are those of `model` run with `spec`: a layer left out was an identity, an expert left out was
    never chosen, so nothing is approximated.

    Raises:
        ConfigError: `model` cannot run `spec`.
    """
    part = Model(spec.config(model.config))
    weights = model.state_dict()
    tensors = {name: _select(name, weights, spec) for name in part.state_dict()}
    load_weights(part, tensors, where="cut")
    return part.eval()


def _select(name: str, weights: dict[str, torch.Tensor], spec: SubmodelSpec) -> torch.Tensor:
    match = _LAYER.fullmatch(name)
    if match is None:
        return weights[name]
    index, rest = int(match[1]), match[2]
    tensor = weights[f"layers.{spec.layers[index]}.{rest}"]
    return tensor[list(spec.experts[index])] if rest in _PER_EXPERT else tensor
