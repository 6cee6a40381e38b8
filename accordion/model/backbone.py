"""The backbone: the stack of transformer layers between embeddings and heads; one interface, and its plain form.

Every backbone runs each row of a batch as its own sub-model. The other form is Megatron-Core's, in
`accordion/train/megatron`; a test holds both to the same logits, losses and gradients.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from accordion.config.pretrain import ModelConfig
from accordion.model.attention import Attention, Bands, BlockRule, banded
from accordion.model.balance import Balanced
from accordion.model.cache import Cache
from accordion.model.elastic import LayerPlan
from accordion.model.isolation import isolation
from accordion.model.moe import MoE
from accordion.model.norm import RmsNorm
from accordion.model.rope import Rope, rope_table

Observer = Callable[[int, Tensor, Tensor], None]
"""Called as observe(layer, positions (n,), choice (n, K)): flat positions b * S + s and the experts each chose."""

After = Callable[[int, Tensor], Tensor]
"""Called as after(level, x) behind each of the top `audio_levels` layers; returns the states x to go on with."""


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What every layer needs of a batch besides its states.

    Attributes:
        position: (B, S, 3) rotary coordinates.
        mask: (B, 1, S, keys), bool (True: may be seen) or float (added to the scores); or the rule itself.
        live: (B, S) bool, false at padding, which no expert computes; None: there is none.
        modality: (B, S), where it parts the experts; None: it does not.
    """

    position: Tensor
    mask: Tensor | BlockRule
    live: Tensor | None = None
    modality: Tensor | None = None


class Backbone(ABC):
    """What a stack of layers offers a `Model`; an `nn.Module` mixes it in."""

    @abstractmethod
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
        """Send x (B, S, H) through the layers; rows that a plan leaves out are not computed.

        Args:
            plans: one for each layer of the whole model; None: no row passes through it.
            cache: keys and values of earlier tokens, in generation.
            after: follows each of the top layers, one for each audio level.
            observe: told what every position chose.
        """

    @abstractmethod
    def routers(self) -> Iterator[tuple[int, Balanced]]:
        """The layers that this process holds, by index, and what routes their tokens."""

    def balance(self, step: float) -> None:
        """Move every layer's selection biases by `step` towards even load, after an optimizer step."""
        for _, router in self.routers():
            router.balance(step)


@dataclass(frozen=True, eq=False)
class Part:
    """The rows of a batch that pass through a layer, R of them, and how; layers of one plan share it.

    Attributes:
        rows: (R,) their indices; None: all.
        rope, mask: their positions and attention masks.
        at: (n,) flat positions r * S + s that are no padding, which no expert computes; None: all.
        eligible: (n, E) bool, experts each may use; None: all.
        top_k: (n,) experts each uses; None: `slots`.
        slots: the most experts that any uses; None: the layer's own top-k.
        used: sum of `top_k`, or None where it was not counted.
    """

    rows: Tensor | None
    rope: Rope
    mask: Tensor | BlockRule | Bands
    at: Tensor | None
    eligible: Tensor | None
    top_k: Tensor | None
    slots: int | None
    used: int | None


class Block(nn.Module):
    """x + Attention(norm(x)), then x + MoE(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm_attention = RmsNorm(config.hidden)
        self.attention = Attention(config.hidden, config.heads)
        self.norm_moe = RmsNorm(config.hidden)
        self.moe = MoE(
            config.hidden, config.experts[layer], config.top_k[layer], config.expert_hidden, config.shared_hidden
        )

    def forward(self, x: Tensor, part: Part, cache: Cache | None, layer: int) -> tuple[Tensor, Tensor]:
        """Run the rows of a part: x (R, S, H) -> (R, S, H), and the experts chosen at `part.at` (n, K)."""
        x = x + self.attention(self.norm_attention(x), part.rope, part.mask, cache, layer)
        states = self.norm_moe(x).view(-1, x.shape[-1])
        if part.at is not None:
            states = states.index_select(0, part.at)
        out, choice = self.moe(states, part.eligible, part.top_k, slots=part.slots, used=part.used)
        if part.at is None:
            return x + out.view_as(x), choice
        return x.view(-1, x.shape[-1]).index_add(0, part.at, out.to(x.dtype)).view_as(x), choice


class PlainBackbone(Backbone, nn.ModuleList):
    """The layers as plain PyTorch: what CPUs, single GPUs, DDP and FSDP2 run, and all that is not training."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(Block(config, layer) for layer in range(config.layers))
        self.config = config

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
        """See `Backbone.forward`."""
        first_level = self.config.layers - self.config.audio_levels
        rope = rope_table(around.position, self.config.hidden // self.config.heads, self.config.rope_base)
        parts: dict[LayerPlan, Part] = {}
        for index, (layer, plan) in enumerate(zip(self, plans, strict=True)):
            if plan is not None:
                if plan not in parts:
                    parts[plan] = self._part(plan, rope, around)
                part = parts[plan]
                if part.rows is None:
                    x, choice = layer(x, part, cache, index)
                else:
                    done, choice = layer(x.index_select(0, part.rows), part, cache, index)
                    x = x.index_copy(0, part.rows, done)
                if observe is not None:
                    observe(index, _positions(part.at, part.rows, x.shape), choice)
            if after is not None and index >= first_level:
                x = after(index - first_level, x)
        return x

    def routers(self) -> Iterator[tuple[int, Balanced]]:
        """See `Backbone.routers`."""
        for index, layer in enumerate(self):
            yield index, layer.moe  # type: ignore[misc]

    def _part(self, plan: LayerPlan, rope: Rope, around: Surroundings) -> Part:
        """What the layers of `plan` need of the batch."""
        mask, live, modality = around.mask, around.live, around.modality
        rows, count, length = plan.rows, len(mask), rope[0].shape[2]
        if rows is not None:
            rows, count = rows.to(mask.device), len(rows)
            rope, mask = (rope[0].index_select(0, rows), rope[1].index_select(0, rows)), mask.index_select(0, rows)
            live = None if live is None else live.index_select(0, rows)
            modality = None if modality is None else modality.index_select(0, rows)
        at = None if live is None else live.reshape(-1).nonzero().squeeze(1)
        eligible = top_k = used = None
        if plan.eligible is not None or plan.top_k is not None:
            of_row = torch.arange(count, device=mask.device).repeat_interleave(length, output_size=count * length)
            of_row = of_row if at is None else of_row.index_select(0, at)
            if plan.eligible is not None:
                eligible = plan.eligible.to(mask.device).index_select(0, of_row)
            if plan.top_k is not None:
                top_k = plan.top_k.to(mask.device).index_select(0, of_row)
                tokens = torch.full((count,), length) if live is None else live.sum(1).cpu()
                used = int((tokens * plan.top_k).sum())
        if modality is not None:
            kinds = modality.reshape(-1) if at is None else modality.reshape(-1).index_select(0, at)
            own = isolation(self.config).to(mask.device).index_select(0, kinds)
            eligible = own if eligible is None else eligible & own
        seen = banded(mask) if isinstance(mask, Tensor) else mask
        return Part(rows, rope, seen, at, eligible, top_k, plan.slots, used)


def _positions(at: Tensor | None, rows: Tensor | None, shape: torch.Size) -> Tensor:
    """Flat positions b * S + s in the whole batch of the states that the experts saw."""
    count, length = (shape[0] if rows is None else len(rows)), shape[1]
    device = None if rows is None else rows.device
    local = torch.arange(count * length, device=device) if at is None else at
    return local if rows is None else rows[local // length] * length + local % length
