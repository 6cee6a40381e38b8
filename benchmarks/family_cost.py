"""What a family costs: one elastic run with recovery of its members, against a run for every size.

Runs of a few steps in the proportions of profile study-cpu (docs/elastic.md): the elastic one with its growth, then a
tenth of the steps of recovery for each member, against as many steps of the full model and of every member from
scratch. Sequences of random text; what the family is worth is the family experiment's to say, this is its price.
"""

import time
from collections.abc import Sequence

from accordion.config.pretrain import PretrainConfig, model_config
from accordion.config.profile import load_profile
from accordion.config.study import StudyConfig
from accordion.data.batch import COLUMNS
from accordion.device import training_device
from accordion.study.data import Resident, ResidentLoader
from accordion.study.units import ELASTIC, FIXED, RECOVERY, SCRATCH, Unit, settings
from accordion.train.loop import Trainer
from benchmarks.elasticity import text_batch
from benchmarks.harness import Figures, Row, paired

REPEATS = 3
STEPS = 20
LENGTH = 512
META = {
    "text_vocabulary": 2048, "bits": 10, "scales": (1, 2, 4, 8), "frames": 4, "audio_levels": 4, "audio_codebook": 64,
}  # fmt: skip


def run(repeats: int, study: StudyConfig | None = None, steps: int = STEPS, length: int = LENGTH) -> list[Row]:
    """Time both, in pairs, and count their operations."""
    study = study or load_profile("study-cpu").study
    pretrain = study.pretrain.model_copy(update={"steps": steps})
    study = study.model_copy(update={"pretrain": pretrain})
    data = _sequences(pretrain, length)
    share = study.recovery_shares[-1]
    family = [Unit(ELASTIC, 0), *(Unit(RECOVERY, 0, name, share) for name in study.family)]
    separate = [Unit(FIXED, 0), *(Unit(SCRATCH, 0, name) for name in study.family)]

    def train(units: Sequence[Unit]) -> Figures:
        return _sum([_train(study, unit, data) for unit in units])

    found = paired(lambda: train(family), lambda: train(separate), repeats=repeats, label="family", warm_up=0)
    label = f"full, {', '.join(study.family)}: {steps} steps each"
    return [
        Row(figure=label, unit=unit, ours=f"elastic, {share:.0%} recovery", peer="separate runs",
            ours_values=found[unit][0], peer_values=found[unit][1], aim="ratio at most 0.45")
        for unit in ("s", "FLOP")
    ]  # fmt: skip


def _sequences(pretrain: PretrainConfig, length: int) -> Resident:
    batch = text_batch(model_config(pretrain, META), pretrain.batch, length).to(training_device())
    return Resident({name: getattr(batch, name) for name in COLUMNS})


def _train(study: StudyConfig, unit: Unit, data: Resident) -> Figures:
    """Seconds and counted operations of the steps of a unit; a member in recovery begins with random weights, which
    cost the same."""
    size = Unit(SCRATCH, unit.seed, unit.member) if unit.kind == RECOVERY else unit
    config = settings(study, unit).model_copy(update={"model": settings(study, size).model})
    loader = ResidentLoader(data, batch=config.batch, seed=config.seed)
    trainer = Trainer(config, model_config(config, META), loader, training_device())
    start = time.perf_counter()
    while trainer.done < config.steps:
        trainer.step()
    return {"s": time.perf_counter() - start, "FLOP": trainer.flops}


def _sum(parts: Sequence[Figures]) -> Figures:
    return {name: sum(part[name] for part in parts) for name in parts[0]}
