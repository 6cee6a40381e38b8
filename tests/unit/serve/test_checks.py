"""Checks fail closed: NaN, too few requests, missing server counters and slow answers are all refusals."""

import numpy as np
import pytest

from accordion.serve.checks import CheckFailed, Traffic, judge, lowest_cosine

LIMITS = {"step": "canary", "wanted": 10, "error_rate": 0.0, "p99_ms": 100.0}


def test_percentiles_are_nearest_rank():
    traffic = Traffic(seconds=[number / 1000 for number in range(1, 101)])
    assert traffic.percentile_ms(50) == pytest.approx(50) and traffic.percentile_ms(99) == pytest.approx(99)
    assert Traffic(seconds=[0.004]).percentile_ms(99) == pytest.approx(4)


def test_good_traffic_passes():
    judge(Traffic(seconds=[0.01] * 10), 10.0, **LIMITS)


@pytest.mark.parametrize(
    ("traffic", "counted", "why"),
    [
        (Traffic(seconds=[0.01] * 9), 9.0, "got 9 requests"),
        (Traffic(seconds=[0.01] * 10, errors=["boom"]), 10.0, "1 of 11 failed: boom"),
        (Traffic(seconds=[0.01] * 9 + [0.2]), 10.0, "p99 is 200"),
        (Traffic(seconds=[0.01] * 10), 0.0, "Triton counts 0"),
        (Traffic(seconds=[0.01] * 10), float("nan"), "Triton counts nan"),
    ],
)
def test_anything_less_is_refused(traffic, counted, why):
    with pytest.raises(CheckFailed, match=why):
        judge(traffic, counted, **LIMITS)


def test_a_nan_embedding_passes_no_cosine_check():
    rows = np.eye(3, dtype=np.float32)
    assert lowest_cosine(rows, rows) == pytest.approx(1.0)
    broken = rows.copy()
    broken[1, 1] = np.nan
    assert not lowest_cosine(broken, rows) >= -1.0
    with pytest.raises(CheckFailed, match="shape"):
        lowest_cosine(rows, rows[:, :2])
