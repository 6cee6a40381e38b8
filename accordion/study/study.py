"""The experiment as a whole: units in several processes until all are done or the time is up, then what they say."""

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from accordion.config.study import StudyConfig
from accordion.device import training_device
from accordion.home import REPOSITORY
from accordion.observe import say
from accordion.store.atomic import atomic_write
from accordion.store.manifest import sha256
from accordion.study import data as study_data
from accordion.study.figures import RESULTS, SPEED, summarise
from accordion.study.pool import run_all
from accordion.study.run import Place, release, resident
from accordion.study.speed import time_steps
from accordion.study.units import ELASTIC, FIXED, Unit, units


def elastic_study(config: StudyConfig, *, out: Path, shards: Path, resume: Path) -> dict[str, Any]:
    """Stage: the experiment on packed shards; figures, plots and `elastic_study.json` in `out`.

    Args:
        resume: folder of finished and unfinished units; a rerun goes on with it.
    """
    exported = resume / "data"
    if not exported.is_dir():
        study_data.export(shards, exported)
    place = prepare(config, exported, resume)
    run_units(place, jobs=1 if place.device.startswith("cuda") else torch.get_num_threads())
    summary = conclude(place, out, command="stage elastic_study")["summary"]
    cost = summary["cost"]
    return {
        "seeds": len(summary["seeds"]),
        "tax": _means(summary["tax"]),
        "gap": {name: _means(member["gap"]) for name, member in summary["members"].items()},
        "gap_recovered": {
            name: _means(member["recovery"][f"{config.recovery_shares[-1]:g}"]["gap"])
            for name, member in summary["members"].items()
        },
        "flops_ratio": _means(cost["family"]["flops"]),
        "speed": {"seconds_ratio": _means(cost["family"]["seconds"])},
    }


def _means(found: Mapping[str, Any]) -> dict[str, float]:
    return {name: value["mean"] for name, value in found.items()}


def prepare(config: StudyConfig, data: Path, out: Path, *, deadline: float | None = None) -> Place:
    """Where the study works; its device is that of training."""
    digest = hashlib.sha256()
    for path in sorted(data.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(data)} {sha256(path)}\n".encode())
    out.mkdir(parents=True, exist_ok=True)
    return Place(config, data, out, str(training_device()), digest.hexdigest()[:16], deadline)


def run_units(place: Place, *, jobs: int, threads: int = 1) -> bool:
    """Run every unit that is not finished, up to `jobs` at once of `threads` each; whether all are finished.

    Each kind of step is timed first, alone.
    """
    todo = [unit for unit in units(place.study) if not place.result(unit).is_file()]
    if not place.result(SPEED).is_file() and todo:
        place.result(SPEED).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(place.result(SPEED), json.dumps(time_steps(place), indent=1) + "\n")
    say(f"study: {len(todo)} of {len(units(place.study))} units to run on {place.device}, {jobs} at once")
    if jobs > 1:
        for split in study_data.SPLITS:
            resident(place, split)  # unpacked once, before the processes read it
        release()
    return run_all(place, todo, jobs=jobs, threads=threads)


def conclude(place: Place, out: Path, *, command: str, at: str = "") -> dict[str, Any]:
    """Summarise the finished units: results JSON and plots in `out`; `at`: commit, where there is no checkout."""
    from accordion.study.plots import draw

    found = read_units(place.out)
    study = place.study
    results = {
        "command": command,
        "device": device_name(place.device),
        "versions": versions(),
        "commit": at or commit(),
        "data": {"digest": place.identity, **study_data.read_meta(place.data)},
        "settings": json.loads(study.model_dump_json()),
        "activation": "routed experts a token uses / routed experts of a layer",
        "summary": summarise(study, found),
        "units": found,
    }
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")
    draw(results, out)
    return results


def has_a_seed(place: Place) -> bool:
    """Whether a seed has its elastic and its fixed run, so that something can be said."""
    return any(
        all(place.result(Unit(kind, seed)).is_file() for kind in (ELASTIC, FIXED)) for seed in place.study.seeds
    )  # fmt: skip


def read_units(folder: Path) -> dict[str, dict[str, Any]]:
    """The figures of the finished units of a study, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((folder / "units").glob("*.json"))}


def device_name(device: str) -> str:
    """The GPU, or the CPU with its threads."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Python, torch and NumPy."""
    found = {"python": platform.python_version()}
    for name in ("torch", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def commit() -> str:
    """The commit of the checkout, `unknown` outside one."""
    done = subprocess.run(
        ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )  # fmt: skip
    return done.stdout.strip() or "unknown"
