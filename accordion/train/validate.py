"""Validation losses of a model and of its sub-models."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from accordion.config.pretrain import MemberSpec
from accordion.data.batch import Batch
from accordion.model import Model, SubmodelSpec, parameter_counts

ROWS = 8  # sequences in a validation batch


def validation_batches(shards: Path, sequences: int) -> list[Batch]:
    """`sequences` validation sequences (all, if there are fewer) from all over the split, the same at every call."""
    from accordion.data.loader import sample  # reading shards needs more libraries than a model does

    drawn = sample(shards, "val", sequences)
    return [drawn.select(slice(start, start + ROWS)) for start in range(0, len(drawn), ROWS)]


@torch.no_grad()
def validation_losses(model: Model, data: Iterable[Batch], spec: SubmodelSpec | None = None) -> dict[str, float]:
    """Mean nats per text token, image bit, video bit and audio code, of the model run as `spec`."""
    training = model.training
    model.eval()
    device = model.norm.weight.device
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for batch in data:
        losses = model(batch.to(device), None if spec is None else [spec] * len(batch))
        for name, total in losses.sums.items():
            sums[name] = sums.get(name, 0.0) + float(total)
            counts[name] = counts.get(name, 0) + losses.counts[name]
    model.train(training)
    return {name: sums[name] / counts[name] for name in sums if counts[name]}


def judge_member(model: Model, member: MemberSpec, data: Iterable[Batch], full: dict[str, float]) -> dict[str, Any]:
    """The figures of one family member, measured inside the full model, whose own losses are `full`."""
    spec = SubmodelSpec.of(model.config, member)
    parameters, active = parameter_counts(spec.config(model.config))
    return {
        **member.model_dump(),
        "val_loss": full if spec == SubmodelSpec.full(model.config) else validation_losses(model, data, spec),
        "parameters": parameters,
        "active_parameters": active,
    }
