"""Which CUDA calls of Megatron-Core the redirect stands for, and that nobody else sees it."""

import sys
from types import SimpleNamespace

import pytest
import torch

from accordion.train.megatron import cpu, library

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the redirect is for machines without a GPU")
STANDS_FOR = {
    "Event", "Stream", "current_device", "current_stream", "default_stream", "device_count", "empty_cache",
    "get_rng_state", "manual_seed", "set_rng_state", "stream", "synchronize",
}  # fmt: skip


def test_it_stands_for_these_calls_and_leaves_the_rest_to_torch():
    cuda = cpu.Cuda()
    assert {name for name in vars(cpu.Cuda) if not name.startswith("_")} == STANDS_FOR
    assert cuda.current_device() == torch.device("cpu") and cuda.device_count() == 1
    state = cuda.get_rng_state()
    cuda.manual_seed(5)
    first = torch.rand(3)
    cuda.manual_seed(5)
    assert torch.equal(torch.rand(3), first)
    cuda.set_rng_state(state)
    with cuda.stream(cuda.current_stream()):
        cuda.current_stream().wait_stream(cuda.Stream())
        cuda.current_stream().record_event().synchronize()
    cuda.synchronize()
    cuda.empty_cache()
    assert cuda.is_available is torch.cuda.is_available


def test_megatrons_modules_see_it_and_torch_stays_as_it_is():
    mappings = sys.modules["megatron.core.tensor_parallel.mappings"]
    assert isinstance(mappings.torch, cpu.Torch) and mappings.torch.Tensor is torch.Tensor
    assert not isinstance(torch.cuda, cpu.Cuda) and isinstance(library.parallel_state.torch, cpu.Torch)
    with pytest.raises((AssertionError, RuntimeError)):
        torch.cuda.current_device()


def test_device_names_written_into_the_optimizer_read_as_the_cpus():
    norm = sys.modules["megatron.core.optimizer.clip_grads"].get_grad_norm_fp32
    assert "cuda" not in norm.__code__.co_consts and "cpu" in norm.__code__.co_consts
    build = library.get_megatron_optimizer.__globals__["DistributedOptimizer"]._build_model_and_main_param_groups
    names = [name for name in build.__func__.__code__.co_consts if isinstance(name, str)]
    assert "torch.FloatTensor" in names and "torch.cuda.FloatTensor" not in names


def test_counts_become_arrays_where_the_dispatcher_wants_arrays():
    moved = sys.modules["megatron.core.transformer.moe.token_dispatcher"].maybe_move_tensor_to_cpu
    counts = torch.tensor([1, 2])
    assert moved(counts, as_numpy=True).tolist() == [1, 2] and moved(counts) is counts
    assert moved(nothing := SimpleNamespace(), as_numpy=True) is nothing
