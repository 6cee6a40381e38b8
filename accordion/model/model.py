"""The model: embeddings, pre-norm blocks of attention and experts, heads; whole, or as many sub-models at once."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from accordion.config.pretrain import ModelConfig
from accordion.data.batch import PAD, Batch
from accordion.errors import DataError
from accordion.model.attention import Attention, additive, causal_mask, draw_hidden_frames, group_mask
from accordion.model.cache import Cache, empty_cache
from accordion.model.elastic import EVERYTHING, LayerPlan, SubmodelSpec, plan_layers
from accordion.model.embeddings import Embeddings
from accordion.model.heads import Heads
from accordion.model.isolation import isolation
from accordion.model.losses import NONE, Lessons, Losses, Outputs, Targets, scale_weights
from accordion.model.moe import MoE
from accordion.model.norm import RmsNorm
from accordion.model.rope import Rope, rope_table
from accordion.model.sampler import Draw

Observer = Callable[[int, Tensor, Tensor], None]
"""Called as observe(layer, positions (n,), choice (n, K)): flat positions b * S + s and the experts each chose."""

Choice = Callable[[int, Tensor], Tensor]
"""Called as choose(level, logits (B, C + 1)): the codes (B,) of that level of the next audio frame."""


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
    mask: Tensor
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


class Model(nn.Module):
    """An elastic multimodal mixture of experts that predicts the next group of tokens (arXiv 2602.04705).

    Args:
        config: sizes.
        seed: of the generator that draws the initial weights.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers: Sequence[Block] = nn.ModuleList(Block(config, layer) for layer in range(config.layers))  # type: ignore[assignment]
        self.norm = RmsNorm(config.hidden)
        self.heads = Heads(config)
        self._initialise(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """Normal weights: deviation 1/sqrt(inputs), smaller by sqrt(2 layers) where a block adds to the stream."""
        calm = 1 / math.sqrt(2 * self.config.layers)
        for name, weight in self.named_parameters():
            if "norm" in name:
                weight.fill_(1.0)
            elif name.endswith("bias"):
                weight.zero_()
            elif name.startswith("embeddings") or name == "heads.audio_code":
                weight.normal_(0, 0.5, generator=generator)
            else:
                inputs = weight.shape[1] if name.endswith(("expert_in", "expert_out")) else weight.shape[-1]
                scale = calm if name.endswith(("attention.out.weight", "expert_out", "shared_out.weight")) else 1.0
                scale = 0.5 if name.startswith("heads") else scale
                weight.normal_(0, scale / math.sqrt(inputs), generator=generator)

    def forward(
        self,
        batch: Batch,
        draw: Draw | Sequence[SubmodelSpec] | None = None,
        *,
        history_dropout: float = 0.0,
        generator: torch.Generator | None = None,
        scale_weight: float = 0.0,
    ) -> Losses:
        """Losses of a batch, each row run as the sub-model drawn for it (None: all rows in full).

        Args:
            draw: sub-models, or a sampler's draw, of which some rows may run in full too.
            history_dropout: chance that a video frame is hidden from the later ones (training only).
            generator: draws those frames.
            scale_weight: power by which early vision scales weigh more in what is minimised (`Losses.aims`).
        """
        weights = None
        if scale_weight:
            weights = scale_weights(self.config.scales, scale_weight).to(batch.modality.device)
        hidden = draw_hidden_frames(batch, history_dropout, generator) if generator is not None else None
        draw = draw if isinstance(draw, Draw) else Draw(None if draw is None else list(draw))
        if draw.specs is None or not draw.twins:
            return self.outputs(batch, draw.specs, hidden_frames=hidden).losses(scale_weights=weights)
        rows, length = batch.modality.shape
        pupils = torch.tensor(draw.twins, device=batch.modality.device)
        all_rows = torch.cat((torch.arange(rows, device=pupils.device), pupils))
        outputs = self.outputs(
            batch.select(all_rows),
            [*draw.specs, *[SubmodelSpec.full(self.config)] * len(pupils)],
            hidden_frames=None if hidden is None else hidden[all_rows],
        )
        return outputs.losses(Lessons.of(outputs.targets, pupils, rows, length, draw.weight), weights)

    def outputs(
        self,
        batch: Batch,
        specs: Sequence[SubmodelSpec] | None = None,
        *,
        hidden_frames: Tensor | None = None,
        observe: Observer | None = None,
    ) -> Outputs:
        """Logits at every target of a batch; multi-token prediction only in training mode.

        Args:
            hidden_frames: (B, S) bool, see `group_mask`.
            observe: told which experts every position chose, layer by layer.
        """
        self._check(batch)
        targets = Targets.of(batch)
        audio: list[Tensor] = []

        def predict_codes(level: int, x: Tensor) -> Tensor:
            flat = x.reshape(-1, x.shape[-1])
            audio.append(self.heads.audio_logits(level, flat.index_select(0, targets.audio_at)))
            if level + 1 == self.config.audio_levels:
                return x
            known = self.heads.audio_code[level].index_select(0, targets.codes[:, level])
            return flat.index_add(0, targets.audio_at, known).view_as(x)

        live = batch.modality != PAD
        x = self._blocks(
            self.embeddings(batch),
            self._rope(batch.position),
            additive(group_mask(batch, self.config.video_window, hidden_frames)),
            None if bool(live.all()) else live,
            plan_layers(self.config, specs, len(batch)),
            modality=batch.modality if self.config.isolated else None,
            after=predict_codes if len(targets.audio_at) else None,
            observe=observe,
        )
        flat = self.norm(x).view(-1, x.shape[-1])
        mtp = None
        if self.training:
            following = self.embeddings.text(batch.target_token.view(-1)[targets.mtp_at])
            mtp = self.heads.mtp_logits(flat.index_select(0, targets.mtp_at), following)
        return Outputs(
            targets,
            text=self.text_logits(flat.index_select(0, targets.text_at)),
            mtp=mtp,
            vision=self.heads.vision(flat.index_select(0, targets.vision_at)),
            audio=torch.stack(audio, 1) if audio else flat.new_zeros(0, *self.heads.audio.shape[:2]),
        )

    def _blocks(
        self,
        x: Tensor,
        rope: Rope,
        mask: Tensor,
        live: Tensor | None,
        plans: Sequence[LayerPlan | None],
        *,
        modality: Tensor | None = None,
        cache: Cache | None = None,
        after: Callable[[int, Tensor], Tensor] | None = None,
        observe: Observer | None = None,
    ) -> Tensor:
        """Send x (B, S, H) through the layers; rows that a plan leaves out are not computed.

        `modality` (B, S) parts the experts by it. `after(level, x)` follows each of the top `audio_levels` layers
        and returns the states to go on with.
        """
        first_level = self.config.layers - self.config.audio_levels
        parts: dict[LayerPlan, Part] = {}
        for index, (layer, plan) in enumerate(zip(self.layers, plans, strict=True)):
            if plan is not None:
                if plan not in parts:
                    parts[plan] = self._part(plan, rope, mask, live, modality)
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

    def _part(
        self, plan: LayerPlan, rope: Rope, mask: Tensor, live: Tensor | None, modality: Tensor | None
    ) -> Part:  # fmt: skip
        """What the layers of `plan` need of the batch; live (B, S) is false at padding, None: there is none."""
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
        return Part(rows, rope, mask, at, eligible, top_k, plan.slots, used)

    def hidden(self, tokens: Tensor, mask: Tensor, *, bidirectional: bool = False) -> Tensor:
        """Final normed states (B, S, H) of plain text.

        Args:
            tokens: (B, S) int64 text ids.
            mask: (B, S) bool, true at tokens, false at padding (on either side).
            bidirectional: let a token see the later ones too.
        """
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        x = self._blocks(
            self.embeddings.text(tokens),
            self._rope(positions.unsqueeze(-1).expand(-1, -1, 3)),
            causal_mask(mask, bidirectional),
            None if self.exportable else mask,
            [EVERYTHING] * self.config.layers,
        )
        return self.norm(x)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of the next text token from final normed states (..., H)."""
        return self.heads.text(hidden)

    def new_cache(self, batch: int, length: int) -> Cache:
        """An empty key-value cache for `batch` rows of at most `length` text tokens."""
        heads = self.config.heads
        weight = self.norm.weight
        return empty_cache(self.config.layers, batch, heads, length, self.config.hidden // heads, weight)

    @torch.no_grad()
    def decode(self, tokens: Tensor, cache: Cache, mask: Tensor | None = None) -> Tensor:
        """Read n more tokens of each row and give the logits (B, n, V) of the token after each.

        Args:
            tokens: (B, n) int64 text ids.
            cache: what was read before, from `new_cache`; it grows by these tokens.
            mask: (B, n) bool, false at padding, which belongs on the left of a prompt; None: no padding.

        Raises:
            DataError: the cache is too short.
        """
        count = tokens.shape[1]
        if cache.used + count > cache.length:
            raise DataError(
                f"{cache.used + count} tokens do not fit a cache of {cache.length}; ask new_cache for more length"
            )
        mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        positions = cache.next_positions(mask)
        start, end = cache.used, cache.used + count
        cache.valid[:, start:end] = mask
        index = torch.arange(end, device=tokens.device)
        new = index[start:].unsqueeze(1)  # (n, 1)
        seen = (cache.valid[:, :end].unsqueeze(1) & (index <= new)) | (index == new)  # (B, n, end)
        x = self._blocks(
            self.embeddings.text(tokens),
            self._rope(positions.unsqueeze(-1).expand(-1, -1, 3)),
            seen.unsqueeze(1),
            None if bool(mask.all()) else mask,
            [EVERYTHING] * self.config.layers,
            cache=cache,
        )
        cache.used = end
        return self.text_logits(self.norm(x))

    @torch.no_grad()
    def read(self, batch: Batch, cache: Cache, choose: Choice | None = None) -> Tensor:
        """Read the positions of unfinished documents that the cache does not hold yet: final states (B, n, H), normed.

        Groups must be read whole, in any number at once. Where the next audio frame is known (`target_codes`), its
        codes are handed down the top layers as in training.

        Args:
            batch: the documents from their beginning, one a row, all of one length, without padding.
            cache: what was read before, from `new_cache`; it grows by the new positions.
            choose: chooses the audio frame that follows the last position: called with the level, from 0, and its
                logits (B, C + 1), it gives that level's codes (B,), which the next level then knows.

        Raises:
            DataError: the cache is too short.
        """
        self._check(batch)
        start, end = cache.used, batch.modality.shape[1]
        if end > cache.length:
            raise DataError(f"{end} positions do not fit a cache of {cache.length}; ask new_cache for more length")
        new = batch.cut(slice(start, end))
        following = new.target_codes.clone()  # (B, n, Q)

        def hand_down(level: int, x: Tensor) -> Tensor:
            if choose is not None:
                following[:, -1, level] = choose(level, self.heads.audio_logits(level, x[:, -1]))
            codes = following[..., level]
            if level + 1 == self.config.audio_levels or not bool((codes != NONE).any()):
                return x
            return x + self.heads.audio_code[level][codes.clamp_min(0)] * (codes != NONE).unsqueeze(-1)

        x = self._blocks(
            self.embeddings(new),
            self._rope(new.position),
            group_mask(batch, self.config.video_window, start=start),
            None,
            [EVERYTHING] * self.config.layers,
            modality=new.modality if self.config.isolated else None,
            cache=cache,
            after=hand_down,
        )
        cache.valid[:, start:end] = True
        cache.used = end
        return self.norm(x)

    def set_expert_order(self, order: tuple[tuple[int, ...], ...] | None) -> None:
        """Let narrow members keep the first experts of `order`, one tuple of all experts a layer."""
        self.config = ModelConfig.parse({**self.config.model_dump(), "expert_order": order}, where="model")

    def balance(self, step: float) -> None:
        """Move every layer's selection biases by `step` towards even load, after an optimizer step."""
        for layer in self.layers:
            layer.moe.balance(step)

    @property
    def exportable(self) -> bool:
        """Whether every expert is computed for every token, so that no shape depends on the data (graph export)."""
        return self.layers[0].moe.dense

    @exportable.setter
    def exportable(self, value: bool) -> None:
        for layer in self.layers:
            layer.moe.dense = value

    def _rope(self, positions: Tensor) -> Rope:
        return rope_table(positions, self.config.hidden // self.config.heads, self.config.rope_base)

    def _check(self, batch: Batch) -> None:
        given = (batch.vision_input.shape[-1], batch.codes.shape[-1])
        wanted = (self.config.bits, self.config.audio_levels)
        if given != wanted:
            raise DataError(
                f"batch: {given[0]} vision bits and {given[1]} audio levels, the model has "
                f"{wanted[0]} and {wanted[1]}; pack the data with the tokenizers the model was trained with"
            )


def _positions(at: Tensor | None, rows: Tensor | None, shape: torch.Size) -> Tensor:
    """Flat positions b * S + s in the whole batch of the states that the experts saw."""
    count, length = (shape[0] if rows is None else len(rows)), shape[1]
    device = None if rows is None else rows.device
    local = torch.arange(count * length, device=device) if at is None else at
    return local if rows is None else rows[local // length] * length + local % length
