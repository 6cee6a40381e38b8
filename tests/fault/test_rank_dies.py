"""A rank of a run under torchrun is killed: the launcher starts all again, and the run goes on from its checkpoint."""

import json
import os
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
CHANGES = (f"pretrain.steps={STEPS}", "pretrain.checkpoint_every=2", "pretrain.validation_sequences=8")


def launch(shards: Path, out: Path, resume: Path) -> subprocess.Popen[str]:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2", "-m"]
    stage = ["accordion.train", "--profile", PROFILE, "--shards", shards, "--out", out, "--resume", resume]
    changes = [part for change in CHANGES for part in ("--set", change)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, *map(str, stage), *changes], cwd=REPOSITORY, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def kill_a_rank_after_a_checkpoint(launcher: subprocess.Popen[str], resume: Path) -> None:
    until = time.monotonic() + 180
    while not list(resume.glob("step-*")):
        assert launcher.poll() is None and time.monotonic() < until, launcher.communicate()[0]
        time.sleep(0.02)
    ranks = [
        child for child in psutil.Process(launcher.pid).children(recursive=True) if "accordion.train" in child.cmdline()
    ]
    ranks[-1].kill()


@pytest.mark.timeout(400)
def test_the_run_goes_on_and_gives_what_one_process_gives(tmp_path: Path) -> None:
    shards, resume, out = write_shards(tmp_path / "shards"), tmp_path / "resume", tmp_path / "out"
    launcher = launch(shards, out, resume)
    kill_a_rank_after_a_checkpoint(launcher, resume)
    said, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, said[-4000:]
    assert f"of {STEPS}" in said and "resumed after step" in said
    curves = [json.loads(line) for line in (out / "curves.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curves] == list(range(1, STEPS + 1))
    alone = tmp_path / "alone"
    alone.mkdir()
    config = load_profile(PROFILE, CHANGES).pretrain
    pretrain(config, shards=shards, out=alone, resume=tmp_path / "alone-resume")
    unbroken = [json.loads(line) for line in (alone / "curves.jsonl").read_text().splitlines()]
    for mine, whole in zip(curves, unbroken, strict=True):
        assert mine["loss/total"] == pytest.approx(whole["loss/total"], rel=1e-2), mine["step"]
