"""Elastic layers for Megatron-Core, put in through module specs: nothing of the library is copied or changed.

Shapes: S positions, R rows of a batch in a layer, H hidden, n = S * R tokens in that order, E experts. Under
sequence parallelism each tensor rank holds S / ranks positions outside of the linear layers.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accordion.model.balance import Balanced, router_scores
from accordion.model.experts import Dispatch, apply_experts
from accordion.model.norm import RmsNorm
from accordion.train.megatron import library as core


@dataclass(frozen=True, eq=False)
class Part:
    """The rows of a batch that pass through a layer, and how; layers of one plan share it.

    Attributes:
        rows: (R,) their indices; None: all.
        angle: (S', R, 1, D) of the rotation, the positions of this context rank.
        mask: (R, 1, S', S) to add to the scores, or bool.
        live: (n,) bool, false at padding; None: there is none. This tensor rank's positions only, as the next two.
        eligible: (n, E) bool, experts each token may use; None: all.
        top_k: (n,) experts each uses; None: `slots`.
        slots: the most experts that any uses; None: the layer's own top-k.
        idle: no row passes here, but some do on another rank that waits for this one: one row goes along, whose
            tokens use no expert and whose result counts for nothing.
    """

    rows: Tensor | None
    angle: Tensor
    mask: Tensor
    live: Tensor | None
    eligible: Tensor | None
    top_k: Tensor | None
    slots: int | None
    idle: bool = False


class Norm(RmsNorm):
    """The plain backbone's RMS norm, as Megatron builds its norms; its gradient is summed over tensor ranks."""

    def __init__(self, config: Any, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class MaskedAttention(core.MegatronModule):
    """Attention under any mask, by the same call as the plain backbone's.

    Context ranks each have the queries of their positions and gather the keys and values of all (as in Llama 3,
    arXiv 2407.21783 section 3.3.2): any mask will do, and it needs no kernel of its own.
    """

    def __init__(self, config: Any, pg_collection: Any, **_: Any) -> None:
        super().__init__(config)
        self.context = pg_collection.cp

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **_: Any) -> Tensor:
        """Attend: query, key, value (S', R, heads, D), mask (R, 1, S', S) -> (S', R, heads * D); S' of S positions."""
        if self.context.size() > 1:
            key = core.gather_from_sequence_parallel_region(key, group=self.context)
            value = core.gather_from_sequence_parallel_region(value, group=self.context)
        q, k, v = (each.permute(1, 2, 0, 3) for each in (query, key, value))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
        return y.permute(2, 0, 1, 3).flatten(2)


class ElasticRouter(Balanced, core.TopKRouter):
    """Routes as the plain backbone does: experts that a token may not use score -inf, selection bias included."""

    def __init__(self, config: Any, pg_collection: Any = None) -> None:
        super().__init__(config, pg_collection)
        del self.bias  # Megatron's slot for a bias on the logits; ours is on the selection
        self.set_up_balance(config.num_moe_experts, config.moe_router_topk)
        self.part: Part | None = None

    def gating(self, input: Tensor) -> Tensor:
        """Scores (S, R, E) of the experts."""
        return router_scores(input, self.weight)

    def routing(self, logits: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Gates (n, E), 0 where an expert was not chosen, and the choice (n, E) as bool."""
        part = self.part
        assert part is not None
        scores = logits.flatten(0, 1)
        choice, gates = self.choose(scores, part.eligible, part.top_k, part.slots)
        asked: Tensor | int = choice.numel() if part.top_k is None else part.top_k
        if part.live is not None:
            dead = ~part.live
            choice = choice.masked_fill(dead.unsqueeze(1), self.experts)
            gates = gates.masked_fill(dead.unsqueeze(1), 0.0)
            each = part.live.new_full((len(choice),), choice.shape[1], dtype=torch.long)
            asked = (each if part.top_k is None else part.top_k).masked_fill(dead, 0)
        dense = gates.new_zeros(len(gates), self.experts + 1)
        chosen = torch.zeros_like(dense, dtype=torch.bool).scatter_(1, choice, True)[:, : self.experts]
        if self.training:
            self.count(chosen.sum(0), asked, part.eligible)
        self.weigh(choice, gates)
        return dense.scatter(1, choice, gates)[:, : self.experts].contiguous(), chosen.contiguous()


class GroupedWeights(core.MegatronModule):
    """This rank's experts as two tensors, computed by the plain backbone's kernel."""

    def __init__(self, num_local_experts: int, config: Any, pg_collection: Any = None) -> None:
        super().__init__(config)
        hidden, inner = config.hidden_size, config.moe_ffn_hidden_size
        self.weight_in = nn.Parameter(torch.empty(num_local_experts, hidden, 2 * inner))
        self.weight_out = nn.Parameter(torch.empty(num_local_experts, inner, hidden))
        apart = config.expert_model_parallel_size > 1 or config.tensor_model_parallel_size > 1
        for weight in (self.weight_in, self.weight_out):
            weight.allreduce = not apart  # type: ignore[attr-defined]  # reduced among the ranks with these experts

    def forward(self, tokens: Tensor, tokens_per_expert: Any, gates: Tensor) -> tuple[Tensor, None]:
        """Tokens (A, H) sorted by expert, their counts (local experts,) and gates (A,) -> (A, H)."""
        if not len(tokens):  # still a product of both: the backward pass of their exchange waits for every rank
            return tokens * gates.unsqueeze(1), None
        counts = torch.as_tensor(tokens_per_expert, dtype=torch.int64).to(tokens.device)
        order = torch.arange(len(tokens) + 1, device=tokens.device)
        place = order[:-1].clone()
        order[-1] = 0  # no assignment
        sorted_ = Dispatch(order, place, counts)
        return apply_experts(tokens, gates.unsqueeze(1), self.weight_in, self.weight_out, sorted_), None


class ElasticDispatcher(core.MoEAlltoAllTokenDispatcher):
    """Counts the assignments where Megatron takes tokens times top-k for granted.

    Attributes:
        uneven: whether tokens of the next batch use different numbers of experts.
    """

    uneven = False

    def preprocess(self, routing_map: Tensor) -> Tensor:
        """See Megatron's."""
        counts = super().preprocess(routing_map)
        if self.uneven:
            self.num_out_tokens = routing_map.sum()
            self._maybe_update_cuda_sync_point("before_permutation_1")
        return counts


class ElasticMoE(core.MoELayer):
    """Megatron's expert layer; tokens of one batch may use different numbers of experts."""

    def __init__(self, config: Any, *args: Any, pg_collection: Any = None, **kwargs: Any) -> None:
        groups = core.get_default_pg_collection() if pg_collection is None else pg_collection
        super().__init__(config, *args, pg_collection=groups, **kwargs)
        self.token_dispatcher = ElasticDispatcher(
            self.num_local_experts, self.local_expert_indices, config=config, pg_collection=groups
        )

    def plan(self, part: Part) -> None:
        """Route the next tokens by `part`."""
        self.router.part = part
        self.token_dispatcher.uneven = part.live is not None or part.top_k is not None


class ElasticLayer(core.TransformerLayer):
    """One layer, with its own number of experts and its own top-k, for some rows of a batch or none.

    Args:
        experts, top_k: of this layer; the rest as Megatron gives it.
    """

    def __init__(self, config: Any, submodules: Any, *args: Any, experts: int, top_k: int, **kwargs: Any) -> None:
        own = copy.copy(config)  # router and dispatcher read their sizes from it
        own.num_moe_experts, own.moe_router_topk = experts, top_k
        super().__init__(own, submodules, *args, **kwargs)

    def forward(self, x: Tensor, part: Part | None) -> Tensor:
        """Send the rows of `part` through: x (S, B, H) -> (S, B, H); None: no row passes, nothing is computed."""
        if part is None:
            return x
        self.mlp.plan(part)
        rows = x if part.rows is None else x.index_select(1, part.rows)
        done, _ = super().forward(rows, attention_mask=part.mask, rotary_pos_emb=part.angle)
        if part.idle and part.rows is not None:
            return x.index_add(1, part.rows, done, alpha=0)
        return done if part.rows is None else x.index_copy(1, part.rows, done)


def layer_spec(experts: int, top_k: int, shared: bool) -> Any:
    """The specification of an elastic layer."""
    attention = core.SelfAttentionSubmodules(
        linear_qkv=core.ColumnParallelLinear,
        core_attention=MaskedAttention,
        linear_proj=core.RowParallelLinear,
        q_layernorm=Norm,
        k_layernorm=Norm,
    )
    both = core.MLPSubmodules(linear_fc1=core.ColumnParallelLinear, linear_fc2=core.RowParallelLinear)
    moe = core.MoESubmodules(
        experts=GroupedWeights,
        shared_experts=core.ModuleSpec(module=core.SharedExpertMLP, submodules=both) if shared else None,
        router=ElasticRouter,
    )
    return core.ModuleSpec(
        module=ElasticLayer,
        params={"experts": experts, "top_k": top_k},
        submodules=core.TransformerLayerSubmodules(
            input_layernorm=Norm,
            self_attention=core.ModuleSpec(module=core.SelfAttention, submodules=attention),
            self_attn_bda=add_to_stream,
            pre_mlp_layernorm=Norm,
            mlp=core.ModuleSpec(module=ElasticMoE, submodules=moe),
            mlp_bda=add_to_stream,
        ),
    )


def add_to_stream(training: bool, fused: bool) -> Any:
    """How a layer's result joins the residual stream: added, no bias, no dropout."""

    def add(result: tuple[Tensor, Tensor | None], stream: Tensor, dropout: float) -> Tensor:
        return stream + result[0]

    return add
