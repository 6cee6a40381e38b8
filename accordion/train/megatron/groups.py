"""Megatron-Core's process groups: tensor ranks next to each other, then context ranks, readers, stages."""

import math

import torch.distributed as dist

from accordion.config.pretrain import ParallelConfig
from accordion.train.megatron.library import parallel_state
from accordion.train.ranks import Ranks


def join(parallel: ParallelConfig) -> Ranks:
    """Set the groups up (torch's own group stands already) and say where this process is."""
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        context_parallel_size=parallel.context,
        expert_model_parallel_size=parallel.expert,
        expert_tensor_parallel_size=1,
        distributed_timeout_minutes=math.ceil(parallel.patience / 60),
    )
    return Ranks(
        rank=parallel_state.get_data_parallel_rank(),
        count=parallel_state.get_data_parallel_world_size(),
        readers=parallel_state.get_data_parallel_group(),
        routers=parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True),
        stages=parallel_state.get_pipeline_model_parallel_group() if parallel.pipeline > 1 else None,
        leader=dist.get_rank() == 0,
    )


def leave() -> None:
    """Forget the groups."""
    parallel_state.destroy_model_parallel()
