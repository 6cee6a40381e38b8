"""Seconds of a step of each kind of run, alone on the device: the wall-clock side of the cost ratio."""

import statistics
import time
from itertools import pairwise
from typing import Any

import torch

from accordion.model.sampler import ElasticSampler
from accordion.observe import say
from accordion.study.run import Place, begin, release
from accordion.study.units import ELASTIC, FIXED, ISOLATED, SCRATCH, Unit, settings
from accordion.train.loop import Trainer

WARM = 4  # steps before the first that counts


def time_steps(place: Place) -> dict[str, Any]:
    """Mean seconds of a step over each kind of run, from some steps in each of its parts."""
    study = place.study
    timed = [Unit(kind, study.seeds[0]) for kind in (FIXED, ELASTIC, *study.variants)]
    timed += [Unit(ISOLATED, study.seeds[0])] if study.isolated else []
    timed += [Unit(SCRATCH, study.seeds[0], member.name) for member in study.members]
    seconds = {}
    for unit in timed:
        trainer = begin(place, unit, settings(study, unit))
        parts = parts_of_a_run(trainer.sampler, trainer.config.steps)
        key = unit.member or unit.kind
        seconds[key] = sum(share * _seconds(trainer, place.device, at, study.timed_steps) for at, share in parts)
        say(f"study: {key} {1000 * seconds[key]:.1f} ms a step")
        del trainer
    release()
    return {"step_seconds": seconds, "timed_steps": study.timed_steps}


def parts_of_a_run(sampler: ElasticSampler, steps: int) -> list[tuple[int, float]]:
    """Where the parts of a run can be timed, and their shares of its steps: the smallest alone, the full model alone,
    all sizes. Each is timed as its last step, the first may grow the model or rank its experts.

    Steps in which reduced rows come in slowly count as the steps after them, so that the cost is not understated.
    """
    marks = [0, sampler.growth, sampler.warmup, steps]
    return [(end - 1, (end - start) / steps) for start, end in pairwise(marks) if end > start]


def _seconds(trainer: Trainer, device: str, at: int, count: int) -> float:
    """Mean seconds of `count` steps like the one at `at`; each draws its own sub-models."""
    steps = []
    for index in range(WARM + count):
        trainer.done = at
        start = time.monotonic()
        trainer.step()
        _settle(device)
        if index >= WARM:
            steps.append(time.monotonic() - start)
    return statistics.mean(steps)


def _settle(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
