"""The speed of a device is measured, and the clock is read when the work is done."""

import pytest
import torch

from accordion.device import peak_flops, settle


def test_the_peak_is_that_of_the_best_of_several_products(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 4.0, 4.0, 6.0, 6.0, 7.0, 7.0, 9.0])  # products of 4, 2, 1 and 2 s
    monkeypatch.setattr("accordion.device.time.perf_counter", lambda: next(ticks))
    assert peak_flops(torch.device("cpu")) == 2 * 1024**3


def test_a_gpu_is_waited_for_and_a_cpu_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    settle(torch.device("cpu"))
    assert not waited
    settle(torch.device("cuda", 1))
    assert waited == [torch.device("cuda", 1)]
