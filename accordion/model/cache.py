"""The key-value cache of text generation: rows of different lengths, padded on the left."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Cache:
    """Keys and values of the tokens seen so far.

    Attributes:
        keys, values: one tensor a layer, (B, heads, length, D), filled up to `used`.
        valid: (B, length) bool, false where a row has padding or nothing yet.
        used: positions filled, the same in every row (rows are padded on the left).
    """

    keys: list[Tensor]
    values: list[Tensor]
    valid: Tensor
    used: int = 0

    @property
    def length(self) -> int:
        """Most tokens the cache can hold."""
        return self.valid.shape[1]

    def next_positions(self, mask: Tensor) -> Tensor:
        """(B, n) index of each new token within its own row, given their mask (B, n)."""
        seen = self.valid[:, : self.used].sum(1, keepdim=True)
        return (seen + mask.cumsum(1) - 1).clamp_min(0)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values (B, heads, n, D) of a layer; all of its keys and values so far."""
        end = self.used + keys.shape[2]
        self.keys[layer][:, :, self.used : end] = keys
        self.values[layer][:, :, self.used : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def select(self, rows: Tensor) -> "Cache":
        """The cache of some rows only (or of repeated rows): rows (R,) indices."""
        return Cache(
            [keys.index_select(0, rows) for keys in self.keys],
            [values.index_select(0, rows) for values in self.values],
            self.valid.index_select(0, rows),
            self.used,
        )


def empty_cache(layers: int, batch: int, heads: int, length: int, width: int, like: Tensor) -> Cache:
    """A cache for `length` tokens in each of `batch` rows, on the device and of the type of `like`."""
    shape = (batch, heads, length, width)
    return Cache(
        [torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in range(layers)],
        [torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in range(layers)],
        torch.zeros(batch, length, dtype=torch.bool, device=like.device),
    )
