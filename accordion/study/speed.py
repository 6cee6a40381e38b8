"""Seconds of a step of each kind of run, alone on the device: the wall-clock side of the cost ratio."""

import json
import statistics
import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch

from accordion.config.study import StudyConfig
from accordion.device import peak_flops, settle
from accordion.model.sampler import ElasticSampler
from accordion.observe import say
from accordion.store.atomic import atomic_write
from accordion.study.figures import SPEED
from accordion.study.live import Expected
from accordion.study.place import Place, check_identity, read_json
from accordion.study.run import begin, memory_remedy, release
from accordion.study.units import ELASTIC, FIXED, ISOLATED, SCRATCH, Unit, settings
from accordion.train.checkpoint import newest_step
from accordion.train.guards import enough_memory
from accordion.train.loop import Trainer

WARM = 4  # steps before the first that counts


def kinds(study: StudyConfig) -> dict[str, Unit]:
    """The kinds of step, by the names under which they are timed, each with a unit that makes such steps."""
    seed = study.seeds[0]
    found = [Unit(kind, seed) for kind in (FIXED, ELASTIC, *study.variants)]
    found += [Unit(ISOLATED, seed)] if study.isolated else []
    found += [Unit(SCRATCH, seed, member.name) for member in study.members]
    return {_key(unit): unit for unit in found}


def time_steps(place: Place) -> dict[str, float]:
    """Mean seconds of a step of each kind, over the parts of a run; what was timed before is not timed again.

    Raises:
        ArtifactError: what was timed before is of other settings or data.
        OutOfMemory: names the settings to change.
    """
    known = _known(place)
    missing = {name: unit for name, unit in kinds(place.study).items() if name not in known}
    if missing:
        peak = peak_flops(torch.device(place.device))
        for name, unit in missing.items():
            known[name] = _time(place, unit, peak)
            say(f"study: {name} {1000 * known[name]['seconds']:.1f} ms a step, {_share(known[name]):.0%} of peak")
        release()
        path = place.result(SPEED)
        path.parent.mkdir(parents=True, exist_ok=True)
        others = read_json(path).get("kinds", {}) if path.is_file() else {}
        atomic_write(path, json.dumps({"kinds": {**others, **known}}, indent=1) + "\n")
    return {name: figures["seconds"] for name, figures in known.items()}


def read_timing(place: Place) -> dict[str, Any] | None:
    """What was timed: seconds of a step, and the share of the device's operations a second, by kind; None: nothing.

    Raises:
        ArtifactError: it is of other settings or data.
    """
    known = _known(place)
    if not known:
        return None
    return {
        "step_seconds": {name: figures["seconds"] for name, figures in known.items()},
        "flops_utilisation": {name: _share(figures) for name, figures in known.items()},
        "timed_steps": place.study.timed_steps,
        "made": [figures["made"] for figures in known.values()],
    }


def expected(place: Place, unit: Unit, timed: Mapping[str, float]) -> Expected:
    """The work that a unit still is, from the seconds of the steps that were timed alone.

    A forward pass counts as a third of a training step (accordion/model/flops.py).
    """
    study, config = place.study, settings(place.study, unit)
    judged = [unit.member or FIXED]
    if not unit.member and unit.kind != ISOLATED:  # every size cut out of it, of the fixed model ranked too
        judged += [member.name for member in study.members] * (2 if unit.kind == FIXED else 1)
    forward = {name: timed[name] / config.batch / 3 for name in judged}  # of a sequence
    judging = study.validation_sequences * sum(forward[name] for name in judged)
    if unit.kind == FIXED:
        judging += study.ranking_sequences * forward[FIXED]
    begun, step = newest_step(place.partial(unit)), timed[_key(unit)]
    return Expected(begun, step, training=step * (config.steps - begun), judging=judging)


def _key(unit: Unit) -> str:
    return unit.member or unit.kind


def _known(place: Place) -> dict[str, dict[str, Any]]:
    """The kinds of step of this study that were timed."""
    path = place.result(SPEED)
    if not path.is_file():
        return {}
    held = read_json(path)
    if "kinds" not in held:
        check_identity(str(path), None, {})
    found = held["kinds"]
    known: dict[str, dict[str, Any]] = {}
    for name, unit in kinds(place.study).items():
        if name in found:
            check_identity(f"{path}, {name}", found[name].get("identity"), _identity(place, unit))
            known[name] = found[name]
    return known


def _identity(place: Place, unit: Unit) -> dict[str, Any]:
    """What determines the seconds of a kind of step, besides the machine."""
    run = json.loads(settings(place.study, unit).model_dump_json(exclude={"seed"}))
    return {"settings": run, "timed_steps": place.study.timed_steps, "data": place.digest}


def _share(figures: Mapping[str, Any]) -> float:
    return figures["flops"] / figures["seconds"] / figures["peak_flops"]


def _time(place: Place, unit: Unit, peak: float) -> dict[str, Any]:
    """Mean seconds and operations of a step of one kind."""
    config = settings(place.study, unit)
    seconds = flops = 0.0
    with enough_memory(memory_remedy(config)):
        trainer = begin(place, unit, config)
        for at, share in parts_of_a_run(trainer.sampler, config.steps):
            step = _cost(trainer, at, place.study.timed_steps)
            seconds, flops = seconds + share * step[0], flops + share * step[1]
    figures = {"seconds": seconds, "flops": flops, "peak_flops": peak}
    return {**figures, "made": place.made_now(), "identity": _identity(place, unit)}


def parts_of_a_run(sampler: ElasticSampler, steps: int) -> list[tuple[int, float]]:
    """Where the parts of a run can be timed, and their shares of its steps: the smallest alone, the full model alone,
    all sizes. Each is timed as its last step, the first may grow the model or rank its experts.

    Steps in which reduced rows come in slowly count as the steps after them, so that the cost is not understated.
    """
    marks = [0, sampler.growth, sampler.warmup, steps]
    return [(end - 1, (end - start) / steps) for start, end in pairwise(marks) if end > start]


def _cost(trainer: Trainer, at: int, count: int) -> tuple[float, float]:
    """Mean seconds and operations of `count` steps like the one at `at`; each draws its own sub-models."""
    steps = []
    for index in range(WARM + count):
        trainer.done = at
        start, before = time.monotonic(), trainer.flops
        trainer.step()
        settle(trainer.device)
        if index >= WARM:
            steps.append((time.monotonic() - start, trainer.flops - before))
    return statistics.mean(seconds for seconds, _ in steps), statistics.mean(flops for _, flops in steps)
