"""The extract stage: members of the family written as models of their own, each compared with its origin."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from accordion.config.extract import ExtractConfig
from accordion.data.batch import Batch
from accordion.errors import ArtifactError
from accordion.extract.member import describe_member, extract_member
from accordion.model import Model, SubmodelSpec, load_model
from accordion.observe import progress
from accordion.train.validate import validation_batches, validation_losses


def extract(config: ExtractConfig, *, out: Path, policy: Path, shards: Path) -> dict[str, Any]:
    """Write `members/NAME/` for each member of `config`: weights, config, spec, figures, card, Hugging Face layout.

    Args:
        policy: folder of the full elastic model.
        shards: packed data; its validation split feeds the comparison.

    Returns:
        `max_abs_logit_diff` over all members, modalities and positions (fp32), and for each member its size
        and its validation losses in nats.

    Raises:
        ArtifactError: logits of a member or of the full model are no numbers.
        DataError: there are no validation sequences.
    """
    full = load_model(policy)
    compared = validation_batches(shards, config.sequences)
    whole = validation_losses(full, compared)
    members = []
    for member in progress(config.members, "extract", unit="members"):
        folder, spec = out / "members" / member.name, SubmodelSpec.of(full.config, member)
        figures = write_member(policy, full, spec, folder, compared, whole, huggingface=config.huggingface)
        members.append({**member.model_dump(), **figures})
    return {
        "max_abs_logit_diff": max(member["max_abs_logit_diff"] for member in members),
        "sequences": sum(len(batch) for batch in compared),
        "val_loss_full": whole,
        "members": members,
    }


def write_member(
    policy: Path, full: Model, spec: SubmodelSpec, folder: Path, data: Sequence[Batch], whole: dict[str, float], *,
    huggingface: bool = True, known: Mapping[str, float] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Cut a member into the new `folder`, compare it with `full` run as that member, and describe it.

    Args:
        policy: folder of the full model, which is `full`.
        data: validation sequences for the comparison.
        whole: losses of the full model on them.
        huggingface: also write the Hugging Face layout, where there is an equivalent.
        known: more of its figures.

    Returns:
        the member's figures.

    Raises:
        ArtifactError: logits are no numbers; the text names the member and the modality.
    """
    extract_member(policy, spec, folder, context=data[0].modality.shape[1] if huggingface else None)
    part = load_model(folder)
    measured = {
        "max_abs_logit_diff": max(logit_difference(full, spec, part, batch, name=folder.name) for batch in data),
        "val_loss": validation_losses(part, data),
        "val_loss_full": whole,
    }
    return describe_member(folder, folder.name, {**measured, **(known or {})}, parent=policy)


@torch.no_grad()
def logit_difference(full: Model, spec: SubmodelSpec, part: Model, batch: Batch, *, name: str = "the member") -> float:
    """Largest absolute difference between the logits of `full` run as `spec` and of the extracted `part`.

    Raises:
        ArtifactError: a difference is no number, so that nothing can be said of it; the text names the member `name`
            and the modality.
    """
    ours, theirs = part.outputs(batch), full.outputs(batch, [spec] * len(batch))
    heads = {"text": (ours.text, theirs.text), "vision": (ours.vision, theirs.vision),
             "audio": (ours.audio, theirs.audio)}  # fmt: skip
    worst = 0.0
    for modality, (mine, other) in heads.items():
        if not mine.numel():
            continue
        difference = float((mine - other).abs().max())
        if not math.isfinite(difference):  # max() of Python passes over NaN, so it is refused before
            raise ArtifactError(
                f"{name}: its {modality} logits, or those of the full model run as it, hold NaN or infinity; the full "
                "model is damaged: restore it, or train it again"
            )
        worst = max(worst, difference)
    return worst
