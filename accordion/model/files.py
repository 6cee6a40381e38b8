"""A model on disk: `model.safetensors` and `config.json`, written whole, checked name by name when read."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from accordion.config.pretrain import ModelConfig
from accordion.errors import ArtifactError, ConfigError
from accordion.model.model import Model
from accordion.store.atomic import atomic_write

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def save_model(model: Model, folder: Path) -> None:
    """Write `model` into an existing folder."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    atomic_write(folder / CONFIG, model.config.model_dump_json(indent=1) + "\n")
    atomic_write(folder / WEIGHTS, save(tensors))


def load_model(folder: Path) -> Model:
    """Read what `save_model` wrote, in evaluation mode.

    Raises:
        ArtifactError: a file is missing or unreadable, or a tensor's name, shape or type does not fit the config.
    """
    model = Model(read_config(folder))
    load_weights(model, read_tensors(Path(folder) / WEIGHTS), where=str(Path(folder) / WEIGHTS))
    return model.eval()


def read_config(folder: Path) -> ModelConfig:
    """The configuration of a saved model.

    Raises:
        ArtifactError: it is missing or unreadable.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise ArtifactError(f"{path}: missing; it is written beside the weights, restore the whole folder")
    try:
        return ModelConfig.from_json(path.read_text())
    except ConfigError as error:
        raise ArtifactError(f"{path}: {error}; restore the folder or train again with this version") from None


def weights_size(config: ModelConfig) -> int:
    """Bytes of the `model.safetensors` of a model, of which no weight is made.

    That format (huggingface.co/docs/safetensors): eight bytes, a JSON header filled up with spaces to a multiple of
    eight, the tensors one after the other, those of wider types first, then by name.
    """
    with torch.device("meta"):
        tensors = Model(config).state_dict()
    header, end = {}, 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + length + -length % 8 + end


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: missing; restore the whole folder")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ArtifactError(f"{path}: not a whole safetensors file ({error}); restore the folder") from None


def load_weights(model: Model, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Copy `tensors` into `model` after `check_weights`."""
    wanted = model.state_dict()
    check_weights(wanted, tensors, where=where)
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])


def check_weights(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Check that every name, shape and type of `tensors` is the one of `wanted`.

    Raises:
        ArtifactError: lists each tensor that is missing, extra, or of another shape or type.
    """
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in wanted]
    for name, tensor in wanted.items():
        given = tensors.get(name)
        if given is not None and (given.shape, given.dtype) != (tensor.shape, tensor.dtype):
            problems.append(
                f"{name} is {tuple(given.shape)} {given.dtype}, the config wants {tuple(tensor.shape)} {tensor.dtype}"
            )
    if problems:
        raise ArtifactError(f"{where}: {'; '.join(problems[:10])}; the weights and config.json do not belong together")
