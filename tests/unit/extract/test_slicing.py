"""An extracted member equals the supernet run as that member, stands alone, and impossible ones are refused."""

import copy
import dataclasses
import math

import pytest
import torch

from accordion.config.extract import ExtractConfig
from accordion.config.pretrain import MemberSpec
from accordion.errors import ArtifactError, ConfigError, DataError
from accordion.extract import cut, extract, extract_member
from accordion.extract.family import logit_difference
from accordion.model import Model, SubmodelSpec, load_model, save_model
from tests.unit.model.synthetic import small_batch, small_config
from tests.unit.train.synthetic_shards import write_shards

SPECS = {
    "shallow": {"layers": 3},
    "narrow": {"experts": 3},
    "sparse": {"top_k": 1},
    "all three": {"layers": 4, "experts": 4, "top_k": 2},
}


@pytest.fixture(scope="module")
def model():
    return Model(small_config(), seed=1).eval()


@pytest.mark.parametrize("name", SPECS)
def test_logits_equal_those_of_the_masked_full_model(model, name):
    spec = SubmodelSpec.nested(model.config, **SPECS[name])
    assert logit_difference(model, spec, cut(model, spec), small_batch(seed=3)) <= 1e-5


def test_any_subset_of_experts_and_of_layers_can_be_cut(model):
    spec = SubmodelSpec((0, 2, 3, 4), ((1, 4), (0, 2, 5), (3,), (0, 1, 2, 3, 4, 5)), (2, 1, 1, 3))
    assert logit_difference(model, spec, cut(model, spec), small_batch(seed=4)) <= 1e-5


def test_the_comparison_sees_a_changed_weight(model):
    spec = SubmodelSpec.nested(model.config, layers=3)
    part = cut(model, spec)
    with torch.no_grad():
        part.layers[1].moe.expert_out[0] += 0.1
    assert logit_difference(model, spec, part, small_batch(seed=3)) > 1e-4


def test_one_nan_in_the_bias_of_a_head_is_no_exactness(model, tmp_path):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.heads.vision.bias[0] = math.nan  # text, which is compared first, stays whole
    (tmp_path / "policy").mkdir()
    save_model(broken, tmp_path / "policy")
    config = ExtractConfig(members=(MemberSpec(name="tiny", layers=3, experts=4, top_k=2),))
    with pytest.raises(ArtifactError, match=r"tiny: its vision logits.* NaN or infinity"):
        extract(config, out=tmp_path, policy=tmp_path / "policy", shards=write_shards(tmp_path / "shards"))


def test_a_nan_that_only_the_full_model_uses_is_refused_too(model, tmp_path):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.layers[1].attention.out.weight[0] = math.nan  # of a layer that the member leaves out
    (tmp_path / "policy").mkdir()
    save_model(broken, tmp_path / "policy")
    config = ExtractConfig(members=(MemberSpec(name="tiny", layers=3, experts=4, top_k=2),))
    assert 1 not in SubmodelSpec.nested(model.config, layers=3).layers
    with pytest.raises(ArtifactError, match="tiny: a figure is no finite number"):
        extract(config, out=tmp_path, policy=tmp_path / "policy", shards=write_shards(tmp_path / "shards"))


def test_member_on_disk_is_a_model_of_its_own(model, tmp_path):
    policy = tmp_path / "policy"
    policy.mkdir()
    save_model(model, policy)
    spec = SubmodelSpec.nested(model.config, **SPECS["all three"])
    extract_member(policy, spec, tmp_path / "member")
    part = load_model(tmp_path / "member")
    assert part.config.experts == (4,) * 4
    assert part.config.top_k == (2,) * 4
    assert sum(p.numel() for p in part.parameters()) < sum(p.numel() for p in model.parameters())
    assert logit_difference(model, spec, part, small_batch(seed=5)) <= 1e-5


def test_an_existing_folder_is_not_written_to(model, tmp_path):
    with pytest.raises(DataError, match="exists; name a new folder"):
        extract_member(tmp_path, SubmodelSpec.full(model.config), tmp_path)


def test_a_spec_without_an_audio_layer_is_refused(model):
    spec = dataclasses.replace(
        SubmodelSpec.full(model.config), layers=(0, 1, 2, 3), experts=((0, 1, 2),) * 4, top_k=(1,) * 4
    )
    with pytest.raises(ConfigError, match=r"layers \[4\] are missing"):
        cut(model, spec)
