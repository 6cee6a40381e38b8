"""One unit of the experiment: train, judge every size, keep the figures and, where others begin with them, weights."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from accordion.config.pretrain import ModelConfig, PretrainConfig, model_config
from accordion.config.study import StudyConfig
from accordion.data.batch import Batch
from accordion.extract.slicing import cut
from accordion.model import Model, SubmodelSpec, load_model, parameter_counts, save_model
from accordion.model.files import load_weights
from accordion.model.importance import rank_experts
from accordion.observe import say
from accordion.store.atomic import atomic_folder, atomic_write
from accordion.study.data import Resident, ResidentLoader, read_meta
from accordion.study.units import ELASTIC, FIXED, RECOVERY, Unit, member_of, settings
from accordion.train.checkpoint import newest_checkpoint, save_checkpoint
from accordion.train.loop import Trainer, precision
from accordion.train.validate import validation_losses

JUDGED = 32  # sequences in a validation batch
LINE_SECONDS = 60.0


@dataclass(frozen=True)
class Place:
    """Where a study works.

    Attributes:
        study: its settings.
        data: exported shards.
        out: folder of `units/` (figures of the finished ones), `models/` and `partial/` (checkpoints).
        device: of the runs.
        identity: digest of the data; a checkpoint of other data or settings is refused.
        deadline: `time.time()` at which a run saves its state and stops; None: never.
    """

    study: StudyConfig
    data: Path
    out: Path
    device: str
    identity: str
    deadline: float | None = None

    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.time() > self.deadline

    def result(self, unit: Unit | str) -> Path:
        """The figures of a finished unit."""
        return self.out / "units" / f"{unit if isinstance(unit, str) else unit.name}.json"

    def model(self, name: str) -> Path:
        """The weights of a finished unit."""
        return self.out / "models" / name


_held: dict[tuple[Path, str, str], Resident] = {}


def resident(place: Place, split: str) -> Resident:
    """A split of the data in the memory of this process."""
    key = (place.data, split, place.device)
    if key not in _held:
        cache = place.out / "columns" / place.identity
        _held[key] = Resident.load(place.data, split, torch.device(place.device), cache)
    return _held[key]


def release() -> None:
    """Give back the memory of the data, and what torch keeps on a GPU."""
    _held.clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def run_unit(place: Place, unit: Unit, must_stop: Callable[[], bool] = lambda: False) -> bool:
    """Train and judge a unit, or go on with it; False where the deadline or a request to stop came first."""
    if place.result(unit).is_file():
        return True
    start = time.monotonic()
    config = settings(place.study, unit)
    trainer = begin(place, unit, config)
    partial = place.out / "partial" / unit.name
    identity = {"unit": unit.name, "settings": json.loads(config.model_dump_json()), "data": place.identity}
    snapshot = newest_checkpoint(partial, identity)
    if snapshot is not None:
        trainer.restore(snapshot)
        say(f"{unit.name}: goes on after step {trainer.done}")
    if not _train(unit, trainer, partial, identity, lambda: must_stop() or place.late()):
        return False
    figures = judge(place, unit, trainer)
    figures["wall_seconds"] = time.monotonic() - start
    if unit.kind == ELASTIC:
        with atomic_folder(place.model(unit.name)) as folder:
            save_model(trainer.model, folder)
            atomic_write(folder / "loader.json", json.dumps(trainer.loader.state()) + "\n")
    place.result(unit).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(place.result(unit), json.dumps(figures, indent=1) + "\n")
    shutil.rmtree(partial, ignore_errors=True)
    mean = ", ".join(f"{name} {value:.4f}" for name, value in figures["val_loss"].items())
    say(f"{unit.name}: done in {figures['wall_seconds']:.0f} s; {mean}")
    return True


def begin(place: Place, unit: Unit, config: PretrainConfig) -> Trainer:
    """The trainer of a unit at its first step; a recovery begins with its member cut out of the elastic run."""
    meta = read_meta(place.data)
    loader = ResidentLoader(resident(place, "train"), batch=config.batch, seed=config.seed)
    if unit.kind != RECOVERY:
        return Trainer(config, model_config(config, meta), loader, place.device)
    source = place.model(str(unit.needs))
    member = member_of(place.study, unit.member)
    whole = load_model(source)
    part = cut(whole, SubmodelSpec.of(whole.config, member))
    loader.restore(json.loads((source / "loader.json").read_text()))  # on from where pre-training ended
    trainer = Trainer(config, part.config, loader, place.device)
    load_weights(trainer.model, dict(part.state_dict()), where=unit.name)
    return trainer


def _train(
    unit: Unit, trainer: Trainer, partial: Path, identity: Mapping[str, Any], must_stop: Callable[[], bool]
) -> bool:
    config = trainer.config
    spoken = time.monotonic()
    while trainer.done < config.steps:
        figures = trainer.step()
        stopped = trainer.done < config.steps and must_stop()
        if stopped or (trainer.done % config.checkpoint_every == 0 and trainer.done < config.steps):
            save_checkpoint(partial, trainer.snapshot(), identity, kept=1)
        if stopped:
            say(f"{unit.name}: stopped at step {trainer.done} of {config.steps}; the next call goes on")
            return False
        if time.monotonic() - spoken > LINE_SECONDS:
            spoken = time.monotonic()
            say(f"{unit.name}: step {trainer.done} of {config.steps}, text {figures.get('loss/text', 0):.3f}")
    return True


def judge(place: Place, unit: Unit, trainer: Trainer) -> dict[str, Any]:
    """The figures of a trained unit: losses, cost, and the losses of every size cut out of it."""
    study, model = place.study, trainer.model
    data = list(resident(place, "val").batches(JUDGED, study.validation_sequences))
    parameters, active = parameter_counts(model.config)
    with precision(trainer.config, trainer.device):
        figures = {
            "unit": unit.name,
            "kind": unit.kind,
            "member": unit.member,
            "share": unit.share,
            "seed": unit.seed,
            "val_loss": validation_losses(model, data),
            "parameters": parameters,
            "active_parameters": active,
            "routed_activation": sum(model.config.top_k) / sum(model.config.experts),
            "steps": trainer.done,
            "tokens": trainer.tokens,
            "flops": trainer.flops,
            "train_seconds": trainer.seconds,
        }
        if not unit.member and not model.config.isolated:
            figures["members"] = _cuts(study, model, model.config, data)
        if unit.kind == FIXED:
            ranking = list(resident(place, "train").batches(JUDGED, study.ranking_sequences))
            order = rank_experts(model, ranking)
            ranked = model.config.model_copy(update={"expert_order": order})
            figures["members_ranked"] = _cuts(study, model, ranked, data)
    return figures


def _cuts(study: StudyConfig, model: Model, config: ModelConfig, data: list[Batch]) -> dict[str, dict[str, float]]:
    """Validation losses of the reported sizes inside `model`, their experts in the order of `config`."""
    losses = {}
    for member in study.members:
        spec = SubmodelSpec.of(config, member)
        losses[member.name] = validation_losses(model, data, spec)
    return losses
