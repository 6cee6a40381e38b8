"""One unit of the experiment: train, judge every size, keep the figures and, where others begin with them, weights."""

import json
import shutil
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch

from accordion.config.pretrain import ModelConfig, PretrainConfig, model_config
from accordion.config.study import StudyConfig
from accordion.data.batch import Batch
from accordion.errors import ArtifactError
from accordion.extract.slicing import cut
from accordion.model import Model, SubmodelSpec, load_model, parameter_counts, save_model
from accordion.model.files import WEIGHTS, load_weights
from accordion.model.importance import rank_experts
from accordion.observe import say
from accordion.store.atomic import atomic_folder, atomic_write
from accordion.store.manifest import sha256
from accordion.study.data import Resident, ResidentLoader, read_meta
from accordion.study.live import RecentLosses, Report
from accordion.study.place import Place, identity, read_json, read_unit, write_unit
from accordion.study.units import ELASTIC, FIXED, RECOVERY, Unit, member_of, settings
from accordion.train.checkpoint import newest_checkpoint, save_checkpoint
from accordion.train.guards import enough_memory
from accordion.train.loop import Trainer, precision
from accordion.train.validate import validation_losses

JUDGED = 32  # sequences in a validation batch
REPORT_SECONDS = 3.0  # between reports of a unit
SIZES = (
    "the sizes in study.pretrain.model or pack.sequence, or the units at once (--jobs; in a workflow runtime.threads)"
)


_held: dict[tuple[Path, str, str], Resident] = {}


def resident(place: Place, split: str) -> Resident:
    """A split of the data in the memory of this process."""
    key = (place.data, split, place.device)
    if key not in _held:
        cache = place.out / "columns" / place.digest
        _held[key] = Resident.load(place.data, split, torch.device(place.device), cache)
    return _held[key]


def release() -> None:
    """Give back the memory of the data, and what torch keeps on a GPU."""
    _held.clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def run_unit(
    place: Place,
    unit: Unit,
    must_stop: Callable[[], bool] = lambda: False,
    tell: Callable[[Report], None] = lambda report: None,
) -> bool:
    """Train and judge a unit, or go on with it; False where the deadline or a request to stop came first."""
    work = work_on(place, unit, must_stop)
    while True:
        try:
            tell(next(work))
        except StopIteration as end:
            return bool(end.value)


def work_on(place: Place, unit: Unit, must_stop: Callable[[], bool]) -> Generator[Report, None, bool]:
    """As `run_unit`, giving a report every few seconds and at the end of training.

    Raises:
        ArtifactError: the unit is finished or begun with other settings or data, or begins with weights that are not
            those of the unit that it needs.
        OutOfMemory: names the settings to change.
    """
    if read_unit(place, unit) is not None:
        return True
    start = time.monotonic()
    config = settings(place.study, unit)
    with enough_memory(memory_remedy(config)):
        trainer = begin(place, unit, config)
        made = _continue(place, unit, trainer)
        if not (yield from _train(place, unit, trainer, lambda: must_stop() or place.late())):
            return False
    with enough_memory(f"lower study.validation_sequences (now {place.study.validation_sequences}), {SIZES}"):
        figures = judge(place, unit, trainer)
    figures["wall_seconds"] = time.monotonic() - start
    if unit.kind == ELASTIC:
        figures["weights"] = _keep_model(place, unit, trainer)
    write_unit(place, unit, figures, made)
    shutil.rmtree(place.partial(unit), ignore_errors=True)
    mean = ", ".join(f"{name} {value:.4f}" for name, value in figures["val_loss"].items())
    say(f"{unit.name}: done in {figures['wall_seconds']:.0f} s; {mean}")
    return True


def memory_remedy(config: PretrainConfig) -> str:
    """What to change where the memory is too small for a step."""
    return f"lower study.pretrain.batch (now {config.batch}), {SIZES}"


def _continue(place: Place, unit: Unit, trainer: Trainer) -> list[dict[str, Any]]:
    """Go on from a checkpoint, if there is one; what is told of each call that worked on the unit, this one last."""
    partial = place.partial(unit)
    made, now = partial / "made.json", place.made_now()
    snapshot = newest_checkpoint(partial, identity(place, unit))
    found = [now]
    if snapshot is not None:
        trainer.restore(snapshot)
        say(f"{unit.name}: goes on after step {trainer.done}")
        earlier = json.loads(made.read_text()) if made.is_file() else []
        found = [*(each for each in earlier if each != now), now]
    partial.mkdir(parents=True, exist_ok=True)
    atomic_write(made, json.dumps(found) + "\n")
    return found


def _keep_model(place: Place, unit: Unit, trainer: Trainer) -> str:
    """Write the weights of a unit with which others begin, in place of those of an earlier run; their SHA-256."""
    target = place.model(unit.name)
    if target.is_dir():
        shutil.rmtree(target)
    with atomic_folder(target) as folder:
        save_model(trainer.model, folder)
        atomic_write(folder / "loader.json", json.dumps(trainer.loader.state()) + "\n")
    return sha256(target / WEIGHTS)


def begin(place: Place, unit: Unit, config: PretrainConfig) -> Trainer:
    """The trainer of a unit at its first step; a recovery begins with its member cut out of the elastic run."""
    meta = read_meta(place.data)
    loader = ResidentLoader(resident(place, "train"), batch=config.batch, seed=config.seed)
    if unit.kind != RECOVERY:
        return Trainer(config, model_config(config, meta), loader, place.device)
    source = _source(place, unit)
    member = member_of(place.study, unit.member)
    whole = load_model(source)
    part = cut(whole, SubmodelSpec.of(whole.config, member))
    loader.restore(json.loads((source / "loader.json").read_text()))  # on from where pre-training ended
    trainer = Trainer(config, part.config, loader, place.device)
    load_weights(trainer.model, dict(part.state_dict()), where=unit.name)
    return trainer


def _source(place: Place, unit: Unit) -> Path:
    """The weights with which a unit begins.

    Raises:
        ArtifactError: they are missing, or are not those of the unit that it needs.
    """
    source, needed = place.model(str(unit.needs)), place.result(str(unit.needs))
    weights = source / WEIGHTS
    if not weights.is_file() or sha256(weights) != read_json(needed).get("weights"):
        raise ArtifactError(
            f"{source}: not the weights that unit {unit.needs} made; delete {needed} so that it is trained again"
        )
    return source


def _train(
    place: Place, unit: Unit, trainer: Trainer, must_stop: Callable[[], bool]
) -> Generator[Report, None, bool]:  # fmt: skip
    config, recent, told = trainer.config, RecentLosses(), time.monotonic()
    while trainer.done < config.steps:
        recent.add(trainer.step())
        left = trainer.done < config.steps
        stopped = left and must_stop()
        if stopped or (left and trainer.done % config.checkpoint_every == 0):
            save_checkpoint(place.partial(unit), trainer.snapshot(), identity(place, unit), kept=1)
        if stopped:
            say(f"{unit.name}: stopped at step {trainer.done} of {config.steps}; the next call goes on")
            return False
        if not left or time.monotonic() - told > REPORT_SECONDS:
            told = time.monotonic()
            yield Report(
                unit.name, trainer.done, config.steps, recent.take(), trainer.tokens, trainer.flops, trainer.seconds
            )
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
