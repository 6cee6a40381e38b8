"""Drift: expectations built from the statistics of the version before.

Counts may grow or shrink by a factor. Mixes are compared by the Jensen-Shannon divergence (Lin 1991; bits, 0 to 1)
and, where there are few categories, the population stability index (Siddiqi 2006: sum (p - q) ln(p / q)); lengths by
the Kolmogorov-Smirnov distance of their histograms. A bound is what the settings allow plus what two samples of
these sizes from one distribution differ by in 999 of 1000 cases (a run compares dozens of figures), so that small
parts raise no alarm by chance.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import chi2

from accordion.config.data import DriftConfig
from accordion.data.expectations.statistics import Lengths, Statistics
from accordion.data.expectations.suite import Suite, expect

FEW = 60  # categories up to which the stability index means something
CONFIDENCE = 0.999
Z = 3.29  # of the normal distribution, both sides
KS_CRITICAL = math.sqrt(-math.log((1 - CONFIDENCE) / 2) / 2)  # of the two-sample test, times sqrt((n + m) / (n m))


@dataclass(frozen=True)
class Shift:
    """How far one figure moved: its measure, the distance, the bounds it may lie in, and the movement in words."""

    figure: str
    measure: str
    value: float
    low: float
    high: float
    told: str

    @property
    def within(self) -> bool:
        return self.low <= self.value <= self.high


def aligned(before: Mapping[str, int], now: Mapping[str, int]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The categories of either, and their counts in both."""
    names = sorted({*before, *now})
    was, is_now = (np.array([mix.get(name, 0) for name in names], dtype=float) for mix in (before, now))
    return names, was, is_now


def jensen_shannon(before: np.ndarray, now: np.ndarray) -> float:
    """Divergence of two count vectors in bits, 0 (equal) to 1 (nothing in common)."""
    p, q = before / before.sum(), now / now.sum()
    middle = (p + q) / 2

    def relative(a: np.ndarray) -> float:
        some = a > 0
        return float((a[some] * np.log2(a[some] / middle[some])).sum())

    return max(0.0, (relative(p) + relative(q)) / 2)


def stability_index(before: np.ndarray, now: np.ndarray) -> float:
    """Population stability index; half a count is added to each category, so that a new or lost one stays finite."""
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (before, now))
    return float(((q - p) * np.log(q / p)).sum())


def kolmogorov_smirnov(before: Lengths, now: Lengths) -> float:
    """Largest difference of the two cumulative distributions, 0 to 1."""
    bins = sorted({*map(int, before.bins), *map(int, now.bins)})
    both = [np.cumsum([found.bins.get(str(b), 0) for b in bins]) / found.count for found in (before, now)]
    return float(np.abs(both[0] - both[1]).max())


def compare(before: Statistics, now: Statistics, config: DriftConfig) -> tuple[list[Shift], list[str]]:
    """Every figure of `before` against `now`, and in words what could not be compared."""
    shifts: list[Shift] = []
    left: list[str] = []
    figures = {**before.counts, **before.mixes, **before.lengths}
    for name in figures:
        if before.rests_on.get(name) != now.rests_on.get(name):
            was, is_now = (each.rests_on.get(name, "nothing else") for each in (before, now))
            left.append(f"{name}: rests on {is_now[:32]}, before on {was[:32]}")
        elif name in before.counts:
            shifts.append(_count(name, before.counts[name], now.counts.get(name, 0), config))
        elif name in before.mixes:
            shifts += _mix(name, before.mixes[name], now.mixes.get(name, {}), config)
        else:
            shifts.append(_length(name, before.lengths[name], now.lengths.get(name), config))
    known = {*now.counts, *now.mixes, *now.lengths} - {*figures}
    return shifts, left + [f"{name}: new in this version" for name in sorted(known)]


def _count(name: str, before: int, now: int, config: DriftConfig) -> Shift:
    """A ratio; two Poisson counts of one rate differ by `chance` at most, which matters where they are few."""
    value = now / before if before else 1.0  # what begins has nothing to be compared with
    chance = Z * math.sqrt(before + now) / max(before, 1)
    return Shift(name, "ratio", value, 1 / config.rows - chance, config.rows + chance, f"{before:,} -> {now:,}")


def _mix(name: str, before: Mapping[str, int], now: Mapping[str, int], config: DriftConfig) -> Iterator[Shift]:
    names, was, is_now = aligned(before, now)
    if not was.sum() or not is_now.sum():
        yield Shift(name, "Jensen-Shannon", float(was.sum() != is_now.sum()), 0, config.mix, "one of them is empty")
        return
    change = is_now / is_now.sum() - was / was.sum()
    most = np.argsort(-np.abs(change), kind="stable")[:3]
    told = ", ".join(f"{names[i]} {was[i] / was.sum():.1%} -> {is_now[i] / is_now.sum():.1%}" for i in most)
    freedom, sizes = max(len(names) - 1, 1), float(1 / was.sum() + 1 / is_now.sum())
    chance = float(chi2.ppf(CONFIDENCE, freedom)) * sizes  # of the index, in nats: it is near a chi-square statistic
    js = jensen_shannon(was, is_now)
    yield Shift(name, "Jensen-Shannon", js, 0, config.mix + chance / 8 / math.log(2), told)
    if 1 < len(names) <= FEW:
        yield Shift(name, "stability index", stability_index(was, is_now), 0, config.stability + chance, told)


def _length(name: str, before: Lengths, now: Lengths | None, config: DriftConfig) -> Shift:
    if now is None or not now.count or not before.count:
        return Shift(name, "Kolmogorov-Smirnov", 1.0, 0, config.lengths, "one of them is empty")
    chance = KS_CRITICAL * math.sqrt(1 / before.count + 1 / now.count)
    told = f"median {before.quantiles['0.5']:.4g} -> {now.quantiles['0.5']:.4g}"
    bound = min(config.lengths + chance, 1.0)
    return Shift(name, "Kolmogorov-Smirnov", kolmogorov_smirnov(before, now), 0, bound, told)


@dataclass(frozen=True)
class Drift:
    """The comparison of a version with the one before: its suite (none: nothing to compare with), figures, notes."""

    suites: list[Suite]
    figures: dict[str, object]
    notes: list[str]


def measure(now: Statistics, previous: Path | None, config: DriftConfig, where: str) -> Drift:
    """Compare with the statistics in folder `previous`, or say why nothing is compared.

    Args:
        where: path of the settings, for the remedy (`validate_data.drift`).

    Raises:
        ArtifactError: `previous` holds no readable statistics.
    """
    if not config.compare:
        return _nothing(f"Drift was not measured: {where}.compare is false.")
    if previous is None:
        return _nothing("Drift was not measured: this profile has no previous version.")
    before = Statistics.read(previous)
    if before is None:
        return _nothing("Drift was not measured: the previous version's statistics are in another form.")
    shifts, left = compare(before, now, config)
    accepted = any(now.of.partition(":")[2].startswith(digest) for digest in config.accept)
    notes = [f"not compared: {line}" for line in left]
    if accepted:
        notes.append(f"{now.of}: its drift is accepted in {where}.accept, and does not stop the run.")
    figures = {
        "previous": before.of,
        "accepted": accepted,
        "outside": sum(not shift.within for shift in shifts),
        # a list: a figure of its own for each would be hundreds of metric columns in MLflow
        "shifts": [asdict(shift) | {"within": shift.within} for shift in shifts],
    }
    return Drift([_suite(now, before, shifts, accepted, where)], figures, notes)


def _nothing(note: str) -> Drift:
    return Drift([], {"previous": None, "accepted": False, "outside": 0, "shifts": []}, [note])


def _suite(now: Statistics, before: Statistics, shifts: list[Shift], accepted: bool, where: str) -> Suite:
    """One row (this version), one column a figure; bounds as in `compare`."""
    table = pd.DataFrame([{"id": now.of, **{f"{each.figure}, {each.measure}": each.value for each in shifts}}])
    digest = now.of.partition(":")[2][:16]
    remedy = f'; if the change is meant, add "{digest}" to {where}.accept' if digest else ""
    return Suite(
        f"drift from {before.of.partition(':')[2][:16] or 'the previous version'}",
        table,
        [
            expect(
                "column_max_to_be_between", column=f"{each.figure}, {each.measure}",
                min_value=each.low, max_value=each.high,
            ).noted(f"{each.told}{remedy}", warning=accepted)
            for each in shifts
        ],
    )  # fmt: skip
