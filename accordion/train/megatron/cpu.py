"""Megatron-Core 0.16 without a GPU: the CUDA calls in its code are redirected, for its modules alone.

Megatron-Core names CUDA outright. Two things stand in for it here, and only where torch finds no GPU:
its modules see a `torch` whose `cuda` is the stand-in below (torch itself stays as it is for everybody else), and
the device and tensor-type names written into its functions read as those of the CPU.
"""

import contextlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch

PACKAGE = "megatron.core"
NAMES = {"cuda": "cpu", "torch.cuda.FloatTensor": "torch.FloatTensor"}
"""Constants in Megatron's functions, and what they read as."""

RENAMED = ("optimizer.optimizer", "optimizer.distrib_optimizer", "optimizer.clip_grads", "utils")
"""Modules of the package whose functions hold such constants on the way of this engine."""


class Immediate:
    """Work on a CPU is done when it was called: nothing to order, nothing to wait for."""

    def wait_stream(self, other: Any) -> None:
        """Do nothing."""

    def wait_event(self, event: Any) -> None:
        """Do nothing."""

    def synchronize(self) -> None:
        """Do nothing."""

    def record_event(self, event: Any = None) -> "Immediate":
        """An event that has happened."""
        return self


class Cuda(types.ModuleType):
    """What Megatron's modules find as `torch.cuda`: each call below, and torch's own for the rest."""

    Stream = Event = Immediate

    def __init__(self) -> None:
        super().__init__("torch.cuda")
        self._only = Immediate()
        self.random = self  # where Megatron asks for the state of the generator too

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)

    def current_device(self) -> torch.device:
        """The CPU, as the device of the buffers of its collectives."""
        return torch.device("cpu")

    def device_count(self) -> int:
        """One."""
        return 1

    def current_stream(self, device: Any = None) -> Immediate:
        """The only one."""
        return self._only

    default_stream = current_stream

    @contextlib.contextmanager
    def stream(self, stream: Immediate) -> Iterator[None]:
        """The block itself."""
        yield

    def synchronize(self, device: Any = None) -> None:
        """Do nothing."""

    def empty_cache(self) -> None:
        """Do nothing."""

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        """The state of torch's CPU generator."""
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        """Set torch's CPU generator."""
        torch.set_rng_state(state)

    def manual_seed(self, seed: int) -> None:
        """Seed torch's CPU generator."""
        torch.manual_seed(seed)


class Torch(types.ModuleType):
    """What Megatron's modules find as `torch`: torch, with the stand-in as its `cuda`."""

    def __init__(self) -> None:
        super().__init__("torch")
        self.cuda = Cuda()

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def redirect() -> None:
    """Redirect the modules of Megatron-Core imported so far; nothing where torch has a GPU.

    Call it after the imports: what its decorators do at import must meet the real torch.
    """
    if torch.cuda.is_available():
        return
    stand_in = Torch()
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{PACKAGE}.") and vars(module).get("torch") is torch:
            module.torch = stand_in  # type: ignore[attr-defined]
    for name in RENAMED:
        for function in _functions(sys.modules[f"{PACKAGE}.{name}"]):
            function.__code__ = _renamed(function.__code__)
    for name in ("moe_utils", "token_dispatcher"):
        sys.modules[f"{PACKAGE}.transformer.moe.{name}"].maybe_move_tensor_to_cpu = _on_the_cpu  # type: ignore[attr-defined]


def _functions(module: types.ModuleType) -> Iterator[types.FunctionType]:
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == module.__name__:
            for member in vars(value).values():
                inner = getattr(member, "__func__", member)
                inner = getattr(inner, "__wrapped__", inner)
                if isinstance(inner, types.FunctionType):
                    yield inner
        else:
            inner = getattr(value, "__wrapped__", value)
            if isinstance(inner, types.FunctionType) and inner.__module__ == module.__name__:
                yield inner


def _renamed(code: types.CodeType) -> types.CodeType:
    constants = tuple(
        _renamed(value) if isinstance(value, types.CodeType)
        else NAMES.get(value, value) if isinstance(value, str)
        else value
        for value in code.co_consts
    )  # fmt: skip
    return code if constants == code.co_consts else code.replace(co_consts=constants)


def _on_the_cpu(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """Counts on the CPU already, which the dispatcher wants as NumPy arrays all the same."""
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor
