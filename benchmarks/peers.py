"""Peers of the model benchmarks, at the shapes of ours: Megatron-Core and transformers layers and whole models."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from accordion.config.pretrain import ModelConfig, ParallelConfig
from accordion.train.megatron import cpu
from accordion.train.megatron.groups import join, leave
from accordion.train.megatron.library import TransformerConfig, model_parallel_cuda_manual_seed


@contextmanager
def megatron(device: torch.device) -> Iterator[None]:
    """Megatron-Core's groups of one process."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    join(ParallelConfig())
    model_parallel_cuda_manual_seed(0, force_reset_rng=True)
    try:
        yield
    finally:
        leave()
        dist.destroy_process_group()


def prepare() -> None:
    """Let Megatron-Core's own layers run without a GPU, and without Transformer Engine, whose product 0.16.1 looks
    for by a name that it has not defined then."""
    from megatron.core.transformer.moe import moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None
    cpu.redirect()


def megatron_config(shape: ModelConfig) -> TransformerConfig:
    """The shape as Megatron-Core's own layers take it, nothing fused that needs Transformer Engine."""
    return TransformerConfig(
        num_layers=shape.layers, hidden_size=shape.hidden, num_attention_heads=shape.heads,
        num_moe_experts=shape.experts[0], moe_router_topk=shape.top_k[0], moe_ffn_hidden_size=shape.expert_hidden,
        ffn_hidden_size=shape.expert_hidden, moe_router_load_balancing_type="none", moe_router_pre_softmax=False,
        moe_token_dispatcher_type="alltoall", gated_linear_unit=True, activation_func=F.silu, normalization="RMSNorm",
        qk_layernorm=True, add_bias_linear=False, bias_dropout_fusion=False, bias_activation_fusion=False,
        masked_softmax_fusion=False, gradient_accumulation_fusion=False, hidden_dropout=0.0, attention_dropout=0.0,
        use_cpu_initialization=not torch.cuda.is_available(),
    )  # fmt: skip


class MegatronLayer(nn.Module):
    """Megatron-Core's MoELayer with SequentialMLP experts: (n, H) -> (n, H)."""

    def __init__(self, shape: ModelConfig) -> None:
        super().__init__()
        from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
        from megatron.core.transformer.spec_utils import build_module

        prepare()
        spec = get_moe_module_spec(use_te=False, num_experts=shape.experts[0], moe_grouped_gemm=False)
        self.layer = build_module(spec, config=megatron_config(shape))
        self.layer.set_layer_number(1)

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer."""
        return self.layer(x.unsqueeze(1))[0].squeeze(1)


class QwenLayer(nn.Module):
    """transformers' Qwen3-MoE block: (n, H) -> (n, H)."""

    def __init__(self, shape: ModelConfig, implementation: str) -> None:
        super().__init__()
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

        self.block = Qwen3MoeSparseMoeBlock(qwen_config(shape, implementation))
        for weight in self.parameters():
            nn.init.normal_(weight, std=shape.hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        return self.block(x.unsqueeze(0)).squeeze(0)


class Dense(nn.Module):
    """A SwiGLU of as many operations a token as the chosen experts together."""

    def __init__(self, shape: ModelConfig) -> None:
        super().__init__()
        inner = shape.top_k[0] * shape.expert_hidden
        self.both = nn.Linear(shape.hidden, 2 * inner, bias=False)
        self.out = nn.Linear(inner, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, H) -> (n, H)."""
        gate, up = self.both(x).chunk(2, -1)
        return self.out(F.silu(gate) * up)


def qwen_config(shape: ModelConfig, implementation: str) -> Any:
    """The shape as transformers takes it."""
    from transformers import Qwen3MoeConfig

    config = Qwen3MoeConfig(  # type: ignore[call-arg]
        vocab_size=shape.text_vocabulary, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.heads, head_dim=shape.hidden // shape.heads,
        num_experts=shape.experts[0], num_experts_per_tok=shape.top_k[0], moe_intermediate_size=shape.expert_hidden,
        norm_topk_prob=True, decoder_sparse_step=1, router_aux_loss_coef=0.0, use_cache=False,
    )  # fmt: skip
    config._experts_implementation = implementation
    return config


def qwen_loss(shape: ModelConfig, implementation: str) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
    """transformers' Qwen3-MoE language model and its loss of tokens (B, S) and next tokens (B, S)."""
    from transformers import Qwen3MoeForCausalLM

    config = qwen_config(shape, implementation)
    config._attn_implementation = "sdpa"
    model = Qwen3MoeForCausalLM(config)

    def loss(tokens: Tensor, following: Tensor) -> Tensor:
        logits = model(input_ids=tokens).logits
        return F.cross_entropy(logits.flatten(0, 1), following.flatten())

    return model, loss


def megatron_loss(shape: ModelConfig, length: int) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
    """Megatron-Core's GPTModel of its local layers and its loss of tokens (B, S) and next tokens (B, S)."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    prepare()
    spec = get_gpt_layer_local_spec(num_experts=shape.experts[0], qk_layernorm=True, normalization="RMSNorm")
    model = GPTModel(
        megatron_config(shape), spec, vocab_size=shape.text_vocabulary, max_sequence_length=length,
        position_embedding_type="rope", rotary_base=int(shape.rope_base),
    )  # fmt: skip

    def loss(tokens: Tensor, following: Tensor) -> Tensor:
        length = tokens.shape[1]
        hidden = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)[None, None]
        index = torch.arange(length, device=tokens.device).expand_as(tokens)
        return model(tokens, index, hidden, labels=following).mean()

    return model, loss
