"""Checkpoints of which each process writes its part of weights and moments, and how one process reads them whole.

Such a folder is that of `checkpoint`, but for `parts/` in the place of the files of weights and optimizer: `weights/`,
`exp_avg/` and `exp_avg_sq/`, each in Megatron-Core's distributed form, which is PyTorch's distributed checkpoint, and
`steps.safetensors`: how often AdamW has moved each weight. All names are canonical; shapes are those of
`Placement.view`. The tables of contents in it are pickles: read only what your own runs wrote.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from accordion.errors import ArtifactError
from accordion.model.files import read_tensors
from accordion.store.atomic import atomic_folder, enough_disk
from accordion.train.checkpoint import MOMENTS, PARTS, Snapshot, seal, step_folder, take_over

if TYPE_CHECKING:  # engines read parts
    from accordion.train.engine import Engine

WEIGHTS = "weights"
STEPS = "steps.safetensors"


def save_in_parts(
    root: Path, snapshot: Snapshot, engine: "Engine", identity: Mapping[str, Any], *, kept: int
) -> Path:  # fmt: skip
    """As `save_checkpoint`, of an engine's own weights and optimizer; every process calls it, and trains on after it.

    All write into one temporary folder, which the leader seals and renames when all are done; so `root` is on a file
    system that all see.

    Args:
        snapshot: all but weights and optimizer.

    Raises:
        TrainingDiverged, StorageError, ArtifactError: as of `save_checkpoint`.
    """
    ranks, target = engine.ranks, step_folder(root, snapshot)
    with ExitStack() as open_:
        made = None
        if ranks.leader:
            made = open_.enter_context(atomic_folder(target))
            (made / PARTS).mkdir()
        folder = ranks.tell(made)
        with enough_disk(target):
            engine.save_parts(folder / PARTS, snapshot.facts["step"])
        ranks.wait()
        if ranks.leader:
            seal(folder, snapshot, identity)
    if ranks.leader:
        take_over(target, kept=kept)
    ranks.wait()
    return target


def read_parts(folder: Path, shapes: Mapping[str, torch.Size]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Canonical weights and optimizer state (`name/field`), all of them on the CPU.

    Args:
        shapes: of the weights by name.

    Raises:
        ArtifactError: a tensor has another number of elements than its weight, or no weight.
    """
    steps = read_tensors(folder / STEPS)
    state = {f"{name}/step": step for name, step in steps.items()}
    for field in MOMENTS:
        state |= {f"{name}/{field}": tensor for name, tensor in _read(folder / field, shapes).items()}
    return _read(folder / WEIGHTS, shapes), state


def _read(folder: Path, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    from torch.distributed.checkpoint import FileSystemReader, load  # a second to import
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = FileSystemReader(folder)
    entries = reader.read_metadata().state_dict_metadata
    held = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    load(held, storage_reader=reader, no_dist=True)
    problems = [name for name, tensor in held.items() if name not in shapes or tensor.numel() != shapes[name].numel()]
    if problems:
        raise ArtifactError(
            f"{folder}: {', '.join(problems[:5])}: not of this model; remove this checkpoint to go on from the one "
            "before it"
        )
    return {name: tensor.reshape(shapes[name]) for name, tensor in held.items()}
