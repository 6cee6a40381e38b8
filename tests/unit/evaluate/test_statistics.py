"""Intervals and paired tests against known answers."""

import numpy as np
import pytest
from scipy import stats

from accordion.errors import DataError
from accordion.evaluate.statistics import bootstrap, paired_randomisation, wilson


@pytest.mark.parametrize("successes, count", [(0, 10), (3, 10), (200, 400), (10, 10)])
def test_wilson_agrees_with_scipy(successes, count):
    interval = stats.binomtest(successes, count).proportion_ci(method="wilson")
    assert wilson(successes, count) == pytest.approx((interval.low, interval.high), abs=1e-12)


@pytest.mark.parametrize("successes, count", [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes, count):
    with pytest.raises(DataError, match="wilson"):
        wilson(successes, count)


def test_bootstrap_covers_the_normal_interval():
    values = np.random.default_rng(0).normal(0.3, 0.1, size=400)
    estimate = bootstrap(values, resamples=2000, seed=1)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.002)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.002)
    assert estimate.count == 400
    assert bootstrap(values, resamples=2000, seed=1) == estimate


@pytest.mark.parametrize("values", [[], [0.1, float("nan")], [float("inf")]])
def test_bootstrap_refuses_what_it_cannot_average(values):
    with pytest.raises(DataError, match="bootstrap"):
        bootstrap(np.array(values), resamples=100, seed=0)


def test_paired_randomisation_is_exact_on_a_small_case():
    # Four equal differences: of the 16 sign patterns only all-plus and all-minus are as extreme, p = 2/16.
    p = paired_randomisation(np.ones(4), np.zeros(4), permutations=20_000, seed=0)
    assert p == pytest.approx(2 / 16, abs=0.01)


def test_paired_randomisation_tells_a_difference_from_noise():
    generator = np.random.default_rng(0)
    base = generator.uniform(size=300)
    noise = generator.normal(0, 0.1, size=300)
    assert paired_randomisation(base + 0.05 + noise, base, permutations=1000, seed=0) == pytest.approx(1 / 1001)
    assert paired_randomisation(base + noise, base + noise, permutations=1000, seed=0) == 1.0


def test_paired_randomisation_wants_pairs():
    with pytest.raises(DataError, match="same items"):
        paired_randomisation(np.ones(3), np.ones(4), permutations=100, seed=0)
