"""A member in the Hugging Face layout: transformers reads it without us and gives the same logits."""

import pytest
import torch

from accordion.errors import ConfigError
from accordion.extract import cut
from accordion.extract.huggingface import obstacle, write_huggingface
from accordion.model import Model, SubmodelSpec
from tests.unit.model.synthetic import small_config


@pytest.fixture(scope="module")
def model():
    made = Model(small_config(), seed=1).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # biases and norms that do nothing would hide a wrong name
        for layer in made.layers:
            layer.moe.bias.normal_(0, 0.2, generator=generator)
            for weight in (layer.attention.norm_q.weight, layer.attention.norm_k.weight, layer.norm_moe.weight):
                weight.uniform_(0.5, 1.5, generator=generator)
    return made


@pytest.mark.parametrize("kept", [{}, {"layers": 3, "experts": 4, "top_k": 2}])
def test_transformers_gives_the_same_logits(model, tmp_path, kept):
    from transformers import AutoModelForCausalLM

    part = cut(model, SubmodelSpec.nested(model.config, **kept))
    write_huggingface(part, tmp_path, context=64)
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    tokens = torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        ours = part.text_logits(part.hidden(tokens, torch.ones_like(tokens, dtype=torch.bool)))
        torch.testing.assert_close(theirs(tokens).logits, ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"shared_hidden": 0}, "its shared expert"),
        ({"shared_hidden": 12}, "its shared expert"),
    ],
)
def test_a_model_without_an_equivalent_is_refused(tmp_path, changes, why):
    odd = Model(small_config(**changes))
    assert why in str(obstacle(odd.config))
    with pytest.raises(ConfigError, match=f"no Hugging Face layout for this model: {why}"):
        write_huggingface(odd, tmp_path, context=64)
    assert not list(tmp_path.iterdir())


def test_members_whose_layers_differ_have_no_equivalent(model):
    spec = SubmodelSpec((0, 3, 4), ((0, 1), (0, 1, 2), (0, 1)), (1, 1, 1))
    assert "its layers differ" in str(obstacle(cut(model, spec).config))
