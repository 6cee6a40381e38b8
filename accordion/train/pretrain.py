"""The pre-training stage: shards in, an elastic model with its curves and its resumable state out."""

import hashlib
import json
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from accordion.config.pretrain import PretrainConfig, model_config
from accordion.data.batch import MODALITIES as KINDS
from accordion.data.batch import Batch
from accordion.data.loader import ShardLoader
from accordion.data.shards import read_meta, sequence_of
from accordion.device import training_device
from accordion.errors import ConfigError, DataError
from accordion.model import SubmodelSpec, save_model
from accordion.model.losses import MODALITIES
from accordion.observe import progress, record, say
from accordion.store.atomic import atomic_write
from accordion.store.manifest import MANIFEST, Manifest, describe_files
from accordion.train.checkpoint import newest_checkpoint, save_checkpoint
from accordion.train.loop import TIMES, Trainer, precision
from accordion.train.unigram import unigram_losses
from accordion.train.validate import judge_member, validation_batches, validation_losses

LONG = "long"  # the split of long sequences


def pretrain(config: PretrainConfig, *, shards: Path, out: Path, resume: Path) -> dict[str, Any]:
    """Train the elastic model on mixed batches of all modalities and judge every member of its family.

    Args:
        config: settings.
        shards: packed training and validation sequences.
        out: empty folder for the model, `curves.jsonl` and `state/`.
        resume: folder of this run's checkpoints. The newest whole one in it is continued, bit for bit as if the
            run had never stopped (with the same number of threads); it is created when missing and left as it is.

    Returns:
        Validation losses of the full model, of the unigram baseline and of every member; tokens, speed, steps.

    Raises:
        ArtifactError: a checkpoint in `resume` belongs to other settings or data.
        TrainingDiverged: a loss or gradient became NaN or infinite.
    """
    shape = model_config(config, read_meta(shards))
    for member in config.family:  # before training, not after it
        SubmodelSpec.nested(shape, layers=member.layers, experts=member.experts, top_k=member.top_k)
    data = _validation(config, shards)
    identity = {"pretrain": json.loads(config.model_dump_json()), "shards": shards_digest(shards)}
    with ExitStack() as open_:
        loader = open_.enter_context(closing(ShardLoader(shards, "train", batch=config.batch, seed=config.seed)))
        long = long_loader(config, shards)
        if long is not None:
            open_.enter_context(closing(long))
        trainer = Trainer(config, shape, loader, training_device(), long=long)
        snapshot = newest_checkpoint(resume, identity)
        if snapshot is not None:
            trainer.restore(snapshot)
            say(f"pretrain: resumed after step {trainer.done} of {config.steps}")
        _train(trainer, config, resume, identity)
    save_model(trainer.model, out)
    atomic_write(out / "curves.jsonl", "".join(f"{line}\n" for line in trainer.curves))
    state = out / "state"
    state.mkdir()
    final = trainer.snapshot()
    del final.tensors["model"]  # it lies beside
    for name in TIMES:  # the same work gives the same files
        del final.facts[name]
    final.write(state)
    return {**judge(trainer, config, shards, data), "steps": trainer.done}


def long_loader(config: PretrainConfig, shards: Path) -> ShardLoader | None:
    """The batches of stage 2: as many positions as those of stage 1; None where there is no stage 2.

    Raises:
        ConfigError: the shards hold no long sequences.
    """
    if not config.long_context.share:
        return None
    meta = read_meta(shards)
    if LONG not in meta["splits"]:
        raise ConfigError(
            f"pretrain.long_context.share: {config.long_context.share}, but {shards} holds no long sequences; "
            "set pack.long_sequence and pack again, or the share to 0"
        )
    batch = max(1, config.batch * meta["sequence"] // sequence_of(meta, LONG))
    return ShardLoader(shards, LONG, batch=batch, seed=config.seed)


def _train(trainer: Trainer, config: PretrainConfig, resume: Path, identity: dict[str, Any]) -> None:
    latest: dict[str, float] = {}
    steps = range(trainer.done, config.steps)
    for _ in progress(steps, "pretrain", total=len(steps), unit="step", note=lambda: _note(latest)):
        figures = trainer.step()
        latest.update(figures)
        speed = trainer.tokens / max(trainer.seconds, 1e-9)
        record(trainer.done, {**figures, "tokens_per_second": speed})
        if trainer.done % config.checkpoint_every == 0 or trainer.done == config.steps:
            save_checkpoint(resume, trainer.snapshot(), identity, kept=config.checkpoints_kept)


def _note(figures: dict[str, float]) -> str:
    return " ".join(f"{name} {figures[f'loss/{name}']:.3f}" for name in MODALITIES if f"loss/{name}" in figures)


def _validation(config: PretrainConfig, shards: Path) -> list[Batch]:
    """The validation sequences of the run, which hold every modality that the split holds.

    Raises:
        DataError: too few were asked for, so that a modality is in none of them.
    """
    data = validation_batches(shards, config.validation_sequences)
    held = read_meta(shards).get("splits", {}).get("val", {}).get("positions", {})
    seen = {name for index, name in enumerate(KINDS) if any(bool((b.modality == index).any()) for b in data)}
    if missing := [name for name in MODALITIES if held.get(name) and name not in seen]:
        raise DataError(
            f"pretrain.validation_sequences: got {config.validation_sequences}, and the sequences drawn hold no "
            f"{', '.join(missing)}; ask for more"
        )
    return data


def judge(trainer: Trainer, config: PretrainConfig, shards: Path, data: list[Batch]) -> dict[str, Any]:
    """Validation losses of the trained model, the baseline and the family, and the speed of the run."""
    model = trainer.model
    with precision(config, trainer.device):
        full = validation_losses(model, data)
        members = [
            judge_member(model, member, data, full)
            for member in progress(config.family, "validate family", total=len(config.family), unit="member")
        ]
    return {
        "val_loss_full": full,
        "val_loss_unigram": unigram_losses(shards, model.config, data),
        "submodels": members,
        "tokens": trainer.tokens,
        "speed": {
            "tokens_per_second": trainer.tokens / trainer.seconds,
            "data_wait_share": trainer.waited / trainer.seconds,
        },
    }


def shards_digest(shards: Path) -> str:
    """What identifies the data: the digest of its manifest, or of its files where it has none."""
    if (shards / MANIFEST).is_file():
        return Manifest.read(shards).digest
    return hashlib.sha256(json.dumps(describe_files(shards), sort_keys=True).encode()).hexdigest()
