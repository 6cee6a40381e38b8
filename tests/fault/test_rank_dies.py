"""Under torchrun a rank is killed, later one hangs; each time all start again and go on from the last checkpoint."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from accordion.config.profile import load_profile
from accordion.home import REPOSITORY
from accordion.train.pretrain import pretrain
from tests.unit.train.synthetic_shards import write_shards

pytestmark = pytest.mark.slow
PROFILE = "tests/workflows/tiny.yaml"
STEPS = 40
CHANGES = (
    f"pretrain.steps={STEPS}", "pretrain.checkpoint_every=2", "pretrain.validation_sequences=8",
    "pretrain.parallel.patience=20",
)  # fmt: skip


def launch(shards: Path, out: Path, resume: Path) -> subprocess.Popen[str]:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2", "-m"]
    stage = ["accordion.train", "--profile", PROFILE, "--shards", shards, "--out", out, "--resume", resume]
    changes = [part for change in CHANGES for part in ("--set", change)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, *map(str, stage), *changes], cwd=REPOSITORY, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def stop_a_rank(
    launcher: subprocess.Popen[str], resume: Path, number: signal.Signals, gone: frozenset[int] = frozenset()
) -> frozenset[int]:
    """Send `number` to the last rank when those that are not `gone` have written a checkpoint; their process ids."""
    before, until = None, time.monotonic() + 180
    while before is None or newest(resume) == before:
        assert launcher.poll() is None and time.monotonic() < until, launcher.communicate()[0]
        children = psutil.Process(launcher.pid).children(recursive=True)
        ranks = [child for child in children if child.pid not in gone and "accordion.train" in command(child)]
        before = newest(resume) if before is None and len(ranks) == 2 else before
        time.sleep(0.02)
    ranks[-1].send_signal(number)
    return frozenset(rank.pid for rank in ranks)


def newest(resume: Path) -> str:
    return max((folder.name for folder in resume.glob("step-*")), default="")


def command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has just ended
        return []


@pytest.mark.timeout(600)
def test_the_run_goes_on_and_gives_what_one_process_gives(tmp_path: Path) -> None:
    shards, resume, out = write_shards(tmp_path / "shards"), tmp_path / "resume", tmp_path / "out"
    launcher = launch(shards, out, resume)
    killed = stop_a_rank(launcher, resume, signal.SIGKILL)
    stop_a_rank(launcher, resume, signal.SIGSTOP, gone=killed)
    said, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, said[-4000:]
    assert said.count("resumed after step") == 2 and "did not answer for 20 s" in said
    curves = [json.loads(line) for line in (out / "curves.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curves] == list(range(1, STEPS + 1))
    alone = tmp_path / "alone"
    alone.mkdir()
    config = load_profile(PROFILE, CHANGES).pretrain
    pretrain(config, shards=shards, out=alone, resume=tmp_path / "alone-resume")
    unbroken = [json.loads(line) for line in (alone / "curves.jsonl").read_text().splitlines()]
    for mine, whole in zip(curves, unbroken, strict=True):
        losses = {name: value for name, value in whole.items() if name.startswith("loss/")}
        assert {"loss/text", "loss/image", "loss/video", "loss/audio"} < losses.keys()
        assert {name: mine[name] for name in losses} == pytest.approx(losses, rel=1e-4), mine["step"]
