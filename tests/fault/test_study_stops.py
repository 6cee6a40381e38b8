"""The family experiment over two processes, stopped and killed: nobody trains on in secret, and nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from accordion.study.data import export
from tests.unit.train.synthetic_shards import tiny_config, write_shards

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def study(tmp_path: Path) -> Callable[[], subprocess.Popen[str]]:
    export(write_shards(tmp_path / "shards"), tmp_path / "data")
    pretrain = tiny_config(steps=100_000, checkpoint_every=100_000, code_noise=0.0)
    settings = {
        "pretrain": json.loads(pretrain.model_dump_json()),
        "seeds": [0, 1], "family": ["small"], "recovery_shares": [0.1], "timed_steps": 1,
        "validation_sequences": 8, "ranking_sequences": 4,
    }  # fmt: skip
    profile = tmp_path / "endless.yaml"
    profile.write_text(json.dumps({"study": settings, "tokenizers": {"audio": {"levels": 2}}}))  # JSON is YAML
    command = [sys.executable, "-m", "accordion.study", "run", "--profile", profile, "--data", tmp_path / "data",
               "--out", tmp_path / "out", "--jobs", "2", "--device", "cpu"]  # fmt: skip

    def begin() -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True)

    return begin


def workers(of: subprocess.Popen[str]) -> list[psutil.Process]:
    """Its two training processes, once both have trained for a moment."""
    until = time.monotonic() + 300
    while time.monotonic() < until and of.poll() is None:
        found = [child for child in psutil.Process(of.pid).children() if "spawn_main" in " ".join(child.cmdline())]
        if len(found) == 2 and all(sum(child.cpu_times()[:2]) > 6 for child in found):
            return found
        time.sleep(0.2)
    pytest.fail(f"no two processes trained within five minutes (exit status {of.poll()})")


def saved(folder: Path) -> set[str]:
    """The unfinished units of which there is a checkpoint."""
    return {path.parent.name for path in (folder / "out" / "partial").glob("*/step-*")}


def test_a_killed_or_stopped_experiment_keeps_its_units_and_leaves_nobody_behind(
    study: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    first = study()
    left = workers(first)
    first.kill()
    first.communicate()
    _, alive = psutil.wait_procs(left, timeout=60)
    assert not alive
    assert saved(tmp_path) == {"elastic_seed0", "fixed_seed0"}

    second = study()
    left = workers(second)
    second.send_signal(signal.SIGTERM)
    _, said = second.communicate(timeout=120)
    assert second.returncode == 3
    assert "elastic_seed0: goes on after step" in said and "fixed_seed0: goes on after step" in said
    assert "error: study: stopped by SIGTERM; the units at hand are saved; run it again to go on" in said
    assert not psutil.wait_procs(left, timeout=10)[1]


@pytest.mark.parametrize("how", ["one is killed", "all are told to end"])
def test_when_a_process_ends_so_does_the_experiment_and_units_are_saved(
    study: Callable[[], subprocess.Popen[str]], tmp_path: Path, how: str
) -> None:
    run = study()
    left = workers(run)
    if how == "one is killed":  # as for its memory
        left[0].kill()
    else:  # as a scheduler does that takes the machine back
        for process in (run, *left):
            process.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 3
    assert not psutil.wait_procs(left, timeout=10)[1]
    if how == "one is killed":
        assert "error: study: a process that ran a unit was killed (often for memory); the other units at hand" in said
        assert len(saved(tmp_path)) == 1
    else:
        assert "error: study: stopped by SIGTERM; the units at hand are saved; run it again to go on" in said
        assert saved(tmp_path) == {"elastic_seed0", "fixed_seed0"}
