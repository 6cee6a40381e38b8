"""The Megatron-Core backbone: a TransformerBlock of elastic layers, over tensor, context, expert and stage ranks."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from accordion.config.pretrain import ModelConfig, ParallelConfig
from accordion.errors import ConfigError
from accordion.model.attention import BlockRule
from accordion.model.backbone import After, Backbone, Observer, Surroundings
from accordion.model.balance import Balanced
from accordion.model.cache import Cache
from accordion.model.elastic import LayerPlan
from accordion.model.isolation import isolation
from accordion.model.norm import EPSILON
from accordion.model.rope import rope_angles
from accordion.train.megatron import library as core
from accordion.train.megatron.layers import Part, layer_spec


class MegatronBackbone(Backbone, core.TransformerBlock):
    """Runs what `PlainBackbone` runs, with the same canonical weights (`convert.py`).

    Each rank of a tensor and context group gets the whole batch of the group and gives the whole result; inside,
    positions and heads are split. Embeddings and heads around it are the plain ones, the same on every such rank.

    A stage of a pipeline holds its part of the layers. It takes and gives states as they are inside, (S', B, H) with
    this rank's positions, but for the first stage, which takes what embeddings give, and the last, which gives what
    heads want.

    Args:
        shape: sizes of the model.
        parallel: sizes of the groups, already set up (`ranks.py`).
    """

    def __init__(self, shape: ModelConfig, parallel: ParallelConfig) -> None:
        stage, layers = core.parallel_state.get_pipeline_model_parallel_rank(), shape.layers // parallel.pipeline
        specs = [
            layer_spec(shape.experts[layer], shape.top_k[layer], bool(shape.shared_hidden))
            for layer in range(stage * layers, (stage + 1) * layers)
        ]
        super().__init__(
            transformer_config(shape, parallel),
            core.TransformerBlockSubmodules(layer_specs=specs),
            post_layer_norm=False,
            pre_process=stage == 0,
            post_process=stage == parallel.pipeline - 1,
        )
        self.shape, self.parallel = shape, parallel

    def forward(
        self,
        x: Tensor,
        around: Surroundings,
        plans: Sequence[LayerPlan | None],
        *,
        cache: Cache | None = None,
        after: After | None = None,
        observe: Observer | None = None,
    ) -> Tensor:
        """See `Backbone.forward`.

        Raises:
            ConfigError: generation and routing analysis, which the plain backbone does.
        """
        if cache is not None or observe is not None:
            raise ConfigError("the Megatron-Core backbone only trains; load the checkpoint with the plain engine")
        first_level = self.shape.layers - self.shape.audio_levels
        angle = rope_angles(around.position, self.shape.hidden // self.shape.heads, self.shape.rope_base)
        angle = torch.cat((angle, angle), -1).transpose(0, 1).unsqueeze(2)  # (S, B, 1, D)
        parts: dict[LayerPlan, Part] = {}
        states = self._enter(x) if self.pre_process else x
        for layer in self.layers:
            index = layer.layer_number - 1
            plan = plans[index]
            if plan is not None:
                if plan not in parts:
                    parts[plan] = self._part(plan, angle, around)
                states = layer(states, parts[plan])
            if after is not None and index >= first_level:
                states = self._enter(after(index - first_level, self._leave(states)))
        return self._leave(states) if self.post_process else states

    def state_shape(self, rows: int, length: int) -> tuple[int, int, int]:
        """Shape of the states that go from stage to stage, of `rows` sequences of `length` positions."""
        return length // (self.parallel.context * self.parallel.tensor), rows, self.shape.hidden

    def routers(self) -> Iterator[tuple[int, Balanced]]:
        """See `Backbone.routers`."""
        for layer in self.layers:
            yield layer.layer_number - 1, layer.mlp.router

    def _enter(self, x: Tensor) -> Tensor:
        """(B, S, H) as every rank of the group has it -> (this rank's S, B, H)."""
        states = x.transpose(0, 1).contiguous()
        if self.parallel.context > 1:
            states = core.scatter_to_sequence_parallel_region(
                _ScaledGradient.apply(states, 1 / self.parallel.context), group=_context_group()
            )
        return core.scatter_to_sequence_parallel_region(states) if self.parallel.tensor > 1 else states

    def _leave(self, states: Tensor) -> Tensor:
        """The way back; what follows is the same on all ranks of the group, and so is the gradient that comes from it.

        Gradients are averaged over context ranks, and those of the layers come from a part of the positions on each:
        between here and `_enter` they are as many times as large.
        """
        if self.parallel.tensor > 1:
            states = core.gather_from_sequence_parallel_region(states, tensor_parallel_output_grad=False)
        if self.parallel.context > 1:
            states = core.gather_from_sequence_parallel_region(states, group=_context_group())
        return states.transpose(0, 1).contiguous()

    def _part(self, plan: LayerPlan, angle: Tensor, around: Surroundings) -> Part:
        """What the layers of `plan` need of the batch."""
        mask, live, modality = around.mask, around.live, around.modality
        if isinstance(mask, BlockRule):
            raise ConfigError("pretrain.attention: flex belongs to engine: plain; Megatron-Core's layers take a mask")
        rows, device = plan.rows, mask.device
        idle = rows is not None and not len(rows)
        if idle:
            rows, live = torch.zeros(1, dtype=torch.int64), torch.zeros_like(around.position[..., 0], dtype=torch.bool)
        if rows is not None:
            rows = rows.to(device)
            angle, mask = angle.index_select(1, rows), mask.index_select(0, rows)
            live = None if live is None else live.index_select(0, rows)
            modality = None if modality is None else modality.index_select(0, rows)
        parts, at = self.parallel.context, core.parallel_state.get_context_parallel_rank()
        length = angle.shape[0] // (parts * self.parallel.tensor)
        angle, mask = angle.chunk(parts)[at], mask.chunk(parts, 2)[at]
        eligible = None if plan.eligible is None else plan.eligible.to(device).repeat(length, 1)
        top_k = None if plan.top_k is None else plan.top_k.to(device).repeat(length)
        if modality is not None:
            own = isolation(self.shape).to(device).index_select(0, self._flat(modality))
            eligible = own if eligible is None else eligible & own
        flat = None if live is None else self._flat(live)
        return Part(rows, angle, mask, flat, eligible, top_k, None if idle else plan.slots, idle)

    def _flat(self, column: Tensor) -> Tensor:
        """This rank's positions of a column (R, S), in the order of its tokens: (n,)."""
        groups, size = core.parallel_state, self.parallel
        context = column.transpose(0, 1).chunk(size.context)[groups.get_context_parallel_rank()]
        return context.chunk(size.tensor)[groups.get_tensor_model_parallel_rank()].reshape(-1)


class _ScaledGradient(torch.autograd.Function):
    """The input itself; its gradient times a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def _context_group() -> Any:
    return core.parallel_state.get_context_parallel_group()


def transformer_config(shape: ModelConfig, parallel: ParallelConfig) -> Any:
    """What Megatron-Core needs to know; each layer has its own numbers of experts beside it."""
    return core.TransformerConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_moe_experts=max(shape.experts),
        moe_router_topk=max(shape.top_k),
        moe_ffn_hidden_size=shape.expert_hidden,
        moe_shared_expert_intermediate_size=shape.shared_hidden or None,
        ffn_hidden_size=shape.expert_hidden,
        tensor_model_parallel_size=parallel.tensor,
        expert_model_parallel_size=parallel.expert,
        expert_tensor_parallel_size=1,
        pipeline_model_parallel_size=parallel.pipeline,
        pipeline_dtype=torch.float32,
        sequence_parallel=parallel.tensor > 1,
        moe_router_score_function="sigmoid",
        moe_router_load_balancing_type="none",
        moe_router_dtype="fp64",
        moe_token_dispatcher_type="alltoall",
        moe_grouped_gemm=False,
        gated_linear_unit=True,
        activation_func=F.silu,
        normalization="RMSNorm",
        qk_layernorm=True,
        layernorm_epsilon=EPSILON,
        add_bias_linear=False,
        bias_dropout_fusion=False,
        bias_activation_fusion=False,
        gradient_accumulation_fusion=False,
        apply_rope_fusion=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        perform_initialization=False,
        use_cpu_initialization=not torch.cuda.is_available(),
    )
