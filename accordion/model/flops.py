"""Floating-point operations of the matrix products of a step, counted from what each row of a batch runs.

A product of (m, k) and (k, n) counts 2 m k n. Attention counts every pair of positions, since masked ones are
computed too. Training counts three times the forward pass: two products of the same size in the backward pass.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from accordion.config.pretrain import ModelConfig
from accordion.data.batch import PAD, Batch
from accordion.model.elastic import SubmodelSpec
from accordion.model.losses import NONE
from accordion.model.sampler import Draw


class RowCounts(NamedTuple):
    """What one row of a batch holds: positions that are no padding, and targets of each kind."""

    live: int
    text: int
    mtp: int
    vision: int
    audio: int


def row_counts(batch: Batch) -> Tensor:
    """The `RowCounts` of each row: (B, 5), on the device of the batch."""
    has = batch.target_token != NONE
    after = has[:, :-1] & has[:, 1:] & (batch.document[:, :-1] == batch.document[:, 1:])
    vision, audio = batch.target_bits[..., 0] != NONE, batch.target_codes[..., 0] != NONE
    return torch.stack([part.sum(1) for part in (batch.modality != PAD, has, after, vision, audio)], 1)


def training_flops(config: ModelConfig, draw: Draw, rows: Sequence[RowCounts], length: int) -> int:
    """Operations of one training step: each row as the sub-model it drew, twins in full beside it."""
    full = SubmodelSpec.full(config)
    specs = draw.specs or [full] * len(rows)
    runs = [*zip(specs, rows, strict=True), *((full, rows[twin]) for twin in draw.twins)]
    return sum(3 * forward_flops(config, spec, counts, length, mtp=True) for spec, counts in runs)


def forward_flops(config: ModelConfig, spec: SubmodelSpec, counts: RowCounts, length: int, *, mtp: bool) -> int:
    """Operations of one row of `length` positions run as `spec`."""
    each_position, each_token = _layer_flops(config, spec, length)
    hidden, codes = config.hidden, config.audio_codebook + 1
    heads = 2 * hidden * (
        counts.text * config.text_vocabulary
        + counts.vision * config.bits
        + counts.audio * config.audio_levels * codes
        + (counts.mtp * (2 * hidden + config.text_vocabulary) if mtp else 0)
    )  # fmt: skip
    return length * each_position + counts.live * each_token + heads


@lru_cache(maxsize=4096)
def _layer_flops(config: ModelConfig, spec: SubmodelSpec, length: int) -> tuple[int, int]:
    """Operations of all layers of `spec`: for each position, and for each that is no padding."""
    hidden = config.hidden
    attention = 8 * hidden * hidden + 4 * length * hidden
    routers = sum(2 * hidden * config.experts[layer] for layer in spec.layers)
    experts = 6 * hidden * config.expert_hidden * sum(spec.top_k)
    shared = 6 * hidden * config.shared_hidden * len(spec.layers)
    return attention * len(spec.layers), routers + experts + shared
