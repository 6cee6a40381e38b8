"""The columns of packed sequences, and one batch of them as torch tensors: what the model reads."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from accordion.errors import DataError

PAD, TEXT, IMAGE, VIDEO, AUDIO = range(5)  # values of the `modality` column
MODALITIES = ("pad", "text", "image", "video", "audio")
COLUMNS: dict[str, tuple[torch.dtype, type[np.generic]]] = {  # name -> (dtype in a batch, dtype on disk)
    "modality": (torch.int64, np.uint8),
    "document": (torch.int64, np.int32),
    "group": (torch.int64, np.int32),
    "position": (torch.float32, np.float32),
    "token": (torch.int64, np.int32),
    "codes": (torch.int64, np.int16),
    "scale": (torch.int64, np.int8),
    "frame": (torch.int64, np.int16),
    "vision_input": (torch.float32, np.float16),
    "latent": (torch.float32, np.float16),
    "patch": (torch.int64, np.int32),
    "patch_pixels": (torch.uint8, np.uint8),
    "patch_latent": (torch.float32, np.float16),
    "voice": (torch.int64, np.int16),
    "voice_vector": (torch.float32, np.float16),
    "target_token": (torch.int64, np.int32),
    "target_bits": (torch.float32, np.int8),
    "target_codes": (torch.int64, np.int16),
}
EMPTY = {  # what a column holds where it does not apply; -1 in a target means no loss there
    "modality": 0, "document": -1, "group": -1, "position": 0, "token": 0, "codes": -1, "scale": -1, "frame": -1,
    "vision_input": 0, "latent": 0, "patch": -1, "patch_pixels": 0, "patch_latent": 0,
    "voice": -1, "voice_vector": 0,
    "target_token": -1, "target_bits": -1, "target_codes": -1,
}  # fmt: skip
# columns that are tables beside the positions -> the column that holds a position's (first) row of it
TABLES = {"patch_pixels": "patch", "patch_latent": "patch", "voice_vector": "voice"}
PATCH_PIXELS = 48  # numbers of a patch: 4 x 4 pixels of three colours
VOICE_SIZE = 67  # numbers that describe a voice, see data/tokenizers/voice.py
LEAST_SPOKEN = 6  # positions of a document with a voice: BOS, VOICE, BOA, a frame, EOA, EOS
LOOK_FRAMES = 4  # frames of a clip that one position looks at
Columns = dict[str, np.ndarray]
_NUMPY: dict[torch.dtype, type[np.generic]] = {
    torch.int64: np.int64, torch.float32: np.float32, torch.uint8: np.uint8
}  # fmt: skip


def empty_columns(
    shape: tuple[int, ...], bits: int, levels: int, patches: int | None = None, voices: int | None = None
) -> Columns:
    """Columns of `shape` positions holding their empty values, in the dtypes of the shards.

    Args:
        patches: rows of the tables of patches; None: as many as positions.
        voices: rows of the table of voices; None: as many as that many positions can have.
    """
    width = {"position": 3, "codes": levels, "target_codes": levels}
    width |= dict.fromkeys(("vision_input", "latent", "target_bits", "patch_latent"), bits)
    width |= {"patch_pixels": PATCH_PIXELS, "voice_vector": VOICE_SIZE}
    rows = {
        "patch": shape[-1] if patches is None else patches,
        "voice": shape[-1] // LEAST_SPOKEN if voices is None else voices,
    }
    found = {}
    for name, (_, kind) in COLUMNS.items():
        length = (*shape[:-1], rows[TABLES[name]]) if name in TABLES else shape
        found[name] = np.full((*length, width[name]) if name in width else length, EMPTY[name], kind)
    return found


@dataclass(frozen=True)
class Batch:
    """B packed sequences of S positions. Index columns are int64, `-1` means none (`0` for `token`).

    Legend: B batch, S sequence, Q audio levels, D bits of a vision token, P rows of a table of patches, R of the
    table of voices.

    Attributes:
        modality: (B,S) PAD, TEXT, IMAGE, VIDEO or AUDIO; special tokens are TEXT.
        document: (B,S) index of the document within the sequence, -1 padding; a wall for attention.
        group: (B,S) index of the group within the sequence, increasing; -1 padding. Attention is causal
            between groups and bidirectional inside one.
        position: (B,S,3) float32 Uni-RoPE coordinates (t, h, w).
        token: (B,S) text id.
        codes: (B,S,Q) codes of the audio frame at this position.
        scale: (B,S) vision scale index.
        frame: (B,S) vision frame index within its clip.
        vision_input: (B,S,D) float32 accumulated feature F, input of a vision position.
        latent: (B,S,D) float32 at the finest scale: what the tokenizer quantized there, from which the bits of any
            scale can be found again when earlier ones have been changed; 0 elsewhere.
        patch: (B,S) first row, in the sequence's tables, of the patches that this position looks at to understand an
            image (4 rows) or a clip (4 rows in each of 4 frames); such a position has no scale, input or bits.
        patch_pixels: (B,P,48) uint8, patches of 4 x 4 pixels; frame after frame, in each the four of a 2 x 2 block
            together, blocks row by row.
        patch_latent: (B,P,D) float32, the tokenizer's latent of those patches.
        voice: (B,S) row, in the sequence's table, of the voice in which the sound after this position is spoken; only
            at a `VOICE` token, and -1 there too where the voice is not told.
        voice_vector: (B,R,67) float32, what describes those voices.
        target_token: (B,S) next text id.
        target_bits: (B,S,D) float32 in {0, 1}, -1 none: the bits at this position (not shifted).
        target_codes: (B,S,Q) codes of the next audio frame; the codebook's size means end-of-audio.
    """

    modality: Tensor
    document: Tensor
    group: Tensor
    position: Tensor
    token: Tensor
    codes: Tensor
    scale: Tensor
    frame: Tensor
    vision_input: Tensor
    latent: Tensor
    patch: Tensor
    patch_pixels: Tensor
    patch_latent: Tensor
    voice: Tensor
    voice_vector: Tensor
    target_token: Tensor
    target_bits: Tensor
    target_codes: Tensor

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> Self:
        """Build a batch from arrays of shape (B,S,...), in the dtypes of the shards or any other."""
        missing = sorted(set(COLUMNS) - set(columns))
        if missing:
            raise DataError(f"shards lack the columns {', '.join(missing)}; run the pack stage again")
        # converted by NumPy: torch would start threads of its own in each thread that reads ahead
        whole = {name: np.array(columns[name], dtype=_NUMPY[kind], order="C") for name, (kind, _) in COLUMNS.items()}
        return cls(**{name: torch.from_numpy(values) for name, values in whole.items()})

    def __len__(self) -> int:
        """B, the number of sequences."""
        return self.modality.shape[0]

    def to(self, device: torch.device | str) -> Self:
        """The same batch on `device`."""
        behind = self.modality.is_pinned()  # then the copy runs beside what the host does next
        parts = {field.name: getattr(self, field.name).to(device, non_blocking=behind) for field in fields(self)}
        return type(self)(**parts)

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory, from which a GPU copies while it computes."""
        return type(self)(**{field.name: getattr(self, field.name).pin_memory() for field in fields(self)})

    def select(self, rows: Tensor | list[int] | slice) -> Self:
        """The sequences `rows` (indices, a boolean mask or a slice) of every column."""
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def cut(self, positions: slice) -> Self:
        """The same sequences at `positions` only, with the whole of their tables."""
        names = [field.name for field in fields(self)]
        return type(self)(
            **{name: getattr(self, name) if name in TABLES else getattr(self, name)[:, positions] for name in names}
        )

    def join(self, other: Self) -> Self:
        """The same sequences with those of `other` (B,T,...) behind them."""
        return type(self)(
            **{
                field.name: torch.cat((getattr(self, field.name), getattr(other, field.name)), 1)
                for field in fields(self)
            }
        )


class Batches(Protocol):
    """Endless training batches, at a position that can be saved: from shards, or from memory."""

    @property
    def position(self) -> int:
        """Sequences read so far."""

    def __next__(self) -> Batch:
        """The batch at `position`, which moves on."""

    def resize(self, batch: int) -> None:
        """Read batches of `batch` sequences from here on."""

    def places(self, position: int) -> list[tuple[str, int]]:
        """Where the sequences of the batch at `position` are from."""

    def state(self) -> dict[str, Any]:
        """What `restore` needs."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
