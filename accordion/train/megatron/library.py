"""Megatron-Core as this engine uses it, imported in one place; without a GPU its CUDA calls are redirected."""

import logging
import warnings

with warnings.catch_warnings():  # it names each GPU library that it does without
    warnings.simplefilter("ignore")
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.dist_checkpointing.mapping import is_main_replica
    from megatron.core.dist_checkpointing.strategies import filesystem_async  # noqa: F401  (else too late)
    from megatron.core.dist_checkpointing.strategies.base import SaveShardedStrategy
    from megatron.core.dist_checkpointing.strategies.torch import MCoreSavePlanner, mcore_to_pyt_state_dict
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.optimizer import OptimizerConfig, ParamKey, get_megatron_optimizer
    from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
    from megatron.core.optimizer.optimizer_config import ParamWithNamePredicate
    from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
    from megatron.core.pipeline_parallel.schedules import backward_step
    from megatron.core.tensor_parallel.layers import (
        ColumnParallelLinear,
        RowParallelLinear,
        set_tensor_model_parallel_attributes,
    )
    from megatron.core.tensor_parallel.mappings import (
        gather_from_sequence_parallel_region,
        scatter_to_sequence_parallel_region,
    )
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
    from megatron.core.transformer.mlp import MLPSubmodules
    from megatron.core.transformer.module import MegatronModule
    from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
    from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
    from megatron.core.transformer.moe.router import TopKRouter
    from megatron.core.transformer.moe.shared_experts import SharedExpertMLP
    from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules
    from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from accordion.train.megatron import cpu

cpu.redirect()
# what it does in every step and torch has words for, on every rank: gradients of parts of buffers, older names
warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor that is not a leaf", UserWarning)
warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
warnings.filterwarnings("ignore", r"full scope is deprecated", UserWarning)
# for each layer whose experts are not its own class it says that they get no process groups; ours ask for them
logging.getLogger("megatron.core.transformer.transformer_layer").setLevel(logging.ERROR)

__all__ = [
    "ColumnParallelLinear",
    "DistributedDataParallel",
    "DistributedDataParallelConfig",
    "MCoreSavePlanner",
    "MLPSubmodules",
    "MegatronModule",
    "MoEAlltoAllTokenDispatcher",
    "MoELayer",
    "MoESubmodules",
    "ModuleSpec",
    "OptimizerConfig",
    "P2PCommunicator",
    "ParamKey",
    "ParamWithNamePredicate",
    "RowParallelLinear",
    "SaveShardedStrategy",
    "SelfAttention",
    "SelfAttentionSubmodules",
    "SharedExpertMLP",
    "TopKRouter",
    "TransformerBlock",
    "TransformerBlockSubmodules",
    "TransformerConfig",
    "TransformerLayer",
    "TransformerLayerSubmodules",
    "backward_step",
    "clip_grad_by_total_norm_fp32",
    "dist_checkpointing",
    "finalize_model_grads",
    "gather_from_sequence_parallel_region",
    "get_default_pg_collection",
    "get_megatron_optimizer",
    "is_main_replica",
    "mcore_to_pyt_state_dict",
    "model_parallel_cuda_manual_seed",
    "parallel_state",
    "scatter_to_sequence_parallel_region",
    "set_tensor_model_parallel_attributes",
]
