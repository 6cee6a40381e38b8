"""The folder of one member: its weights, what it keeps of which model, its figures, its card, and a manifest."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from accordion.errors import ArtifactError, DataError
from accordion.extract.card import CARD, member_card
from accordion.extract.huggingface import obstacle, write_huggingface
from accordion.extract.slicing import cut_file
from accordion.extract.spec import SPEC
from accordion.model import SubmodelSpec, load_model
from accordion.model.elastic import parameter_counts
from accordion.model.files import CONFIG, WEIGHTS, read_config
from accordion.store.atomic import atomic_folder, atomic_write
from accordion.store.manifest import MANIFEST, Manifest, describe_files, identity, sha256

KIND = "sub-model"
FIGURES = "figures.json"
HUGGINGFACE = "huggingface"


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
        (folder / SPEC).write_text(json.dumps({**kept, "parent_sha256": weights_digest(policy)}, indent=1) + "\n")
        if context is not None and obstacle(config) is None:
            (folder / HUGGINGFACE).mkdir()
            write_huggingface(load_model(folder), folder / HUGGINGFACE, context=context)
        describe_member(folder, out.name, {}, parent=policy)


def describe_member(folder: Path, name: str, measured: Mapping[str, Any], *, parent: Path) -> dict[str, Any]:
    """Write the figures, the model card and, after all files, the manifest of a member whose model is there.

    Args:
        name: of the member, for its card.
        measured: what is known of it besides its size: any of `max_abs_logit_diff`, `val_loss`, `val_loss_full` (of
            the full model on the same sequences), `val_loss_before` (its recovery), `latency_ms`.
        parent: folder of what it was made from, the full model or another member; named in the manifest where it is
            an artifact, a member's own parents with it.

    Returns:
        the figures, as `figures.json` holds them: parameters, those active for a token, bytes of weights, whether
        the Hugging Face layout is there, and what was measured.

    Raises:
        ArtifactError: something that was measured is no finite number.
    """
    parameters, active = parameter_counts(read_config(folder))
    figures = {
        "parameters": parameters,
        "active_parameters": active,
        "bytes": (folder / WEIGHTS).stat().st_size,
        "huggingface": (folder / HUGGINGFACE).is_dir(),
        **measured,
    }
    kept = origin(folder)
    try:
        text = json.dumps(figures, indent=1, allow_nan=False)
    except ValueError:
        raise ArtifactError(
            f"{name}: a figure is no finite number: {figures}; the model is damaged: restore it, or train it again"
        ) from None
    atomic_write(folder / FIGURES, text + "\n")
    atomic_write(folder / CARD, member_card(name, kept, figures))
    stage = "recover" if "recovery" in kept else "extract"
    Manifest(
        kind=KIND, stage=stage, config=dict(kept), files=describe_files(folder), parents=_parents(parent)
    ).write(folder)  # fmt: skip
    return figures


def origin(folder: Path) -> Mapping[str, Any]:
    """What a member keeps of which model, and how it was recovered, as its `spec.json` says.

    Raises:
        DataError: the folder is no extracted member.
    """
    return _read(folder, SPEC)


def member_figures(folder: Path) -> Mapping[str, Any]:
    """The figures that `describe_member` wrote.

    Raises:
        DataError: the folder is no extracted member.
    """
    return _read(folder, FIGURES)


def weights_digest(policy: Path) -> str:
    """SHA-256 of a model's weights, from its manifest where it has one."""
    if (policy / MANIFEST).is_file():
        return str(Manifest.read(policy).files[WEIGHTS]["sha256"])
    return sha256(policy / WEIGHTS)


def _read(folder: Path, name: str) -> Mapping[str, Any]:
    path = folder / name
    if not path.is_file():
        raise DataError(f"{path}: missing; {folder} is no extracted member")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _parents(parent: Path) -> dict[str, str]:
    """What a member's manifest names: its parent, and, for a recovered member, also the model that one was cut from."""
    made_from = identity(parent)
    if not made_from:
        return {}
    kind = made_from.partition(":")[0]
    earlier = Manifest.read(parent).parents if kind == KIND else {}
    return {**earlier, kind: made_from}
