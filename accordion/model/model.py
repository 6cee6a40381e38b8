"""The model: embeddings, pre-norm blocks of attention and experts, heads; whole, or as many sub-models at once."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from accordion.config.pretrain import ModelConfig
from accordion.data.batch import PAD, Batch
from accordion.errors import DataError
from accordion.model.attention import BlockRule, additive, causal_mask, group_mask
from accordion.model.backbone import Backbone, Observer, PlainBackbone, Surroundings
from accordion.model.cache import Cache, empty_cache
from accordion.model.elastic import EVERYTHING, LayerPlan, SubmodelSpec, plan_layers
from accordion.model.embeddings import Embeddings
from accordion.model.heads import Heads
from accordion.model.losses import NONE, Lessons, Losses, Outputs, Targets, scale_weights
from accordion.model.norm import RmsNorm
from accordion.model.sampler import Draw

Choice = Callable[[int, Tensor], Tensor]
"""Called as choose(level, logits (B, C + 1)): the codes (B,) of that level of the next audio frame."""


@dataclass(frozen=True, eq=False)
class Passage:
    """A batch on its way through the model.

    Attributes:
        batch: its rows; those that are taught by a twin stand once more at the end, run in full.
        targets: what it has to predict.
        around, plans: what the layers need of it, and which rows each of them takes.
        lessons: which predictions learn from which; None: from the data alone.
    """

    batch: Batch
    targets: Targets
    around: Surroundings
    plans: list[LayerPlan | None]
    lessons: Lessons | None


class Model(nn.Module):
    """An elastic multimodal mixture of experts that predicts the next group of tokens (arXiv 2602.04705).

    Args:
        config: sizes.
        seed: of the generator that draws the initial weights.
        backbone: the stack of layers, which then keeps its own weights; None: a plain one.

    Attributes:
        flex: sequences from this many positions on attend by FlexAttention, shorter ones, or all at 0, under a mask.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.config = config
        self.flex = 0
        self.embeddings = Embeddings(config)
        self.layers: Any = PlainBackbone(config) if backbone is None else backbone
        self.norm = RmsNorm(config.hidden)
        self.heads = Heads(config)
        if not self.norm.weight.is_meta:
            self._initialise(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """Normal weights: deviation 1/sqrt(inputs), smaller by sqrt(2 layers) where a block adds to the stream."""
        calm = 1 / math.sqrt(2 * self.config.layers)
        for name, weight in self.named_parameters():
            if "norm" in name:
                weight.fill_(1.0)
            elif name.endswith("bias") or name == "embeddings.voice.weight":  # any voice is what is learnt from
                weight.zero_()
            elif (name.startswith("embeddings") and ".understanding." not in name) or name == "heads.audio_code":
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
        hidden_frames: Tensor | None = None,
        scale_weight: float = 0.0,
    ) -> Losses:
        """Losses of a batch, each row run as the sub-model drawn for it (None: all rows in full).

        Args:
            draw: sub-models, or a sampler's draw, of which some rows may run in full too.
            hidden_frames: (B, S) bool, see `draw_hidden_frames` (training only).
            scale_weight: power by which early vision scales weigh more in what is minimised (`Losses.aims`).
        """
        draw = draw if isinstance(draw, Draw) else Draw(None if draw is None else list(draw))
        passage = self.prepare(batch, draw, hidden_frames)
        return self.losses(passage, *self.carry(passage, self.embeddings(passage.batch)), scale_weight)

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
        passage = self.prepare(batch, Draw(None if specs is None else list(specs)), hidden_frames)
        return self.predict(passage, *self.carry(passage, self.embeddings(passage.batch), observe))

    def prepare(self, batch: Batch, draw: Draw, hidden_frames: Tensor | None = None) -> Passage:
        """What every part of the model needs of a batch; no weight is used."""
        self._check(batch)
        specs, pupils, (rows, length) = draw.specs, None, batch.modality.shape
        if specs is not None and draw.twins:
            pupils = torch.tensor(draw.twins, device=batch.modality.device)
            all_rows = torch.cat((torch.arange(rows, device=pupils.device), pupils))
            batch = batch.select(all_rows)
            specs = [*specs, *[SubmodelSpec.full(self.config)] * len(pupils)]
            hidden_frames = None if hidden_frames is None else hidden_frames[all_rows]
        live, targets = batch.modality != PAD, Targets.of(batch)
        around = Surroundings(
            batch.position,
            self._mask(batch, hidden_frames),
            None if bool(live.all()) else live,
            batch.modality if self.config.isolated else None,
        )
        lessons = None if pupils is None else Lessons.of(targets, pupils, rows, length, draw.weight)
        return Passage(batch, targets, around, plan_layers(self.config, specs, len(batch), draw.anyway), lessons)

    def carry(self, passage: Passage, x: Tensor, observe: Observer | None = None) -> tuple[Tensor, list[Tensor]]:
        """Send states (B, S, H) through the layers: the states after them, and each level's audio logits (a, C + 1)."""
        targets, audio = passage.targets, []

        def predict_codes(level: int, x: Tensor) -> Tensor:
            flat = x.reshape(-1, x.shape[-1])
            audio.append(self.heads.audio_logits(level, flat.index_select(0, targets.audio_at)))
            if level + 1 == self.config.audio_levels:
                return x
            known = self.heads.audio_code[level].index_select(0, targets.codes[:, level])
            return flat.index_add(0, targets.audio_at, known).view_as(x)

        after = predict_codes if len(targets.audio_at) else None
        return self.layers(x, passage.around, passage.plans, after=after, observe=observe), audio

    def predict(self, passage: Passage, x: Tensor, audio: list[Tensor]) -> Outputs:
        """Logits at every target, from what `carry` gave."""
        targets, flat = passage.targets, self.norm(x).view(-1, x.shape[-1])
        mtp = None
        if self.training:
            following = self.embeddings.text(passage.batch.target_token.view(-1)[targets.mtp_at])
            mtp = self.heads.mtp_logits(flat.index_select(0, targets.mtp_at), following)
        return Outputs(
            targets,
            text=self.text_logits(flat.index_select(0, targets.text_at)),
            mtp=mtp,
            vision=self.heads.vision(flat.index_select(0, targets.vision_at)),
            audio=torch.stack(audio, 1) if audio else flat.new_zeros(0, *self.heads.audio.shape[:2]),
        )

    def losses(self, passage: Passage, x: Tensor, audio: list[Tensor], scale_weight: float = 0.0) -> Losses:
        """Losses of what `carry` gave, see `forward`."""
        weights = None
        if scale_weight:
            weights = scale_weights(self.config.scales, scale_weight).to(x.device)
        return self.predict(passage, x, audio).losses(passage.lessons, weights)

    def _mask(self, batch: Batch, hidden_frames: Tensor | None) -> Tensor | BlockRule:
        window = self.config.video_window
        if self.flex and batch.modality.shape[1] >= self.flex:
            return BlockRule(batch, window, hidden_frames)
        return additive(group_mask(batch, window, hidden_frames))

    def hidden(self, tokens: Tensor, mask: Tensor, *, bidirectional: bool = False) -> Tensor:
        """Final normed states (B, S, H) of plain text.

        Args:
            tokens: (B, S) int64 text ids.
            mask: (B, S) bool, true at tokens, false at padding (on either side).
            bidirectional: let a token see the later ones too.
        """
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        around = Surroundings(
            positions.unsqueeze(-1).expand(-1, -1, 3),
            causal_mask(mask, bidirectional),
            None if self.exportable else mask,
        )
        x = self.layers(self.embeddings.text(tokens), around, [EVERYTHING] * self.config.layers)
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
        around = Surroundings(
            positions.unsqueeze(-1).expand(-1, -1, 3), seen.unsqueeze(1), None if bool(mask.all()) else mask
        )
        x = self.layers(self.embeddings.text(tokens), around, [EVERYTHING] * self.config.layers, cache=cache)
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

        around = Surroundings(
            new.position,
            group_mask(batch, self.config.video_window, start=start),
            modality=new.modality if self.config.isolated else None,
        )
        x = self.layers(self.embeddings(new), around, [EVERYTHING] * self.config.layers, cache=cache, after=hand_down)
        cache.valid[:, start:end] = True
        cache.used = end
        return self.norm(x)

    def set_expert_order(self, order: tuple[tuple[int, ...], ...] | None) -> None:
        """Let narrow members keep the first experts of `order`, one tuple of all experts a layer."""
        self.config = ModelConfig.parse({**self.config.model_dump(), "expert_order": order}, where="model")

    def balance(self, step: float) -> None:
        """Move every layer's selection biases by `step` towards even load, after an optimizer step."""
        self.layers.balance(step)

    @property
    def exportable(self) -> bool:
        """Whether every expert is computed for every token, so that no shape depends on the data (graph export)."""
        return self.layers[0].moe.dense

    @exportable.setter
    def exportable(self, value: bool) -> None:
        for layer in self.layers:
            layer.moe.dense = value

    def _check(self, batch: Batch) -> None:
        given = (batch.vision_input.shape[-1], batch.codes.shape[-1])
        wanted = (self.config.bits, self.config.audio_levels)
        if given != wanted:
            raise DataError(
                f"batch: {given[0]} vision bits and {given[1]} audio levels, the model has "
                f"{wanted[0]} and {wanted[1]}; pack the data with the tokenizers the model was trained with"
            )
