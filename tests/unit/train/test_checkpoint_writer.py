"""Checkpoints written while training goes on: the state of the call, whole, verified; errors are not lost."""

import threading

import pytest
import torch

from accordion.errors import ArtifactError
from accordion.train import checkpoint
from accordion.train.checkpoint import CheckpointWriter, Snapshot, newest_checkpoint

IDENTITY = {"run": 1}


def snapshot(step: int, weight: torch.Tensor) -> Snapshot:
    return Snapshot({"model": {"w": weight}}, {"step": step}, [f"line {step}"])


def test_it_keeps_the_state_of_the_call_whatever_training_does_next(tmp_path):
    weight, curves = torch.zeros(1000), ["line 1"]
    with CheckpointWriter(tmp_path, IDENTITY, kept=2) as writer:
        writer.save(Snapshot({"model": {"w": weight}}, {"step": 1}, curves))
        weight.add_(1)
        curves.append("line 2")
    found = newest_checkpoint(tmp_path, IDENTITY)
    assert found is not None and not found.tensors["model"]["w"].any() and found.curves == ["line 1"]


def test_training_goes_on_while_it_writes(tmp_path, monkeypatch):
    may_write = threading.Event()
    whole = checkpoint.save_checkpoint

    def slow(*given, **named):
        assert may_write.wait(20)
        return whole(*given, **named)

    monkeypatch.setattr(checkpoint, "save_checkpoint", slow)
    with CheckpointWriter(tmp_path, IDENTITY, kept=1) as writer:
        writer.save(snapshot(1, torch.ones(3)))
        assert newest_checkpoint(tmp_path, IDENTITY) is None  # save has returned, nothing is written yet
        may_write.set()
        writer.save(snapshot(2, torch.ones(3)))  # waits for the first
        assert writer.waited > 0
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == ["step-00000002"]


def test_an_error_of_the_thread_is_raised_at_the_next_save_and_at_the_end(tmp_path, monkeypatch):
    def full(*given, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"), CheckpointWriter(tmp_path, IDENTITY, kept=1) as writer:
        writer.save(snapshot(1, torch.ones(3)))
        writer.save(snapshot(2, torch.ones(3)))
    with pytest.raises(OSError, match="No space left"), CheckpointWriter(tmp_path, IDENTITY, kept=1) as writer:
        writer.save(snapshot(1, torch.ones(3)))


def test_a_disk_that_changes_what_is_written_is_noticed(tmp_path, monkeypatch):
    whole = checkpoint.save_checkpoint

    def damaging(*given, **named):
        folder = whole(*given, **named)
        path = folder / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        return folder

    monkeypatch.setattr(checkpoint, "save_checkpoint", damaging)
    with (
        pytest.raises(ArtifactError, match=r"model\.safetensors"),
        CheckpointWriter(tmp_path, IDENTITY, kept=1) as writer,
    ):
        writer.save(snapshot(1, torch.ones(3)))
