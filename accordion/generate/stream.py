"""A document that is read and continued group by group: its columns so far, its key-value cache, its next position."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from accordion.data.batch import COLUMNS, Batch, Columns
from accordion.data.documents import Builder
from accordion.errors import DataError
from accordion.model import Model
from accordion.model.model import Choice


class Stream:
    """One document in the hands of a model, from `BOS` on.

    Args:
        model: in evaluation mode, on the CPU or a GPU.
        length: most positions the document will have.
    """

    def __init__(self, model: Model, length: int) -> None:
        config = model.config
        self.model = model
        self.cache = model.new_cache(1, length)
        self.builder = Builder(
            "generated", bits=config.bits, levels=config.audio_levels, codebook=config.audio_codebook
        )  # fmt: skip
        self._device = model.norm.weight.device
        self._so_far: Batch | None = None

    def tokens(self, ids: Sequence[int], choose: Choice | None = None, voice: Tensor | None = None) -> Tensor:
        """Read text and control ids: final states (n, H).

        Args:
            voice: (V,), what the one `VOICE` among them stands for.
        """
        if not ids:
            raise DataError("stream: no token to read")
        return self.read(self.builder.tokens(list(ids), voice).parts[-1], choose)

    def frame(self, codes: Tensor, choose: Choice | None = None) -> Tensor:
        """Read one audio frame of codes (Q,): its final state (1, H)."""
        return self.read(self.builder.frames(codes[None].numpy()), choose)

    def sound(self, codes: Tensor, before: Sequence[int]) -> Tensor:
        """Read control ids and, after them, a whole sound of codes (T, Q)."""
        self.builder.tokens(list(before)).speech(codes.numpy(), cut=False)
        whole = {name: np.concatenate([part[name] for part in self.builder.parts[-2:]]) for name in COLUMNS}
        return self.read(whole)

    def read(self, part: Columns, choose: Choice | None = None) -> Tensor:
        """Read the next positions, whole groups: final states (n, H)."""
        part = {**part, "document": np.zeros_like(part["document"])}
        new = Batch.from_columns({name: values[None] for name, values in part.items()}).to(self._device)
        self._so_far = new if self._so_far is None else self._so_far.join(new)
        return self.model.read(self._so_far, self.cache, choose)[0]

    def token_logits(self, states: Tensor) -> Tensor:
        """Logits (V,) of the text token after the last of the states (n, H)."""
        return self.model.text_logits(states[-1])

    @torch.no_grad()
    def bit_logits(self, states: Tensor) -> Tensor:
        """Logits (n, D) of the bits at vision positions, from their states (n, H)."""
        return self.model.heads.vision(states)
