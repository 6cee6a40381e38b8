"""What the tests of checkpoints in parts run on each process: training that may not gather, resharding, failures."""

import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from accordion.config.pretrain import ModelConfig, ParallelConfig, PretrainConfig
from accordion.errors import StorageError, TrainingDiverged
from accordion.model import Model
from accordion.train import parts
from accordion.train import pretrain as stage
from accordion.train.checkpoint import Snapshot
from accordion.train.engine import Engine, Tensors, build_engine
from accordion.train.loop import Trainer
from accordion.train.megatron import engine as megatron
from accordion.train.megatron.convert import Placement
from accordion.train.ranks import joined
from tests.unit.model.synthetic import small_config

CPU = torch.device("cpu")
IDENTITY = {"seed": 1}
SMALL = 64  # elements of a tensor that ranks may tell each other


@contextmanager
def nothing_gathered() -> Iterator[None]:
    """Within it no rank may put canonical tensors together, or ask another stage for more than a few numbers."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was gathered")

    over_stages = megatron.over_stages

    def few(held: Mapping[str, Tensor]) -> Tensors:
        assert all(tensor.numel() <= SMALL for tensor in held.values())
        return over_stages(held)

    with (
        patch.object(Placement, "join", refuse),
        patch.object(megatron.MegatronEngine, "tensors", refuse),
        patch.object(megatron.MegatronEngine, "load", refuse),
        patch.object(megatron, "over_stages", few),
    ):
        yield


def train(config: PretrainConfig, shards: Path, folder: Path, resume: Path) -> int:
    """One pre-training stage, whose saves and resumes may not gather; how many of them there were."""
    done, save, restore = [], stage._save, Trainer.restore

    def save_alone(*given: Any) -> None:
        with nothing_gathered():
            save(*given)
        done.append("saved")

    def restore_alone(trainer: Trainer, snapshot: Snapshot) -> None:
        with nothing_gathered():
            restore(trainer, snapshot)
        done.append("resumed")

    folder.mkdir(exist_ok=True)
    with patch.object(stage, "_save", save_alone), patch.object(Trainer, "restore", restore_alone):
        stage.pretrain(config, shards=shards, out=folder, resume=resume)
    return len(done)


def settings(**parallel: int) -> PretrainConfig:
    """Of Megatron-Core with `parallel`, or of the plain engine without."""
    if not parallel:
        return PretrainConfig(batch=4)
    return PretrainConfig(engine="megatron", parallel=ParallelConfig(distributed_checkpoint=True, **parallel), batch=4)


def state(shape: ModelConfig, seed: int) -> tuple[Tensors, Tensors]:
    """Canonical weights, and moments of all but every third of them, each moved another number of times."""
    model, generator = Model(shape, seed=seed), torch.Generator().manual_seed(seed)
    held = {}
    for count, (name, weight) in enumerate(model.named_parameters()):
        if count % 3:
            held[f"{name}/step"] = torch.tensor(float(count))
            held |= {f"{name}/{field}": torch.rand(weight.shape, generator=generator) for field in parts.MOMENTS}
    return dict(model.state_dict()), held


def reshard(parallel: dict[str, int], read: Path | None, write: Path | None, seed: int) -> bool:
    """Read a checkpoint in parts (or begin with a seed), compare it with what the seed gives, write it again."""
    config, shape = settings(**parallel), small_config(layers=4)
    with joined(config, CPU) as ranks:
        engine, (weights, moments) = build_engine(config, shape, CPU, ranks), state(shape, seed)
        if read is None:
            engine.load(weights, moments)
        else:
            engine.load_parts(read)
        if write is not None:
            if ranks.leader:
                write.mkdir()
            ranks.wait()
            engine.save_parts(write, 1)
        return all(same(*pair) for pair in zip(engine.tensors(), (weights, moments), strict=True))


def same(one: Tensors, other: Tensors) -> bool:
    """Whether names and bits are the same."""
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def _save(root: Path, engine: Engine, step: int) -> None:
    parts.save_in_parts(root, Snapshot({}, {"step": step}, []), engine, IDENTITY, kept=2)


def save_four_times(root: Path) -> str:
    """Of four saves the last has a NaN on the last rank alone; what each rank says of it."""
    config, shape = settings(expert=2), small_config(layers=2)
    with joined(config, CPU) as ranks:
        engine = build_engine(config, shape, CPU, ranks)
        engine.load(*state(shape, 3))
        for step in (1, 2, 3):
            _save(root, engine, step)
        if not ranks.leader:
            engine.model.state_dict()["layers.layers.1.mlp.experts.weight_in"].view(-1)[3] = torch.nan
        try:
            _save(root, engine, 4)
        except TrainingDiverged as error:
            return str(error)
        return "saved"


def save_without_space(root: Path) -> str:
    """The last rank may write no file of more than a few bytes; what each rank says of it."""
    config, shape = settings(expert=2), small_config(layers=2)
    with joined(config, CPU) as ranks:
        engine = build_engine(config, shape, CPU, ranks)
        _save(root, engine, 1)
        if not ranks.leader:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            _save(root, engine, 2)
        except StorageError as error:
            return str(error)
        return "saved"
