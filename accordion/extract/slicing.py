"""Cutting the weights of a sub-model out of the full model's."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from accordion.errors import ArtifactError
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
    load_weights(part, _select(weights, weights.__getitem__, spec), where="cut")
    return part.eval()


def cut_file(path: Path, spec: SubmodelSpec) -> dict[str, Tensor]:
    """The tensors that `spec` selects from a safetensors file; layers that it leaves out are not read.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: missing; restore the whole folder")
    try:
        with safe_open(path, framework="pt") as file:
            return _select(file.keys(), file.get_tensor, spec)
    except SafetensorError as error:
        raise ArtifactError(f"{path}: not a whole safetensors file ({error}); restore the folder") from None


def _select(names: Iterable[str], read: Callable[[str], Tensor], spec: SubmodelSpec) -> dict[str, Tensor]:
    """Name in the sub-model -> tensor."""
    place = {layer: index for index, layer in enumerate(spec.layers)}
    found: dict[str, Tensor] = {}
    for name in names:
        match = _LAYER.fullmatch(name)
        if match is None:
            found[name] = read(name)
        elif (index := place.get(int(match[1]))) is not None:
            found[f"layers.{index}.{match[2]}"] = _experts(read(name), match[2], spec.experts[index])
    return found


def _experts(tensor: Tensor, name: str, kept: tuple[int, ...]) -> Tensor:
    if name not in _PER_EXPERT or len(kept) == len(tensor):
        return tensor
    if kept == tuple(range(len(kept))):
        return tensor[: len(kept)]
    return tensor.index_select(0, torch.tensor(kept, device=tensor.device))
