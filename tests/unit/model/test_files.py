"""A model on disk: what is read back is what was written, and weights of another form are refused by name."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from accordion.errors import ArtifactError
from accordion.model import Model, load_model, save_model
from accordion.model.files import WEIGHTS
from tests.unit.model.synthetic import small_config

NAME = "layers.0.moe.router"


def test_a_model_is_read_back_as_it_was(tmp_path):
    model = Model(small_config(), seed=3)
    save_model(model, tmp_path)
    found = load_model(tmp_path)
    assert found.config == model.config and not found.training
    held = found.state_dict()
    assert all(torch.equal(tensor, held[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda tensors: tensors.pop(NAME), f"{NAME} is missing"),
        (lambda tensors: tensors.update({"layers.0.moe.other": torch.ones(2)}), "layers.0.moe.other is unknown"),
        (lambda tensors: tensors.update({NAME: tensors[NAME][:-1]}), rf"{NAME} is \(\d+, \d+\) torch.float32"),
        (lambda tensors: tensors.update({NAME: tensors[NAME].T.contiguous()}), rf"{NAME} is \(\d+, \d+\)"),
        (
            lambda tensors: tensors.update({NAME: tensors[NAME].half()}),
            rf"{NAME} is .* torch.float16, the config wants",
        ),
        (lambda tensors: tensors.update({NAME: tensors[NAME].double()}), rf"{NAME} is .* torch.float64"),
    ],
    ids=["missing", "extra", "cut", "turned", "half", "double"],
)
def test_weights_of_another_form_are_refused(tmp_path, change, why):
    save_model(Model(small_config(), seed=3), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    change(tensors)
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ArtifactError, match=rf"{WEIGHTS}: {why}.*do not belong together"):
        load_model(tmp_path)


def test_half_a_file_is_refused(tmp_path):
    save_model(Model(small_config(), seed=3), tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="not a whole safetensors file"):
        load_model(tmp_path)
