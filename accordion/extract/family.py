"""The extract stage: members of the family written as models of their own, each compared with its origin."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from accordion.config.extract import ExtractConfig
from accordion.data.batch import Batch
from accordion.errors import DataError
from accordion.extract.card import CARD, member_card
from accordion.extract.huggingface import obstacle, write_huggingface
from accordion.extract.slicing import cut_file
from accordion.model import Model, SubmodelSpec, load_model
from accordion.model.elastic import parameter_counts
from accordion.model.files import CONFIG, WEIGHTS, read_config
from accordion.observe import progress
from accordion.store.atomic import atomic_folder, atomic_write
from accordion.store.manifest import MANIFEST, Manifest, describe_files, identity, sha256
from accordion.train.validate import validation_batches, validation_losses

KIND = "sub-model"
SPEC = "spec.json"
HUGGINGFACE = "huggingface"


def extract(config: ExtractConfig, *, out: Path, policy: Path, shards: Path) -> dict[str, Any]:
    """Write `members/NAME/` for each member of `config`: weights, config, spec, card, Hugging Face layout, manifest.

    Args:
        policy: folder of the full elastic model.
        shards: packed data; its validation split feeds the comparison.

    Returns:
        `max_abs_logit_diff` over all members, modalities and positions (fp32), and for each member its size
        and its validation losses in nats.
    """
    full = load_model(policy)
    compared = validation_batches(shards, config.sequences)
    context = compared[0].modality.shape[1]
    whole = validation_losses(full, compared)
    members = []
    for member in progress(config.members, "extract", unit="members"):
        folder = out / "members" / member.name
        spec = SubmodelSpec.of(full.config, member)
        extract_member(policy, spec, folder, context=context if config.huggingface else None)
        part = load_model(folder)
        figures = {
            **member.model_dump(),
            **sizes(part, folder),
            "max_abs_logit_diff": max(logit_difference(full, spec, part, batch) for batch in compared),
            "val_loss": validation_losses(part, compared),
            "huggingface": (folder / HUGGINGFACE).is_dir(),
        }
        atomic_write(folder / CARD, member_card(member.name, origin(folder), figures, whole))
        seal_member(folder, policy)
        members.append(figures)
    return {
        "max_abs_logit_diff": max(member["max_abs_logit_diff"] for member in members),
        "sequences": sum(len(batch) for batch in compared),
        "val_loss_full": whole,
        "members": members,
    }


def extract_member(policy: Path, spec: SubmodelSpec, out: Path, *, context: int | None = None) -> None:
    """Write one sub-model into the new folder `out`, all or nothing. Layers that it leaves out are not read.

    Args:
        policy: folder of the full model.
        spec: what to keep.
        context: write the text path in the Hugging Face layout too, for sequences of this length; members that have
            no equivalent there go without.

    Raises:
        DataError: `out` exists.
        ConfigError: the model cannot run `spec`.
        ArtifactError: the model's files are missing or damaged.
    """
    if out.exists():
        raise DataError(f"{out}: exists; name a new folder")
    config = spec.config(read_config(policy))
    kept = {"layers": spec.layers, "experts": spec.experts, "top_k": spec.top_k}
    with atomic_folder(out) as folder:
        save_file(cut_file(policy / WEIGHTS, spec), folder / WEIGHTS)
        (folder / CONFIG).write_text(config.model_dump_json(indent=1) + "\n")
        (folder / SPEC).write_text(json.dumps({**kept, "parent_sha256": _digest(policy)}, indent=1) + "\n")
        if context is not None and obstacle(config) is None:
            (folder / HUGGINGFACE).mkdir()
            write_huggingface(load_model(folder), folder / HUGGINGFACE, context=context)
        seal_member(folder, policy)


def seal_member(folder: Path, parent: Path) -> None:
    """Write the manifest of a member, after all its files: an artifact that is verified wherever it is copied to.

    Args:
        parent: folder of what it was made from, named in the manifest where it is an artifact.
    """
    made_from = identity(parent)
    Manifest(
        kind=KIND, stage="extract", config=dict(origin(folder)), files=describe_files(folder),
        parents={made_from.partition(":")[0]: made_from} if made_from else {},
    ).write(folder)  # fmt: skip


def _digest(policy: Path) -> str:
    """SHA-256 of the full model's weights, from its manifest where it has one."""
    if (policy / MANIFEST).is_file():
        return str(Manifest.read(policy).files[WEIGHTS]["sha256"])
    return sha256(policy / WEIGHTS)


def origin(folder: Path) -> Mapping[str, Any]:
    """What a member keeps of which model, as its `spec.json` says.

    Raises:
        DataError: the folder is no extracted member.
    """
    path = folder / SPEC
    if not path.is_file():
        raise DataError(f"{path}: missing; {folder} is no extracted member")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def sizes(model: Model, folder: Path) -> dict[str, int]:
    """Parameters, those active for a token, and bytes on disk."""
    parameters, active = parameter_counts(model.config)
    return {"parameters": parameters, "active_parameters": active, "bytes": (folder / WEIGHTS).stat().st_size}


@torch.no_grad()
def logit_difference(full: Model, spec: SubmodelSpec, part: Model, batch: Batch) -> float:
    """Largest absolute difference between the logits of `full` run as `spec` and of the extracted `part`."""
    ours, theirs = part.outputs(batch), full.outputs(batch, [spec] * len(batch))
    pairs = [(ours.text, theirs.text), (ours.vision, theirs.vision), (ours.audio, theirs.audio)]
    return max(float((mine - other).abs().max()) for mine, other in pairs if mine.numel())
