"""The Megatron-Core backbone is the plain one: logits, losses, gradients and weights, on one rank and on several."""

import pytest
import torch
import torch.distributed as dist

from accordion.config.pretrain import ParallelConfig
from accordion.model import Model
from accordion.model.isolation import PARTS
from accordion.train.megatron import groups
from accordion.train.megatron.backbone import MegatronBackbone
from accordion.train.megatron.convert import canonical_shapes, gather, scatter
from tests.unit.model.synthetic import small_batch, small_config
from tests.unit.train.megatron_parity import compare, draws, models


@pytest.fixture(scope="module", autouse=True)
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    groups.join(ParallelConfig())
    yield
    groups.leave()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both():
    return models(small_config(), ParallelConfig())


@pytest.mark.parametrize("name", list(draws(small_config())))
def test_every_elastic_configuration_gives_the_same_logits_losses_and_gradients(both, name):
    plain, other = both
    compare(plain, other, small_batch(), draws(small_config())[name])
    for (_, mine), (_, theirs) in zip(plain.layers.routers(), other.layers.routers(), strict=True):
        assert torch.equal(mine.load, theirs.load)
        torch.testing.assert_close(mine.expected, theirs.expected)
        mine.balance(0.01)
        theirs.balance(0.01)
        assert torch.equal(mine.bias, theirs.bias)


def test_experts_parted_by_modality_and_layers_of_different_sizes():
    isolated = small_config(experts=2 * PARTS, top_k=2, isolated=True)
    compare(*models(isolated, ParallelConfig()), small_batch(), None)
    uneven = small_config().model_copy(update={"experts": (6, 4, 5, 6, 3), "top_k": (3, 1, 2, 3, 2)})
    compare(*models(uneven, ParallelConfig()), small_batch(), None)
    unshared = small_config(shared_hidden=0)
    compare(*models(unshared, ParallelConfig()), small_batch(), draws(unshared)["mixed"])


def test_a_skipped_layer_is_not_run_and_a_masked_expert_gets_no_tokens(both):
    _, other = both
    called = []
    hooks = [layer.mlp.register_forward_hook(lambda *_, n=layer.layer_number - 1: called.append(n))
             for layer in other.layers.layers]  # fmt: skip
    spec = draws(small_config())["depth"][0]
    other.outputs(small_batch(), [spec] * 4)
    assert called == list(spec.layers)
    for hook in hooks:
        hook.remove()
    width = draws(small_config())["width"]
    for _, router in other.layers.routers():
        router.balance(0.0)
        router.bias.fill_(5.0)[:3] = -5.0  # the biases of the masked ones are far above
    other.outputs(small_batch(), width)
    for _, router in other.layers.routers():
        assert router.load[:3].sum() > 0 and not router.load[3:].any() and not router.expected[3:].any()


def test_weights_go_to_megatron_and_back_exactly():
    config = small_config()
    plain = Model(config, seed=7)
    other = Model(config, backbone=MegatronBackbone(config, ParallelConfig()))
    scatter(other, plain.state_dict())
    back = gather(other)
    assert {name: tensor.shape for name, tensor in back.items()} == canonical_shapes(config)
    assert all(torch.equal(tensor, back[name]) for name, tensor in plain.state_dict().items())
