"""What the experiment says: gaps, tax, recovered fractions and cost ratios, from the figures of its units.

Per sub-model s (foundation model, section 5): gap(s) = loss_elastic(s) - loss_scratch(s);
tax = loss_elastic(full) - loss_fixed(full);
recovered fraction = (loss_naive(s) - loss_elastic(s)) / (loss_naive(s) - loss_scratch(s));
cost ratio = cost(elastic run and what its members need of recovery) / sum over sizes of cost(scratch).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from accordion.config.study import StudyConfig
from accordion.errors import DataError
from accordion.study.units import ELASTIC, FIXED, ISOLATED, RECOVERY, SCRATCH, Unit

MODALITIES = ("text", "image", "video", "audio")
RESULTS = "elastic_study.json"
SPEED = "speed"  # name of the figures of steps timed alone, beside those of the units
MEAN = "mean"  # over the modalities
Units = Mapping[str, Mapping[str, Any]]
Losses = Mapping[str, float]


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean and 95 % interval by Student's t; without an interval where there is one value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None, "values": list(values)}
    half = float(stats.t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half, "values": list(values)}


def once(value: float) -> dict[str, Any]:
    """In the form of `interval` what was measured once for all seeds, and so has none."""
    return {"mean": value, "low": None, "high": None, "values": [value]}


def with_mean(losses: Losses) -> dict[str, float]:
    """The losses by modality, and their plain mean."""
    known = {name: losses[name] for name in MODALITIES if name in losses}
    return {**known, MEAN: sum(known.values()) / len(known)}


class Study:
    """The finished units of a study, by what they are."""

    def __init__(self, config: StudyConfig, found: Units) -> None:
        self.config, self.found = config, found
        needed = [Unit(kind, seed) for seed in config.seeds for kind in (ELASTIC, FIXED)]
        self.seeds = [s for s in config.seeds if all(u.name in found for u in needed if u.seed == s)]
        if not self.seeds:
            raise DataError("study: no seed has both its elastic and its fixed run; run it for longer")

    def loss(self, unit: Unit, member: str = "", ranked: bool = False) -> dict[str, float] | None:
        """Validation losses of a unit, or of a member cut out of it; None where the unit is not finished."""
        figures = self.found.get(unit.name)
        if figures is None:
            return None
        if not member:
            return with_mean(figures["val_loss"])
        return with_mean(figures["members_ranked" if ranked else "members"][member])

    def over_seeds(self, each: Callable[[int], Losses | None]) -> dict[str, Any] | None:
        """Intervals by modality over the seeds for which `each` gives figures."""
        rows = [row for row in map(each, self.seeds) if row is not None]
        return {name: interval([row[name] for row in rows]) for name in rows[0]} if rows else None

    def difference(self, left: Callable[[int], Losses | None], right: Callable[[int], Losses | None]) -> Any:
        """Intervals of left - right, paired by seed."""

        def each(seed: int) -> Losses | None:
            first, second = left(seed), right(seed)
            return None if first is None or second is None else {name: first[name] - second[name] for name in first}

        return self.over_seeds(each)


def summarise(config: StudyConfig, found: Units) -> dict[str, Any]:
    """Every figure that the finished units allow."""
    study = Study(config, found)
    return {
        "seeds": study.seeds,
        "losses": {
            "fixed": study.over_seeds(lambda seed: study.loss(Unit(FIXED, seed))),
            "elastic": study.over_seeds(lambda seed: study.loss(Unit(ELASTIC, seed))),
        },
        "tax": study.difference(lambda s: study.loss(Unit(ELASTIC, s)), lambda s: study.loss(Unit(FIXED, s))),
        "members": {member.name: _member(study, member.name) for member in config.members},
        "cost": _cost(study),
        "variants": {name: _variant(study, name) for name in config.variants if _has(study, name)},
        "isolated_minus_shared": study.difference(
            lambda s: study.loss(Unit(ISOLATED, s)), lambda s: study.loss(Unit(FIXED, s))
        ),
    }


def _has(study: Study, kind: str) -> bool:
    return any(Unit(kind, seed).name in study.found for seed in study.seeds)


def _member(study: Study, name: str) -> dict[str, Any]:
    """The figures of one sub-size: without recovery, and after each share of it."""

    def scratch(seed: int) -> Losses | None:
        return study.loss(Unit(SCRATCH, seed, name))

    def elastic(seed: int) -> Losses | None:
        return study.loss(Unit(ELASTIC, seed), name)

    def naive(seed: int) -> Losses | None:
        return study.loss(Unit(FIXED, seed), name)

    def recovered(share: float) -> Callable[[int], Losses | None]:
        return lambda seed: study.loss(Unit(RECOVERY, seed, name, share))

    def fraction(seed: int) -> Losses | None:
        ours, theirs, cut = elastic(seed), scratch(seed), naive(seed)
        if ours is None or theirs is None or cut is None:
            return None
        return {key: (cut[key] - ours[key]) / (cut[key] - theirs[key]) for key in ours if cut[key] != theirs[key]}

    return {
        "scratch": study.over_seeds(scratch),
        "elastic": study.over_seeds(elastic),
        "naive": study.over_seeds(naive),
        "naive_ranked": study.over_seeds(lambda seed: study.loss(Unit(FIXED, seed), name, ranked=True)),
        "gap": study.difference(elastic, scratch),
        "recovered_fraction": study.over_seeds(fraction),
        "recovery": {
            f"{share:g}": {
                "loss": study.over_seeds(recovered(share)),
                "gap": study.difference(recovered(share), scratch),
            }
            for share in study.config.recovery_shares
        },
    }


def _variant(study: Study, kind: str) -> dict[str, Any]:
    """Another recipe: its own tax and gaps, and its losses minus those of the main one and of the others, by seed."""
    ratios = [
        study.found[Unit(kind, seed).name]["flops"] / study.found[Unit(FIXED, seed).name]["flops"]
        for seed in study.seeds
        if Unit(kind, seed).name in study.found
    ]

    def inside(recipe: str, member: str = "") -> Callable[[int], Losses | None]:
        return lambda seed: study.loss(Unit(recipe, seed), member)

    def scratch(member: str) -> Callable[[int], Losses | None]:
        return lambda seed: study.loss(Unit(SCRATCH, seed, member))

    members = {
        member.name: {"gap": study.difference(inside(kind, member.name), scratch(member.name))}
        for member in study.config.members
    }
    others = {other: other for other in study.config.variants if other != kind and _has(study, other)}
    minus = {
        label: {
            "full": study.difference(inside(kind), inside(recipe)),
            **{m.name: study.difference(inside(kind, m.name), inside(recipe, m.name)) for m in study.config.members},
        }
        for label, recipe in {"main": ELASTIC, **others}.items()
    }
    tax = study.difference(inside(kind), inside(FIXED))
    return {"tax": tax, "flops_of_fixed": interval(ratios), "members": members, "minus": minus}


def _cost(study: Study) -> dict[str, Any]:
    """Cost ratios in FLOPs, and in seconds of steps that were timed alone, for the family and for every member.

    Steps are timed once for all seeds, so that their ratios have no interval over seeds.
    """
    speed = study.found.get(SPEED)
    chosen = {"family": study.config.family, "all_members": tuple(member.name for member in study.config.members)}
    sides = {"flops": lambda unit: float(study.found[unit.name]["flops"])}
    if speed is not None:
        sides["seconds"] = lambda unit: _timed(speed, study.found[unit.name], unit)
    result: dict[str, Any] = {}
    for label, members in chosen.items():
        for side, cost in sides.items():
            for share in (0.0, *study.config.recovery_shares):
                ratios = [_ratio(study, seed, members, share, cost) for seed in study.seeds]
                whole = [ratio for ratio in ratios if ratio is not None]
                if whole:
                    result.setdefault(label, {}).setdefault(side, {})[f"{share:g}"] = _over_seeds(side, whole)
    elastic = [Unit(ELASTIC, seed) for seed in study.seeds]
    result["elastic_of_fixed"] = {
        side: _over_seeds(side, [cost(unit) / cost(Unit(FIXED, unit.seed)) for unit in elastic])
        for side, cost in sides.items()
    }
    return result


def _over_seeds(side: str, ratios: Sequence[float]) -> dict[str, Any]:
    return once(ratios[0]) if side == "seconds" else interval(ratios)


def _timed(speed: Mapping[str, Any], figures: Mapping[str, Any], unit: Unit) -> float:
    key = unit.member if unit.kind in (SCRATCH, RECOVERY) else unit.kind
    return float(speed["step_seconds"][key]) * int(figures["steps"])


def _ratio(
    study: Study, seed: int, members: Sequence[str], share: float, cost: Callable[[Unit], float]
) -> float | None:
    """Cost of the elastic run, with recovery of each member, over that of a run for every size."""
    separate = [Unit(FIXED, seed), *(Unit(SCRATCH, seed, name) for name in members)]
    ours = [Unit(ELASTIC, seed)]
    if share:
        ours += [Unit(RECOVERY, seed, name, share) for name in members]
    if any(unit.name not in study.found for unit in (*separate, *ours)):
        return None
    return sum(map(cost, ours)) / sum(map(cost, separate))
