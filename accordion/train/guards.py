"""What watches over a run: losses that jump, signals that ask it to stop, memory that is too small."""

import math
import os
import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from accordion.errors import OutOfMemory

TOGETHER_SECONDS = 1.0  # between the first signal and others that mean the same request
LEAST_SEEN = 16  # steps before a loss can be called a jump
MAD_TO_DEVIATION = 1.4826  # median absolute deviation of a normal distribution to its standard deviation


class SpikeGuard:
    """Tells steps whose loss jumps out of the recent ones: they are not learnt from.

    A loss is a jump when it lies more than `deviations` robust standard deviations (from the median absolute
    deviation) above the median of the last `window` losses, and more than a tenth of it.

    Args:
        deviations: 0 switches the guard off.
        patience: jumps in a row after which they are no jumps any more but a new level, and are learnt from.
    """

    def __init__(self, deviations: float, *, window: int = 64, patience: int = 5) -> None:
        self.deviations, self.patience = deviations, patience
        self.recent: deque[float] = deque(maxlen=window)
        self.in_a_row = 0
        self.skipped = 0

    def jumps(self, loss: float) -> bool:
        """Whether the step with this loss must be skipped; a loss that is no jump is remembered."""
        if self.deviations and len(self.recent) >= LEAST_SEEN and loss > self.bound():
            self.in_a_row += 1
            if self.in_a_row <= self.patience:
                self.skipped += 1
                return True
            self.recent.clear()
        self.in_a_row = 0
        if math.isfinite(loss):
            self.recent.append(loss)
        return False

    def bound(self) -> float:
        """The loss above which a step is a jump now."""
        middle = statistics.median(self.recent)
        spread = MAD_TO_DEVIATION * statistics.median(abs(value - middle) for value in self.recent)
        return middle + max(self.deviations * spread, 0.1 * abs(middle))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"recent": list(self.recent), "in_a_row": self.in_a_row, "skipped": self.skipped}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a kept state."""
        self.recent.clear()
        self.recent.extend(state["recent"])
        self.in_a_row, self.skipped = state["in_a_row"], state["skipped"]


class StopRequest:
    """Whether SIGTERM (a scheduler that takes the machine back) or SIGINT came; the name of the signal, or None.

    A terminal or a scheduler signals every process of a run, and a launcher hands the same signal on: what comes within
    a second is one request.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._since = 0.0  # monotonic seconds

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._since > TOGETHER_SECONDS:  # a second one does what it always did
            signal.default_int_handler(number, frame)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note SIGTERM and SIGINT instead of dying of them, so that the step can be finished and saved."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield request
        return
    before = {number: signal.signal(number, request._note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def enough_memory(remedy: str) -> Iterator[None]:
    """Turn an allocation that failed, on a GPU or in main memory, into an error that says what to change.

    Raises:
        OutOfMemory: ends with `remedy`.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"the GPU's memory is full ({str(error).partition('.')[0]}); {remedy}") from error
    except MemoryError as error:
        raise OutOfMemory(f"main memory is full; {remedy}") from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error) and "not enough memory" not in str(error):
            raise
        raise OutOfMemory(f"main memory is full ({str(error).rpartition(': ')[2]}); {remedy}") from error


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Refuse operations inside the block that may give other bits the next time; on a CPU there are none of ours.

    cuBLAS gives the same bits only with a workspace of a fixed size, which it looks for in the environment when it
    starts (its documentation, "Results reproducibility").
    """
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
