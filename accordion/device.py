"""Where models are trained: set once by whoever runs a stage, read by the stages that can use a GPU."""

import contextvars
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from accordion.errors import ConfigError

_wanted: contextvars.ContextVar[str] = contextvars.ContextVar("device", default="auto")


@contextmanager
def device(wanted: str) -> Iterator[None]:
    """Train on `wanted` (auto, cpu or cuda) inside the block."""
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


def training_device() -> torch.device:
    """The device to train on; `auto` is the GPU where torch can use one.

    Raises:
        ConfigError: a GPU was asked for and there is none.
    """
    wanted = _wanted.get()
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ConfigError(
            f"runtime.device: got cuda; torch {torch.__version__} finds no usable GPU; install a CUDA build of torch "
            "and a driver, or set runtime.device=cpu"
        )
    return torch.device("cuda" if wanted == "cuda" or (wanted == "auto" and there) else "cpu")


def settle(at: torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock tells how long it took."""
    if at.type == "cuda":
        torch.cuda.synchronize(at)


def peak_flops(at: torch.device) -> float:
    """Floating-point operations a second of one large matrix product, the best of four: what work is compared with."""
    kind = torch.bfloat16 if at.type == "cuda" else torch.float32
    side = 8192 if at.type == "cuda" else 1024
    one = torch.randn(side, side, device=at, dtype=kind)
    best = float("inf")
    for _ in range(4):  # the first one warms up
        settle(at)
        start = time.perf_counter()
        one @ one
        settle(at)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
