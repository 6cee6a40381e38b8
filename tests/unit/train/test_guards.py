"""The guards: jumps are told from noise and from a new level, signals are noted, failed allocations are explained."""

import os
import random
import signal
import threading

import pytest
import torch

from accordion.errors import OutOfMemory
from accordion.train.guards import LEAST_SEEN, SpikeGuard, deterministic, enough_memory, stop_requests


def noisy(count: int, level: float = 2.0, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [level + draw.gauss(0, 0.05) for _ in range(count)]


def test_noise_and_a_falling_loss_are_no_jumps():
    guard = SpikeGuard(6.0)
    falling = [5.0 * 0.99**step + noise - 2 for step, noise in enumerate(noisy(300))]
    assert not any(guard.jumps(loss) for loss in falling) and guard.skipped == 0


def test_a_jump_is_skipped_and_does_not_raise_the_bound():
    guard = SpikeGuard(6.0)
    for loss in noisy(40):
        guard.jumps(loss)
    bound = guard.bound()
    assert guard.jumps(9.0) and guard.skipped == 1 and guard.bound() == bound
    assert not guard.jumps(2.0)


def test_a_new_level_is_learnt_from_after_the_patience_ends():
    guard = SpikeGuard(6.0, patience=3)
    for loss in noisy(40):
        guard.jumps(loss)
    assert [guard.jumps(loss) for loss in noisy(5, level=6.0)] == [True, True, True, False, False]


def test_too_few_losses_and_a_guard_that_is_off_call_nothing_a_jump():
    young, off = SpikeGuard(6.0), SpikeGuard(0.0)
    assert not any(young.jumps(loss) for loss in [*noisy(LEAST_SEEN - 1), 50.0])
    assert not any(off.jumps(loss) for loss in [*noisy(50), 50.0])


def test_a_restored_guard_goes_on_as_the_first_would():
    first = SpikeGuard(6.0)
    for loss in noisy(40):
        first.jumps(loss)
    first.jumps(9.0)
    second = SpikeGuard(6.0)
    second.restore(first.state())
    assert second.bound() == first.bound() and second.state() == first.state()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with stop_requests() as request:
        assert request.signal is None
        os.kill(os.getpid(), number)
        assert request.signal == number.name
    assert signal.getsignal(number) is before


def test_signals_that_come_together_are_one_request():
    with stop_requests() as request:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal == "SIGINT"


def test_the_second_signal_stops_at_once(monkeypatch):
    monkeypatch.setattr("accordion.train.guards.TOGETHER_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt), stop_requests():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)


def test_other_threads_leave_the_handlers_alone():
    found = []

    def look() -> None:
        with stop_requests() as request:
            found.append(request.signal)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [None] and signal.getsignal(signal.SIGTERM) is before


def test_a_deterministic_block_refuses_what_may_vary_and_ends_with_the_block(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with pytest.raises(ValueError, match="inside"), deterministic(True):
        assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            torch.zeros(4).put_(torch.tensor([0, 0]), torch.ones(2))
        raise ValueError("inside")
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()


def test_a_failed_allocation_names_the_remedy():
    with (
        pytest.raises(OutOfMemory, match=r"main memory is full .*lower pretrain\.batch"),
        enough_memory("lower pretrain.batch"),
    ):
        torch.empty(2**55)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"), enough_memory("lower pretrain.batch"):
        torch.ones(2) @ torch.ones(3)
