"""Seconds of a step of each kind of run, alone on the device: the wall-clock side of the cost ratio."""

import statistics
import time
from typing import Any

import torch

from accordion.observe import say
from accordion.study.run import Place, begin, release
from accordion.study.units import ELASTIC, FIXED, ISOLATED, SCRATCH, Unit, settings

WARM = 4  # steps before the first that counts


def time_steps(place: Place) -> dict[str, Any]:
    """Median seconds of a step of the elastic, the fixed and every member's run, the elastic one past its warm-up."""
    study = place.study
    timed = [Unit(kind, study.seeds[0]) for kind in (FIXED, ELASTIC, *study.variants)]
    timed += [Unit(ISOLATED, study.seeds[0])] if study.isolated else []
    timed += [Unit(SCRATCH, study.seeds[0], member.name) for member in study.members]
    seconds = {}
    for unit in timed:
        trainer = begin(place, unit, settings(study, unit))
        if unit.kind not in (FIXED, SCRATCH, ISOLATED):
            trainer.done = trainer.sampler.warmup  # of its schedule: reduced rows are drawn
            share = 1 - trainer.config.elastic.warmup_share
        else:
            share = 0.0
        steps = []
        for index in range(WARM + study.timed_steps):
            start = time.monotonic()
            trainer.step()
            _settle(place.device)
            if index >= WARM:
                steps.append(time.monotonic() - start)
        key = unit.member or unit.kind
        seconds[key] = statistics.median(steps)
        if share:  # the steps of the warm-up run the full model
            seconds[key] = share * seconds[key] + (1 - share) * seconds[FIXED]
        say(f"study: {key} {1000 * seconds[key]:.1f} ms a step")
        del trainer
    release()
    return {"step_seconds": seconds, "timed_steps": study.timed_steps}


def _settle(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
