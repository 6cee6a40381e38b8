"""Intervals and tests over per-item results: Wilson, bootstrap, paired randomisation."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from accordion.errors import DataError

Z95 = 1.959963984540054
_CHUNK_BYTES = 32 << 20  # resampling works in blocks of about this size


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval and the number of items behind it."""

    mean: float
    low: float
    high: float
    count: int

    def to_json(self) -> dict[str, float | int]:
        return {"mean": self.mean, "low": self.low, "high": self.high, "count": self.count}


def wilson(successes: int, count: int, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval of a proportion (Wilson 1927, equation 5 in Brown, Cai & DasGupta 2001).

    Args:
        successes: items that passed.
        count: items tried, at least 1.
        z: normal quantile; the default gives 95 %.

    Returns:
        (low, high), both in [0, 1]; the observed rate always lies within.

    Raises:
        DataError: count < 1, or successes outside 0..count.
    """
    if count < 1 or not 0 <= successes <= count:
        raise DataError(f"wilson: got {successes} successes of {count}; wants 0 <= successes <= count and count >= 1")
    rate = successes / count
    denominator = 1 + z * z / count
    centre = (rate + z * z / (2 * count)) / denominator
    half = z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count)) / denominator
    return max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half))


def bootstrap(values: NDArray[np.floating], *, resamples: int, seed: int) -> Estimate:
    """Mean of `values` with the percentile bootstrap 95 % interval (Efron & Tibshirani 1993, chapter 13).

    Args:
        values: (n,) one finite number an item.
        resamples: bootstrap samples, each of n items with replacement.
        seed: of the resampling.

    Raises:
        DataError: `values` is empty or holds NaN or infinity.
    """
    values = _checked(values, "bootstrap")
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)  # (resamples,)
    step = max(1, _CHUNK_BYTES // (8 * len(values)))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = generator.integers(0, len(values), size=(rows, len(values)))
        means[start : start + rows] = values[drawn].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def paired_randomisation(
    first: NDArray[np.floating], second: NDArray[np.floating], *, permutations: int, seed: int
) -> float:
    """Two-sided p of the paired randomisation test on the difference of means (Smucker et al. 2007, section 3).

    Under the null hypothesis the two results of an item are exchangeable, so each difference has a random
    sign. p = (1 + permutations at least as extreme) / (1 + permutations): never 0.

    Args:
        first, second: (n,) results of two systems on the same items in the same order.

    Raises:
        DataError: lengths differ, nothing to compare, or a value is not finite.
    """
    if len(first) != len(second):
        raise DataError(f"paired_randomisation: {len(first)} and {len(second)} results; wants the same items in both")
    difference = _checked(np.asarray(first, float) - np.asarray(second, float), "paired_randomisation")
    observed = abs(difference.mean())
    generator = np.random.default_rng(seed)
    extreme = 0
    step = max(1, _CHUNK_BYTES // (8 * len(difference)))
    for start in range(0, permutations, step):
        rows = min(step, permutations - start)
        signs = generator.integers(0, 2, size=(rows, len(difference)), dtype=np.int8) * 2 - 1
        means = np.abs(signs @ difference) / len(difference)
        extreme += int((means >= observed * (1 - 1e-12)).sum())
    return (1 + extreme) / (1 + permutations)


def _checked(values: NDArray[np.floating], name: str) -> NDArray[np.float64]:
    checked = np.asarray(values, dtype=np.float64)
    if checked.ndim != 1 or len(checked) == 0:
        raise DataError(f"{name}: got an array of shape {checked.shape}; wants at least one number in one dimension")
    if not np.isfinite(checked).all():
        raise DataError(f"{name}: item {int(np.flatnonzero(~np.isfinite(checked))[0])} is NaN or infinite")
    return checked
