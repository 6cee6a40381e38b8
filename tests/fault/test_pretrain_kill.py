"""A pre-training run killed with SIGKILL and started again gives the losses of the unbroken run, bit for bit."""

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from accordion.config.pretrain import PretrainConfig
from accordion.train.checkpoint import Snapshot, newest_checkpoint, save_checkpoint
from tests.unit.train.synthetic_shards import tiny_config, write_shards

IDENTITY = {"run": 1}
ROOT = Path(__file__).resolve().parents[2]
RUN = """
import sys, time
from pathlib import Path
import torch
from accordion.config.pretrain import PretrainConfig
from accordion.observe import listening
from accordion.train.pretrain import pretrain
torch.set_num_threads(1)
config, shards, out, resume, pause = sys.argv[1:]
Path(out).mkdir()
with listening(lambda step, figures: (print(step, flush=True), time.sleep(float(pause)))):
    pretrain(PretrainConfig.from_json(config), shards=Path(shards), out=Path(out), resume=Path(resume))
"""


def start(config: PretrainConfig, shards: Path, out: Path, resume: Path, pause: float = 0.0) -> subprocess.Popen:
    command = [sys.executable, "-c", RUN, config.model_dump_json(), str(shards), str(out), str(resume), str(pause)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output + errors


def test_killed_in_training_and_resumed_gives_the_same_losses(tmp_path):
    shards, config = write_shards(tmp_path / "shards"), tiny_config(steps=20, checkpoint_every=3)
    finish(start(config, shards, tmp_path / "whole", tmp_path / "whole-resume"))
    killed = start(config, shards, tmp_path / "killed", tmp_path / "resume", pause=0.05)
    assert killed.stdout is not None
    for line in killed.stdout:
        if int(line) == 11:
            killed.send_signal(signal.SIGKILL)
            break
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    log = finish(start(config, shards, tmp_path / "resumed", tmp_path / "resume"))
    assert "resumed after step 9 of 20" in log
    assert (tmp_path / "resumed/curves.jsonl").read_text() == (tmp_path / "whole/curves.jsonl").read_text()
    for name in ("model.safetensors", "state/optimizer.safetensors", "state/generators.safetensors"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def save_for_ever(root: Path, report: Connection) -> None:
    """Save checkpoint after checkpoint, reporting each step when its save has returned."""
    torch.set_num_threads(1)
    found = newest_checkpoint(root, IDENTITY)
    step = found.facts["step"] if found else 0
    while True:
        step += 1
        tensors = {"model": {"w": torch.full((200_000,), float(step))}}
        save_checkpoint(root, Snapshot(tensors, {"step": step}, []), IDENTITY, kept=2)
        report.send(step)


@pytest.mark.timeout(240)
def test_killed_at_any_moment_of_a_save_the_newest_whole_checkpoint_loads(tmp_path):
    moments = random.Random(0)
    fork = multiprocessing.get_context("forkserver")  # from a clean process: ours may hold threads
    fork.set_forkserver_preload(["torch", "accordion.train.checkpoint"])
    saved = 0
    for _ in range(20):
        receive, send = fork.Pipe(duplex=False)
        process = fork.Process(target=save_for_ever, args=(tmp_path / "run", send))
        process.start()
        send.close()
        saved = receive.recv()
        time.sleep(moments.uniform(0, 0.03))
        process.kill()
        process.join()
        with contextlib.suppress(EOFError):
            while True:
                saved = receive.recv()
        found = newest_checkpoint(tmp_path / "run", IDENTITY)
        assert found is not None and found.facts["step"] >= saved  # nothing reported as saved is lost
        assert torch.equal(found.tensors["model"]["w"], torch.full((200_000,), float(found.facts["step"])))
    assert saved >= 20
