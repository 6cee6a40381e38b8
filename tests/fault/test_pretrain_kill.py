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
from accordion.train.checkpoint import CheckpointWriter, Snapshot, newest_checkpoint
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
    state = ("optimizer.safetensors", "generators.safetensors", "importance.safetensors", "state.json")
    for name in ("model.safetensors", *(f"state/{name}" for name in state)):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def save_for_ever(root: Path, report: Connection) -> None:
    """Save checkpoint after checkpoint as training does, reporting each step when its save begins and is done."""
    torch.set_num_threads(1)
    found = newest_checkpoint(root, IDENTITY)
    step = found.facts["step"] if found else 0
    with CheckpointWriter(root, IDENTITY, kept=2) as writer:
        while True:
            step += 1
            tensors = {"model": {"w": torch.full((200_000,), float(step))}}
            report.send(("begun", step))
            writer.save(Snapshot(tensors, {"step": step}, []))
            writer.wait()
            report.send(("saved", step))


@pytest.mark.timeout(240)
def test_killed_at_any_moment_of_a_save_the_newest_whole_checkpoint_loads(tmp_path):
    moments = random.Random(0)
    fork = multiprocessing.get_context("forkserver")  # from a clean process: ours may hold threads
    fork.set_forkserver_preload(["torch", "accordion.train.checkpoint"])
    within = 0  # kills that came while a save was under way
    while within < 20:
        receive, send = fork.Pipe(duplex=False)
        process = fork.Process(target=save_for_ever, args=(tmp_path / "run", send))
        process.start()
        send.close()
        reports, start = [receive.recv()], time.monotonic()
        reports += [receive.recv(), receive.recv()]  # saved, and the next one begun
        time.sleep(moments.uniform(0, time.monotonic() - start))
        process.kill()
        process.join()
        with contextlib.suppress(EOFError):
            while True:
                reports.append(receive.recv())
        within += reports[-1][0] == "begun"
        saved = max(step for what, step in reports if what == "saved")
        found = newest_checkpoint(tmp_path / "run", IDENTITY)
        assert found is not None
        step = found.facts["step"]
        assert saved <= step <= reports[-1][1]  # nothing reported as saved is lost, nothing half saved is found
        assert torch.equal(found.tensors["model"]["w"], torch.full((200_000,), float(step)))
