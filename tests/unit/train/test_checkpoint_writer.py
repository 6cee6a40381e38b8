"""Checkpoints written while training goes on: the state of the call, whole, verified; errors are not lost."""

import threading
from contextlib import contextmanager

import pytest
import torch

from accordion.errors import ArtifactError, StorageError, TrainingDiverged
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


@pytest.mark.parametrize("saves", [1, 2])
def test_an_error_of_the_thread_is_raised_at_the_next_save_or_at_the_end_and_the_old_checkpoint_stays(
    tmp_path, monkeypatch, saves
):
    with CheckpointWriter(tmp_path, IDENTITY, kept=1) as writer:
        writer.save(snapshot(1, torch.ones(3)))

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("accordion.store.atomic.sync_tree", full)
    wanted = r"step-00000002: no space to write it .*what was there before is whole"
    with pytest.raises(StorageError, match=wanted), CheckpointWriter(tmp_path, IDENTITY, kept=1) as writer:
        for step in range(2, 2 + saves):
            writer.save(snapshot(step, torch.ones(3)))
            assert step == 2  # the second call raises
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    found = newest_checkpoint(tmp_path, IDENTITY)
    assert found is not None and found.facts["step"] == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_is_never_saved(tmp_path, value):
    broken = torch.ones(3)
    broken[1] = value
    with (
        pytest.raises(TrainingDiverged, match=r"step 2: 1 tensors are not finite after it \(model w\).*learning_rate"),
        CheckpointWriter(tmp_path, IDENTITY, kept=2) as writer,
    ):
        writer.save(snapshot(1, torch.ones(3)))
        writer.save(snapshot(2, broken))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_an_optimizer_of_other_weights_is_refused():
    weight = torch.ones(2, 3)
    whole = {"w/step": torch.tensor(1.0), "w/exp_avg": weight, "w/exp_avg_sq": weight}

    def check(**changes):
        state = {key.replace("__", "/"): value for key, value in changes.items()}
        held = {key: value for key, value in {**whole, **state}.items() if value is not None}
        Snapshot({"model": {"w": weight}, "optimizer": held}, {"step": 7}, []).check()

    check()
    for changes, why in (
        ({"w__exp_avg": None}, "w/exp_avg is missing"),
        ({"w__step": None}, "w/step is missing"),
        ({"w__exp_avg": torch.ones(3, 2)}, r"w/exp_avg is \(3, 2\) torch.float32, its weight \(2, 3\)"),
        ({"w__exp_avg_sq": weight.double()}, r"w/exp_avg_sq is \(2, 3\) torch.float64"),
        ({"w__momentum": weight}, "w/momentum is unknown"),
        ({"v__step": weight, "v__exp_avg": weight, "v__exp_avg_sq": weight}, "v/step is unknown"),
    ):
        with pytest.raises(ArtifactError, match=f"after step 7: .*{why}"):
            check(**changes)


def test_a_disk_that_changes_what_is_written_is_noticed_before_the_checkpoint_before_it_goes(tmp_path, monkeypatch):
    whole = checkpoint.atomic_folder

    @contextmanager
    def damaging(target):
        with whole(target) as folder:
            yield folder
        if target.name.endswith("2"):
            path = target / "model.safetensors"
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)

    monkeypatch.setattr(checkpoint, "atomic_folder", damaging)
    with (
        pytest.raises(ArtifactError, match=r"step-00000002: model\.safetensors was altered"),
        CheckpointWriter(tmp_path, IDENTITY, kept=1) as writer,
    ):
        writer.save(snapshot(1, torch.ones(3)))
        writer.save(snapshot(2, torch.ones(3)))
    found = newest_checkpoint(tmp_path, IDENTITY)
    assert found is not None and found.facts["step"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged-step-00000002", "step-00000001"]
