"""Recovery: an extracted member trained a little further on its own, its cost counted."""

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from accordion.config.extract import RecoverConfig
from accordion.config.pretrain import PretrainConfig
from accordion.data.batch import Batch
from accordion.data.loader import ShardLoader
from accordion.device import training_device
from accordion.errors import DataError
from accordion.extract.huggingface import obstacle, write_huggingface
from accordion.extract.member import HUGGINGFACE, describe_member, origin, weights_digest
from accordion.extract.spec import SPEC
from accordion.model import Model, load_model, save_model
from accordion.observe import progress, record
from accordion.store.atomic import atomic_folder, atomic_write
from accordion.store.manifest import Manifest, identity
from accordion.train.guards import enough_memory
from accordion.train.loop import Trainer
from accordion.train.validate import validation_batches, validation_losses


def recover(
    config: RecoverConfig,
    *,
    run: PretrainConfig,
    member: Path,
    shards: Path,
    out: Path,
    name: str,
    full: Path | None = None,
) -> dict[str, Any]:
    """Train the member in `member` and write the result into the new folder `out`, all or nothing.

    Args:
        run: settings of the pre-training that the member comes from.
        shards: the packed data the full model learnt from; other tokenizers are refused.
        name: of the member, for its card.
        full: folder of the full model, whose losses the card then gives too.

    Returns:
        losses before and after, steps, tokens and floating-point operations.

    Raises:
        DataError: `out` exists, `member` is no extracted member, or it was not cut from `full`.
        ArtifactError: a file of the member was altered.
        TrainingDiverged: a loss or gradient became NaN or infinite.
        OutOfMemory: names the setting to lower.
    """
    kept = _checked(member, out, full)
    batch = config.batch or run.batch
    settings = run.recovering(config.steps, config.rate).model_copy(update={"seed": config.seed, "batch": batch})
    with enough_memory(f"lower --batch (now {batch}), or recover a smaller member"):
        compared = validation_batches(shards, run.validation_sequences)
        known = {} if full is None else {"val_loss_full": validation_losses(load_model(full), compared)}
        model, before, after, cost = _train(settings, load_model(member), shards, compared)
    context = compared[0].modality.shape[1]
    with atomic_folder(out) as folder:
        save_model(model, folder)
        recovery = {"from": identity(member), **cost, "earlier": _recoveries(kept)}
        atomic_write(folder / SPEC, json.dumps({**kept, "recovery": recovery}, indent=1) + "\n")
        if obstacle(model.config) is None:
            (folder / HUGGINGFACE).mkdir()
            write_huggingface(model, folder / HUGGINGFACE, context=context)
        describe_member(folder, name, {"val_loss": after, "val_loss_before": before, **known}, parent=member)
    return {"val_loss_before": before, "val_loss": after, **cost}


def _checked(member: Path, out: Path, full: Path | None) -> Mapping[str, Any]:
    """What the member keeps, after everything that is refused was looked for."""
    if out.exists():
        raise DataError(f"{out}: exists; name a new folder")
    kept = origin(member)
    Manifest.read(member).verify(member)
    if full is not None and (weights := weights_digest(full)) != kept["parent_sha256"]:
        raise DataError(
            f"{member}: was cut from weights {kept['parent_sha256'][:16]}, those of {full} are {weights[:16]}; name "
            "the model that it was cut from (--policy)"
        )
    return kept


def _train(
    settings: PretrainConfig, member: Model, shards: Path, compared: list[Batch]
) -> tuple[Model, dict[str, float], dict[str, float], dict[str, int]]:
    """The trained member, its losses on `compared` before and after, and what it cost."""
    before = validation_losses(member, compared)
    with closing(ShardLoader(shards, "train", batch=settings.batch, seed=settings.seed)) as loader:
        trainer = Trainer(settings, member.config, loader, training_device())
        trainer.model.load_state_dict(member.state_dict())
        for _ in progress(range(settings.steps), "recover", unit="step"):
            record(trainer.done + 1, trainer.step())
    model = trainer.model.cpu().eval()
    cost = {"steps": trainer.done, "tokens": trainer.tokens, "flops": trainer.flops}
    return model, before, validation_losses(model, compared), cost


def _recoveries(kept: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The recoveries that a member went through, the first one first."""
    if "recovery" not in kept:
        return []
    last = dict(kept["recovery"])
    return [*last.pop("earlier", []), last]
