"""The pre-training stage: shards in, an elastic model with its curves and its resumable state out."""

import hashlib
import json
import math
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

from accordion.config.pretrain import ModelConfig, PretrainConfig, model_config
from accordion.data.batch import MODALITIES as KINDS
from accordion.data.batch import Batch
from accordion.data.loader import ShardLoader
from accordion.data.shards import read_meta, sequence_of
from accordion.device import peak_flops, training_device
from accordion.errors import ConfigError, DataError, Interrupted
from accordion.model import Model, SubmodelSpec, save_model
from accordion.model.losses import MODALITIES
from accordion.observe import progress, record, say
from accordion.store.atomic import atomic_write
from accordion.store.manifest import MANIFEST, Manifest, describe_files
from accordion.train.checkpoint import CheckpointWriter, Snapshot, newest_folder
from accordion.train.guards import deterministic, enough_memory, stop_requests
from accordion.train.loop import TIMES, Trainer, precision
from accordion.train.parts import save_in_parts
from accordion.train.ranks import Ranks, joined
from accordion.train.schedule import long_batch
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
        ArtifactError: a checkpoint in `resume` belongs to other data, or to settings that learn something else.
        TrainingDiverged: a loss, gradient or weight became NaN or infinite; no checkpoint holds any.
        Interrupted: SIGTERM or SIGINT came; the state after the last step is saved.
        RankLost: another process of the run died or hangs.
    """
    meta = read_meta(shards)
    shape = model_config(config, meta)
    _check_positions(config, meta["sequence"])
    _check_stages(config, shape)
    for member in config.family:  # before training, not after it
        SubmodelSpec.of(shape, member)
    data = _validation(config, shards)
    identity = {"pretrain": config.resumed_under(), "shards": shards_digest(shards)}
    device = training_device()
    with joined(config, device) as ranks:
        return ranks.tell(_run(config, shape, device, ranks, shards, out, resume, identity, data))


def _check_positions(config: PretrainConfig, sequence: int) -> None:
    parts = config.parallel.tensor * config.parallel.context
    if sequence % parts:
        raise ConfigError(
            f"pretrain.parallel: tensor x context is {parts}; it must divide the {sequence} positions of a sequence"
        )


def _check_stages(config: PretrainConfig, shape: ModelConfig) -> None:
    stages, levels = config.parallel.pipeline, shape.audio_levels
    if levels > shape.layers // stages:
        raise ConfigError(
            f"pretrain.parallel.pipeline: got {stages}, by which the last stage holds {shape.layers // stages} of "
            f"{shape.layers} layers; the top {levels} tell a level of audio codes each and must lie in one stage: "
            "lower it, or raise pretrain.model.layers"
        )


def _run(
    config: PretrainConfig,
    shape: ModelConfig,
    device: torch.device,
    ranks: Ranks,
    shards: Path,
    out: Path,
    resume: Path,
    identity: dict[str, Any],
    data: list[Batch],
) -> dict[str, Any] | None:
    """This process's part of the run; the leader writes and judges the model. Nothing of the engine outlives it."""
    part = {"rank": ranks.rank, "ranks": ranks.count}
    with ExitStack() as open_:
        loader = ShardLoader(shards, "train", batch=config.batch, seed=config.seed, **part)
        open_.enter_context(closing(loader))
        long = long_loader(config, shards, **part)
        if long is not None:
            open_.enter_context(closing(long))
        open_.enter_context(deterministic(config.deterministic))
        remedy = f"lower pretrain.batch (now {config.batch}), pack.sequence or the model's sizes"
        open_.enter_context(enough_memory(remedy))
        trainer = Trainer(config, shape, loader, device, long=long, ranks=ranks)
        _resume(trainer, resume, identity)
        peak = peak_flops(device) * ranks.processes if ranks.leader else math.inf
        _train(trainer, config, resume, identity, peak)
    final, model = trainer.snapshot(), trainer.engine.whole()
    if not ranks.leader:
        return None
    _write(model, final, out)
    speed = {**_speed(trainer, peak), "data_wait_share": trainer.waited / trainer.seconds}
    return {**judge(model, trainer, config, shards, data), "speed": speed}


def _resume(trainer: Trainer, resume: Path, identity: dict[str, Any]) -> None:
    """Go on from the newest whole checkpoint, if there is one; the leader finds and verifies it for all."""
    folder = trainer.ranks.tell(newest_folder(resume, identity) if trainer.ranks.leader else None)
    if folder is not None:
        trainer.restore(Snapshot.read(folder))
        if trainer.ranks.leader:
            say(f"pretrain: resumed after step {trainer.done} of {trainer.config.steps}")


def _write(model: Model, final: Snapshot, out: Path) -> None:
    """The model, its curves, and beside it what a continued training would need."""
    save_model(model, out)
    atomic_write(out / "curves.jsonl", "".join(f"{line}\n" for line in final.curves))
    state = out / "state"
    state.mkdir()
    del final.tensors["model"]  # it lies beside
    for name in TIMES:  # the same work gives the same files
        del final.facts[name]
    final.write(state)


def long_loader(config: PretrainConfig, shards: Path, *, rank: int = 0, ranks: int = 1) -> ShardLoader | None:
    """The batches of stage 2: as many positions as those of stage 1; None where there is no stage 2.

    Raises:
        ConfigError: the shards hold no long sequences, or a batch cannot be shared out evenly.
    """
    if not config.long_context.share:
        return None
    meta = read_meta(shards)
    if LONG not in meta["splits"]:
        raise ConfigError(
            f"pretrain.long_context.share: {config.long_context.share}, but {shards} holds no long sequences; "
            "set pack.long_sequence and pack again, or the share to 0"
        )
    length = sequence_of(meta, LONG)
    batch = long_batch(config.batch, usual=meta["sequence"], long=length)
    if batch % ranks:
        raise ConfigError(
            f"pretrain.long_context: its steps read {batch} sequences of {length} positions, for pretrain.batch "
            f"({config.batch}) of {meta['sequence']}, which is no multiple of the {ranks} processes that read "
            "different ones; raise pretrain.batch, start fewer processes, or set the share to 0"
        )
    _check_positions(config, length)
    return ShardLoader(shards, LONG, batch=batch, seed=config.seed, rank=rank, ranks=ranks)


def _train(trainer: Trainer, config: PretrainConfig, resume: Path, identity: dict[str, Any], peak: float) -> None:
    """All steps that are left; checkpoints are written while the next steps run.

    Args:
        peak: operations a second that all processes together could do.

    Raises:
        Interrupted: SIGTERM or SIGINT came; the state after the last step is saved.
    """
    latest: dict[str, float] = {}
    steps = range(trainer.done, config.steps)
    with CheckpointWriter(resume, identity, kept=config.checkpoints_kept) as writer, stop_requests() as stop:
        shown = progress(steps, "pretrain", total=len(steps), unit="step", note=lambda: _note(latest))
        for _ in shown if trainer.ranks.leader else steps:
            figures = trainer.step()
            if trainer.ranks.leader:
                figures |= _speed(trainer, peak)
                latest.update(figures)
                record(trainer.done, figures)
            asked = trainer.ranks.anywhere(stop.signal is not None)
            if asked or trainer.done % config.checkpoint_every == 0 or trainer.done == config.steps:
                _save(trainer, writer)
            if asked and trainer.done < config.steps:
                writer.wait()
                raise Interrupted(
                    f"pretrain: stopped by {stop.signal or 'a signal to another process'} after step {trainer.done} of "
                    f"{config.steps}, which is saved; run it again to go on"
                )


def _save(trainer: Trainer, writer: CheckpointWriter) -> None:
    """A checkpoint of the state as it is now, in the form that the settings ask for."""
    if trainer.config.parallel.distributed_checkpoint:
        small = trainer.snapshot(whole=False)
        save_in_parts(writer.root, small, trainer.engine, writer.identity, kept=writer.kept)
        return
    snapshot = trainer.snapshot()
    if trainer.ranks.leader:
        writer.save(snapshot)


def _speed(trainer: Trainer, peak: float) -> dict[str, float]:
    """Positions and operations a second over the run, and the share of `peak` operations a second."""
    seconds = max(trainer.seconds, 1e-9)
    rate = trainer.flops / seconds
    return {"tokens_per_second": trainer.tokens / seconds, "flops_per_second": rate, "flops_utilisation": rate / peak}


def _note(figures: dict[str, float]) -> str:
    losses = [f"{name} {figures[f'loss/{name}']:.3f}" for name in MODALITIES if f"loss/{name}" in figures]
    return " ".join([*losses, f"{figures['flops_utilisation']:.0%} of peak"] if losses else [])


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


def judge(model: Model, trainer: Trainer, config: PretrainConfig, shards: Path, data: list[Batch]) -> dict[str, Any]:
    """Validation losses of the trained model, the baseline and the family, and how far it was trained.

    Raises:
        OutOfMemory: names the settings to lower.
    """
    read = f"pretrain.validation_sequences (now {config.validation_sequences})"
    with enough_memory(f"lower {read}, pack.sequence or the model's sizes"), precision(config, trainer.device):
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
        "steps": trainer.done,
        "skipped_steps": trainer.guard.skipped,
    }


def shards_digest(shards: Path) -> str:
    """What identifies the data: the digest of its manifest, or of its files where it has none."""
    if (shards / MANIFEST).is_file():
        return Manifest.read(shards).digest
    return hashlib.sha256(json.dumps(describe_files(shards), sort_keys=True).encode()).hexdigest()
