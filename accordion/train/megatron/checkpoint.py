"""Weights in Megatron-Core's distributed checkpoint form, each rank writing its part; readable by any number of ranks.

The tensors in it bear canonical names and are cut in the axes of their `Placement`, so that it does not matter how
many ranks wrote them and how many read them.
"""

from pathlib import Path
from typing import Any

import torch

from accordion.model import Model
from accordion.train.megatron.convert import Placement, placements
from accordion.train.megatron.library import dist_checkpointing, parallel_state
from accordion.train.megatron.pipeline import TIED


def save_distributed(model: Model, folder: Path) -> None:
    """Write the weights into an existing empty folder; every rank calls it."""
    dist_checkpointing.save(_sharded(model), str(folder))


@torch.no_grad()
def load_distributed(model: Model, folder: Path) -> None:
    """Fill every rank's part of `model` from a folder that any number of ranks has written."""
    loaded = dist_checkpointing.load(_sharded(model), str(folder))
    own = model.state_dict()
    for place in placements(model):
        block = loaded[place.canonical]
        own[place.local].copy_((block.transpose(0, 1) if place.swapped else block).reshape(own[place.local].shape))


def _sharded(model: Model) -> dict[str, Any]:
    own = model.state_dict()
    return {place.canonical: _shard(place, own[place.local]) for place in placements(model)}


def _shard(place: Placement, part: torch.Tensor) -> Any:
    """This rank's block of a tensor, and which of the copies of that block it is.

    The text table is on the first stage and, as a copy, on the last; everything else is on one stage.
    """
    stage = parallel_state.get_pipeline_model_parallel_rank() if place.canonical == TIED else 0
    offsets = () if place.axis is None else ((place.axis, place.rank, place.ranks),)
    if place.over == "expert":
        copy = (stage, 0, parallel_state.get_expert_data_parallel_rank())
    else:
        tensor = 0 if place.over == "tensor" else parallel_state.get_tensor_model_parallel_rank()
        copy = (stage, tensor, parallel_state.get_data_parallel_rank(with_context_parallel=True))
    return dist_checkpointing.ShardedTensor.from_rank_offsets(
        place.canonical, place.block(part.detach()), *offsets, replica_id=copy
    )
