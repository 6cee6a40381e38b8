"""Checkpoints of an unfinished run: one folder a step, written whole or not at all, verified before it is read.

A folder `step-00000100/` holds the weights (`model.safetensors`, `config.json`), `optimizer.safetensors`,
`generators.safetensors`, `state.json`, the curves so far and a manifest with the SHA-256 of each. Nothing is pickled.
Where every process wrote its own part of weights and optimizer (`parts`), the folder `parts/` stands for those two.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save
from torch import Tensor

from accordion.errors import ArtifactError, TrainingDiverged
from accordion.model.files import read_tensors
from accordion.observe import say
from accordion.store.atomic import atomic_folder
from accordion.store.manifest import Manifest, describe_files

KIND = "training-state"
PREFIX = "step-"
DAMAGED = "damaged-"
PARTS = "parts"
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW, in the shape of their weight; `step` counts its updates
NAMED = 5  # tensors an error lists


@dataclass(frozen=True)
class Snapshot:
    """Everything that determines the rest of a run.

    Attributes:
        tensors: file stem -> tensor name -> tensor.
        facts: plain JSON: step, loader position, running losses, seconds.
        curves: one line of JSON for each step done.
        parts: where weights and optimizer lie that every process wrote its part of; None: `tensors` holds them.
    """

    tensors: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]
    curves: list[str]
    parts: Path | None = None

    def write(self, folder: Path) -> None:
        """Write the files of the snapshot into `folder`."""
        for stem, tensors in self.tensors.items():
            whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
            (folder / f"{stem}.safetensors").write_bytes(save(whole))
        (folder / "state.json").write_text(json.dumps(self.facts, indent=1, sort_keys=True) + "\n")
        (folder / "curves.jsonl").write_text("".join(f"{line}\n" for line in self.curves))

    def detached(self) -> "Snapshot":
        """The same in memory of its own on the CPU, so that training can go on while it is written."""
        tensors = {
            stem: {name: tensor.detach().to("cpu", copy=True) for name, tensor in held.items()}
            for stem, held in self.tensors.items()
        }
        return Snapshot(tensors, json.loads(json.dumps(self.facts)), list(self.curves))

    def check(self) -> None:
        """Check that the optimizer's state is that of the weights: nothing missing, unknown, or of another form.

        Raises:
            ArtifactError: names the tensors that do not fit.
        """
        weights, state = self.tensors["model"], self.tensors["optimizer"]
        problems = []
        for name in dict.fromkeys(key.rpartition("/")[0] for key in state):
            problems += [f"{name}/{field} is missing" for field in ("step", *MOMENTS) if f"{name}/{field}" not in state]
        for key, tensor in state.items():
            name, _, field = key.rpartition("/")
            like = weights.get(name)
            if like is None or field not in ("step", *MOMENTS):
                problems.append(f"{key} is unknown")
            elif field in MOMENTS and (tensor.shape, tensor.dtype) != (like.shape, like.dtype):
                problems.append(f"{key} is {tuple(tensor.shape)} {tensor.dtype}, its weight {tuple(like.shape)}")
        if problems:
            raise ArtifactError(
                f"state of the optimizer after step {self.facts['step']}: {'; '.join(problems[:NAMED])}; "
                "it does not belong to these weights. Remove this checkpoint to go on from the one before it"
            )

    def check_finite(self) -> None:
        """Check that no number of the state is NaN or infinite: a run could not go on from it.

        Raises:
            TrainingDiverged: names the tensors.
        """
        broken = [
            f"{stem} {name}"
            for stem, tensors in self.tensors.items()
            for name, tensor in tensors.items()
            if not bool(torch.isfinite(tensor).all())
        ]
        refuse_broken(self.facts["step"], broken)

    @classmethod
    def read(cls, folder: Path) -> "Snapshot":
        """Read what `write` wrote."""
        return cls(
            {path.stem: read_tensors(path) for path in sorted(folder.glob("*.safetensors"))},
            json.loads((folder / "state.json").read_text()),
            (folder / "curves.jsonl").read_text().splitlines(),
            folder / PARTS if (folder / PARTS).is_dir() else None,
        )


def refuse_broken(step: int, broken: Sequence[str]) -> None:
    """Refuse to save a state of which the tensors named in `broken` are not finite.

    Raises:
        TrainingDiverged: there are any.
    """
    if broken:
        raise TrainingDiverged(
            f"step {step}: {len(broken)} tensors are not finite after it ({', '.join(broken[:NAMED])}); it is not "
            "saved, the checkpoint before it is intact. Lower pretrain.optimizer.learning_rate"
        )


def save_checkpoint(root: Path, snapshot: Snapshot, identity: Mapping[str, Any], *, kept: int) -> Path:
    """Write one checkpoint, verify it, and only then drop all but the newest `kept`.

    Args:
        root: folder of the run's checkpoints.
        identity: settings and input digest of the run; a resume with others is refused.

    Raises:
        TrainingDiverged: the state is not finite; nothing is written.
        StorageError: the disk is full; nothing is left of it.
        ArtifactError: what is on disk is not what was in memory; the checkpoints before it stay.
    """
    snapshot.check_finite()
    target = step_folder(root, snapshot)
    with atomic_folder(target) as folder:
        seal(folder, snapshot, identity)
    take_over(target, kept=kept)
    return target


def step_folder(root: Path, snapshot: Snapshot) -> Path:
    """Where a checkpoint lies."""
    return root / f"{PREFIX}{snapshot.facts['step']:08d}"


def seal(folder: Path, snapshot: Snapshot, identity: Mapping[str, Any]) -> None:
    """Write the snapshot and, last, the manifest of all that is in `folder`."""
    snapshot.write(folder)
    files = describe_files(folder)
    Manifest(kind=KIND, stage="pretrain", config=dict(identity), parents={}, files=files).write(folder)


def take_over(newest: Path, *, kept: int) -> None:
    """Verify the newest checkpoint of a run, and only then drop all but the last `kept`.

    Raises:
        ArtifactError: what is on disk is not what its manifest says; the checkpoints before it stay.
    """
    Manifest.read(newest).verify(newest)
    for old in _checkpoints(newest.parent)[:-kept]:
        doomed = old.with_name(f".{old.name}.tmp")  # renamed first: a half-deleted folder must not look whole
        os.rename(old, doomed)
        shutil.rmtree(doomed)


class CheckpointWriter:
    """Saves checkpoints while training goes on: the state is copied at once, written and verified in a thread.

    One save is in flight at a time: the next one, and leaving the block, wait for it. What went wrong in the thread
    is raised there.

    Args:
        root, identity, kept: as of `save_checkpoint`.

    Attributes:
        waited: seconds that training stood still for copies and for saves that were still in flight.
    """

    def __init__(self, root: Path, identity: Mapping[str, Any], *, kept: int) -> None:
        self.root, self.identity, self.kept = root, identity, kept
        self.waited = 0.0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._saving: Future[Path] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def save(self, snapshot: Snapshot) -> None:
        """Begin to save the state as it is now."""
        start = time.monotonic()
        self.wait()
        held = snapshot.detached()
        self.waited += time.monotonic() - start
        self._saving = self._thread.submit(save_checkpoint, self.root, held, self.identity, kept=self.kept)

    def wait(self) -> Path | None:
        """Wait until nothing is in flight; the folder saved last, if one was."""
        saving, self._saving = self._saving, None
        return None if saving is None else saving.result()


def newest_checkpoint(root: Path, identity: Mapping[str, Any]) -> Snapshot | None:
    """What `newest_folder` holds, or None when there is none."""
    folder = newest_folder(root, identity)
    return None if folder is None else Snapshot.read(folder)


def newest_folder(root: Path, identity: Mapping[str, Any]) -> Path | None:
    """The newest whole checkpoint under `root`, or None when there is none.

    What a killed save left is removed. A checkpoint whose files do not match its manifest is set aside under
    another name and the one before it is used.

    Raises:
        ArtifactError: a checkpoint of other settings or other data; the text shows the difference.
    """
    if not root.is_dir():
        return None
    for leftover in root.glob(f".{PREFIX}*.tmp"):
        shutil.rmtree(leftover)
    for folder in reversed(_checkpoints(root)):
        try:
            manifest = Manifest.read(folder)
            manifest.verify(folder)
        except ArtifactError as error:
            aside = folder.with_name(f"{DAMAGED}{folder.name}")
            say(f"{error}; set aside as {aside.name}, the checkpoint before it is used")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(folder, aside)
            continue
        if manifest.config != dict(identity):
            raise ArtifactError(
                f"{folder}: belongs to another run ({'; '.join(differences(manifest.config, dict(identity)))}); "
                f"use the settings and data it was made with, or remove {root} to start over"
            )
        return folder
    return None


def newest_step(root: Path) -> int:
    """The step of the newest checkpoint by its name alone, 0 where there is none: for an estimate of what is left."""
    return max((int(path.name.removeprefix(PREFIX)) for path in _checkpoints(root)), default=0)


def _checkpoints(root: Path) -> list[Path]:
    return sorted(path for path in root.glob(f"{PREFIX}*") if path.is_dir())


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """`key: old value -> new value` for each leaf in which two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(set(old) | set(new))
        found = (differences(old.get(key), new.get(key), f"{path}.{key}" if path else key) for key in keys)
        return [line for lines in found for line in lines]
    return [] if old == new else [f"{path}: {old!r} -> {new!r}"]
