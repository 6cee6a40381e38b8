"""Megatron-Core's distributed checkpoint form: each rank writes its part of tensors; any number of ranks reads them.

The tensors in it bear canonical names and are cut in the axes of their `Placement`, so that it does not matter how
many ranks wrote them and how many read them. That holds for weights and for all that has their shapes, such as moments.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint as torch_form
from torch.distributed.checkpoint.api import CheckpointException

from accordion.errors import ArtifactError, StorageError
from accordion.model import Model
from accordion.train.megatron import library as core
from accordion.train.megatron.convert import Placement, placements
from accordion.train.megatron.library import dist_checkpointing, parallel_state
from accordion.train.megatron.pipeline import TIED

NAMED = 5  # tensors an error lists


class InThisProcess(core.SaveShardedStrategy):
    """Megatron-Core's default form, its files written by the rank itself.

    Megatron's own writer forks, and starts one more process for what the forked ones say. A signal to all processes
    of a run would end that one, and with it the save by which the run means to stop; a killed rank would leave it.
    """

    def __init__(self) -> None:
        super().__init__("torch_dist", 1)

    @property
    def can_handle_sharded_objects(self) -> bool:
        """There are none."""
        return True

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: str) -> None:
        """Write the blocks of which this rank has the first copy."""
        held = {name: [shard] for name, shard in sharded_state_dict.items() if core.is_main_replica(shard.replica_id)}
        torch_form.save(
            core.mcore_to_pyt_state_dict(held),
            storage_writer=torch_form.FileSystemWriter(checkpoint_dir),
            planner=core.MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )


def save_distributed(model: Model, parts: Mapping[str, Tensor], folder: Path) -> None:
    """Write this rank's parts (by their names in `model`) into an existing empty folder; every rank calls it.

    Raises:
        StorageError: a rank could not write.
    """
    try:
        dist_checkpointing.save(_sharded(model, parts), str(folder), sharded_strategy=InThisProcess())
    except CheckpointException as error:  # every rank is told which ones failed, and why
        causes = {rank: cause for rank, (cause, _) in error.failures.items()}
        if not all(isinstance(cause, OSError | RuntimeError) for cause in causes.values()):
            raise
        raise StorageError(
            f"{folder}: not every rank could write its part ({'; '.join(f'{r}: {why}' for r, why in causes.items())}); "
            "the checkpoints before this one are whole. Free space on that disk, or give every rank access to it, and "
            "run again"
        ) from error


@torch.no_grad()
def load_distributed(model: Model, parts: Mapping[str, Tensor], folder: Path) -> None:
    """Fill this rank's parts (by their names in `model`) from a folder that any number of ranks has written.

    Raises:
        ArtifactError: a tensor is missing there, or of another shape or type.
    """
    places = [place for place in placements(model) if place.local in parts]
    _check(places, parts, folder)
    loaded = dist_checkpointing.load(_sharded(model, parts), str(folder))
    for place in places:
        part = parts[place.local]
        part.copy_(place.part(loaded[place.canonical], part))


def _check(places: list[Placement], parts: Mapping[str, Tensor], folder: Path) -> None:
    held = dist_checkpointing.load_tensors_metadata(str(folder))
    problems = []
    for place in places:
        given, wanted = held.get(place.canonical), (place.view, parts[place.local].dtype)
        if given is None:
            problems.append(f"{place.canonical} is missing")
        elif (tuple(given.global_shape), given.dtype) != wanted:
            problems.append(f"{place.canonical} is {tuple(given.global_shape)} {given.dtype}, not {wanted}")
    if problems:
        raise ArtifactError(
            f"{folder}: {'; '.join(problems[:NAMED])}; it does not belong to this model. Remove this checkpoint to go "
            "on from the one before it"
        )


def _sharded(model: Model, parts: Mapping[str, Tensor]) -> dict[str, Any]:
    held = [place for place in placements(model) if place.local in parts]
    return {place.canonical: _shard(place, parts[place.local], turn) for turn, place in enumerate(held)}


def _shard(place: Placement, part: Tensor, turn: int) -> Any:
    """This rank's block of a tensor, and which of the copies of that block it is: the first one is written.

    The ranks that have the same blocks take turns to be the first, so that each writes its share of them. The text
    table is on the first stage and, as a copy, on the last; everything else is on one stage.
    """
    stage = parallel_state.get_pipeline_model_parallel_rank() if place.canonical == TIED else 0
    offsets = () if place.axis is None else ((place.axis, place.rank, place.ranks),)
    if place.over == "expert":
        group, tensor = parallel_state.get_expert_data_parallel_group(), 0
    else:
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        tensor = 0 if place.over == "tensor" else parallel_state.get_tensor_model_parallel_rank()
    copy = (stage, tensor, (group.rank() - turn) % group.size())
    return dist_checkpointing.ShardedTensor.from_rank_offsets(
        place.canonical, place.block(part.detach()), *offsets, replica_id=copy
    )
