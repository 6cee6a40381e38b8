"""Self-attention with rotary (t, h, w) positions and normalised queries and keys, and the masks it obeys."""

from collections.abc import Callable
from copy import copy
from functools import cache, cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from accordion.data.batch import PAD, VIDEO, Batch
from accordion.model.cache import Cache
from accordion.model.norm import RmsNorm
from accordion.model.rope import Rope, queries_keys_values

BAND = 128  # queries


class Attention(nn.Module):
    """Multi-head attention; queries and keys are RMS-normalised for each head before the rotation (QK-norm)."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.out = nn.Linear(hidden, hidden, bias=False)
        self.norm_q = RmsNorm(hidden // heads)
        self.norm_k = RmsNorm(hidden // heads)

    def forward(
        self, x: Tensor, rope: Rope, mask: "Tensor | BlockRule | Bands", cache: Cache | None = None, layer: int = 0
    ) -> Tensor:
        """Attend: x (B, S, H) -> (B, S, H).

        Args:
            mask: (B, 1, S, keys), bool (True: may be seen) or float (added to the scores); such a mask cut into
                `Bands`; or the rule itself.
            cache: where the keys and values of this `layer` are kept and read from, in generation.
        """
        rows, length, hidden = x.shape
        qkv = self.qkv(x).view(rows, length, 3, self.heads, hidden // self.heads)
        q, k, v = queries_keys_values(qkv, self.norm_q.weight, self.norm_k.weight, rope)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        if isinstance(mask, BlockRule | Bands):
            y = mask.attend(q, k, v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(rows, length, hidden))


def group_mask(batch: Batch, window: int, hidden_frames: Tensor | None = None, *, start: int = 0) -> Tensor:
    """What each position of a packed batch may see: (B, 1, S - start, S) bool.

    Within a document a position sees the groups before its own, and its own group wholly (so a vision scale is
    bidirectional); other documents never. A video position sees at most `window` earlier frames of its video
    (windowed temporal attention) and none of those that `hidden_frames` hides (VideoAR, arXiv 2601.05966).
    Padding sees itself only.

    Args:
        hidden_frames: (B, S) bool, true at positions of video frames hidden from the later frames.
        start: the first position that asks what it sees; those before it are in a cache.
    """
    own = batch.document[:, start:].unsqueeze(2) == batch.document.unsqueeze(1)
    past = batch.group.unsqueeze(1) <= batch.group[:, start:].unsqueeze(2)  # [row, query, key]
    mask = own & past & (batch.modality != PAD).unsqueeze(1)
    video = batch.modality == VIDEO
    if bool(video.any()):
        frame = batch.frame.int()
        age = frame[:, start:].unsqueeze(2) - frame.unsqueeze(1)
        unseen = age > window
        if hidden_frames is not None:
            unseen |= (age > 0) & hidden_frames.unsqueeze(1)
        mask &= ~(unseen & video[:, start:].unsqueeze(2) & video.unsqueeze(1))
    length = mask.shape[2]
    return (mask | torch.eye(length, dtype=torch.bool, device=mask.device)[start:]).unsqueeze(1)


class BlockRule:
    """The rule of `group_mask` for FlexAttention (arXiv 2412.05496), which skips blocks in which nothing is seen.

    No (S, S) mask is kept. It stands where a mask tensor would: rows of it can be selected.
    """

    def __init__(self, batch: Batch, window: int, hidden_frames: Tensor | None = None) -> None:
        self.document, self.group, self.frame = batch.document, batch.group, batch.frame
        self.live, self.video = batch.modality != PAD, batch.modality == VIDEO
        self.hidden = torch.zeros_like(self.video) if hidden_frames is None else hidden_frames
        self.window = window

    def __len__(self) -> int:
        """B, the rows."""
        return len(self.document)

    @property
    def device(self) -> torch.device:
        return self.document.device

    def index_select(self, axis: int, rows: Tensor) -> "BlockRule":
        """The rule of some rows."""
        other = copy(self)
        other.__dict__.pop("blocks", None)
        for name in ("document", "group", "frame", "live", "video", "hidden"):
            setattr(other, name, getattr(self, name).index_select(axis, rows))
        return other

    def sees(self, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Whether a position sees another, all given by scalar index tensors."""
        own = self.document[row, query] == self.document[row, key]
        past = self.group[row, key] <= self.group[row, query]
        age = self.frame[row, query] - self.frame[row, key]
        unseen = (age > self.window) | ((age > 0) & self.hidden[row, key])
        unseen &= self.video[row, query] & self.video[row, key]
        return (own & past & self.live[row, key] & ~unseen) | (query == key)

    @cached_property
    def blocks(self) -> BlockMask:
        """Which blocks of positions see which."""
        rows, length = self.document.shape

        def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # no method is accepted
            return self.sees(row, head, query, key)

        return create_block_mask(sees, rows, None, length, length, device=str(self.device))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(D)) v under the rule, each (B, heads, S, D); compiled on a GPU."""
        attention: Callable[..., Tensor] = _compiled_flex() if q.is_cuda else flex_attention  # type: ignore[assignment]
        return attention(q.to(v.dtype), k.to(v.dtype), v, block_mask=self.blocks)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=True)


def additive(mask: Tensor) -> Tensor:
    """A bool mask as the number to add to a score: converted once instead of in every layer."""
    device = mask.device.type
    kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.get_default_dtype()
    return torch.zeros(mask.shape, dtype=kind, device=mask.device).masked_fill_(~mask, float("-inf"))


class Bands:
    """An additive mask (B, 1, S, S) in bands of queries, each with the keys between the first and last it may see.

    Under a mask PyTorch's attention on CPUs computes every score: of a causal mask twice what is needed.
    """

    def __init__(self, mask: Tensor) -> None:
        seen = (mask > float("-inf")).flatten(0, 1).any(0)  # (queries, keys)
        self._bands: list[tuple[slice, slice, Tensor]] = []
        for start in range(0, len(seen), BAND):
            queries = slice(start, start + BAND)
            known = seen[queries].any(0).nonzero()
            keys = slice(int(known[0]), int(known[-1]) + 1)
            self._bands.append((queries, keys, mask[:, :, queries, keys].contiguous()))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(D) + mask) v, each (B, heads, S, D)."""
        parts = [
            F.scaled_dot_product_attention(q[:, :, queries], k[:, :, keys], v[:, :, keys], attn_mask=mask)
            for queries, keys, mask in self._bands
        ]
        return torch.cat(parts, 2)


def banded(mask: Tensor) -> "Tensor | Bands":
    """A mask in bands where they save time: additive, of a packed batch on a CPU."""
    saves = mask.is_floating_point() and not mask.is_cuda and mask.shape[2] > BAND and len(mask) > 0
    return Bands(mask) if saves else mask


def draw_hidden_frames(
    batch: Batch,
    chance: float,
    generator: torch.Generator,
    *,
    rows: slice | None = None,
    parts: int = 1,
    largest: Callable[[list[int]], list[int]] = list,
) -> Tensor | None:
    """Draw which video frames are hidden from later ones: (B, S) bool, or None when there is nothing to hide.

    `generator` is one of the CPU, so that every device draws alike. Where a batch is spread over processes, each
    draws for all of it and takes its own: what is hidden does not depend on their number.

    Args:
        rows: this process's rows of the whole batch, which is `parts` times as large; None: all.
        largest: for each number the largest of all processes.
    """
    if chance == 0:
        return None
    video = batch.modality == VIDEO
    most = torch.stack((batch.document.max(), batch.frame.masked_fill(~video, -1).max()))
    documents, frames = largest([number + 1 for number in most.tolist()])
    if not frames:
        return None
    drawn = torch.rand(parts * len(batch.document), documents, frames, generator=generator) < chance
    drawn = (drawn if rows is None else drawn[rows]).to(batch.frame.device)
    index = torch.arange(len(batch.document), device=batch.frame.device).unsqueeze(1)
    return (
        drawn[index, batch.document.clamp_min(0).long(), batch.frame.clamp_min(0).long().clamp_max(frames - 1)] & video
    )


def causal_mask(mask: Tensor, bidirectional: bool = False) -> Tensor:
    """Mask of plain text rows: (B, 1, S, S) bool from mask (B, S), true at tokens; padding sees itself only."""
    length = mask.shape[1]
    seen = mask.unsqueeze(1).expand(-1, length, -1)
    if not bidirectional:
        seen = seen & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    return (seen | torch.eye(length, dtype=torch.bool, device=mask.device)).unsqueeze(1)
