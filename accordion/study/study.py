"""The experiment as a whole: units in several processes until all are done or the time is up, then what they say."""

import hashlib
import json
import platform
import shlex
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch

from accordion.config.study import StudyConfig
from accordion.device import peak_flops, training_device
from accordion.observe import say
from accordion.store.atomic import atomic_write
from accordion.store.manifest import sha256
from accordion.study import data as study_data
from accordion.study.figures import RESULTS, SPEED, summarise
from accordion.study.place import Place, read_unit, unfinished
from accordion.study.pool import run_all
from accordion.study.run import release, resident
from accordion.study.speed import expected, read_timing, time_steps
from accordion.study.units import ELASTIC, FIXED, Unit, units


class Execution(Protocol):
    """What the stage takes of the run that executes it: how it can be called again."""

    profile: str
    overrides: list[str]
    commit: str


def elastic_study(
    config: StudyConfig, *, out: Path, shards: Path, resume: Path, run: Execution
) -> dict[str, Any]:  # fmt: skip
    """Stage: the experiment on packed shards; figures, plots and `elastic_study.json` in `out`.

    Args:
        resume: folder of finished and unfinished units; a rerun goes on with it.
        run: the execution, for what is told of the units.
    """
    exported = resume / "data"
    if not exported.is_dir():
        study_data.export(shards, exported)
    place = prepare(config, exported, resume, command=repeating(run), commit=run.commit)
    cores = torch.get_num_threads()
    jobs, threads = (1, cores) if place.device.startswith("cuda") else (cores, 1)
    run_units(place, jobs=jobs, threads=threads)
    results = conclude(place, out)
    summary = results["summary"]
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
        "speed": {
            "seconds_ratio": _means(cost["family"]["seconds"]),
            "flops_utilisation": results["units"][SPEED]["flops_utilisation"],
        },
    }


def _means(found: Mapping[str, Any]) -> dict[str, float]:
    return {name: value["mean"] for name, value in found.items()}


def repeating(run: Execution) -> str:
    """The command that runs the workflow of an execution again."""
    words = ["pyflyte", "-c", "flyte.config", "run", "workflows/elastic_study.py", "elastic_study"]
    words += ["--profile", run.profile]
    return shlex.join([*words, "--overrides", json.dumps(run.overrides)] if run.overrides else words)


def prepare(
    config: StudyConfig, data: Path, out: Path, *, command: str, commit: str, deadline: float | None = None
) -> Place:
    """Where the study works; its device is that of training.

    Args:
        command: by which this call can be repeated.
        commit: of the code.

    Raises:
        ArtifactError: `data` is no exported folder.
    """
    study_data.read_meta(data)
    digest = hashlib.sha256()
    for path in sorted(data.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(data)} {sha256(path)}\n".encode())
    out.mkdir(parents=True, exist_ok=True)
    device = str(training_device())
    made = {"command": command, "commit": commit, "device": device_name(device), **versions()}
    return Place(config, data, out, device, digest.hexdigest()[:16], deadline, made)


def run_units(place: Place, *, jobs: int, threads: int = 1) -> bool:
    """Run every unit that is not finished, up to `jobs` at once of `threads` each; whether all are finished.

    Each kind of step is timed first, alone, with as many threads as a unit has.

    Raises:
        ArtifactError: finished units are of other settings or data.
    """
    todo = unfinished(place)
    say(f"study: {len(todo)} of {len(units(place.study))} units to run on {place.device}, {jobs} at once")
    if not todo:
        return True
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        timed = time_steps(place)
        peak = peak_flops(torch.device(place.device)) * (1 if place.device.startswith("cuda") else jobs)
        if jobs > 1:
            for split in study_data.SPLITS:
                resident(place, split)  # unpacked once, before the processes read it
            release()
        return run_all(
            place, {unit: expected(place, unit, timed) for unit in todo}, jobs=jobs, threads=threads, peak=peak
        )
    finally:
        torch.set_num_threads(before)


def conclude(place: Place, out: Path) -> dict[str, Any]:
    """Summarise the finished units: results JSON and plots in `out`.

    Raises:
        ArtifactError: units are of other settings or data.
        DataError: no seed has both its elastic and its fixed run.
    """
    from accordion.study.plots import draw

    found = read_units(place)
    study = place.study
    results = {
        "made": _distinct(found),
        "concluded": dict(place.made),
        "data": {"digest": place.digest, **study_data.read_meta(place.data)},
        "settings": json.loads(study.model_dump_json()),
        "activation": "routed experts a token uses / routed experts of a layer",
        "summary": summarise(study, found),
        "units": found,
    }
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")
    draw(results, out)
    return results


def _distinct(found: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Every command, commit, device, number of threads and version by which the units were made."""
    told = [each for figures in found.values() for each in figures["made"]]
    names = dict.fromkeys(name for each in told for name in each)
    return {name: list(dict.fromkeys(each[name] for each in told if name in each)) for name in names}


def has_a_seed(place: Place) -> bool:
    """Whether a seed has its elastic and its fixed run, so that something can be said."""
    return any(
        all(place.result(Unit(kind, seed)).is_file() for kind in (ELASTIC, FIXED)) for seed in place.study.seeds
    )  # fmt: skip


def read_units(place: Place) -> dict[str, dict[str, Any]]:
    """The figures of the finished units and of the timing, by name, without the settings that `place` has too."""
    found = {unit.name: read_unit(place, unit) for unit in units(place.study)} | {SPEED: read_timing(place)}
    return {
        name: {key: value for key, value in figures.items() if key != "identity"}
        for name, figures in sorted(found.items())
        if figures is not None
    }


def device_name(device: str) -> str:
    """The GPU, or the CPU."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> dict[str, str]:
    """Python, torch and NumPy."""
    found = {"python": platform.python_version()}
    for name in ("torch", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found
