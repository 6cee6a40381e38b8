"""What the tests of a pipeline run on each of its processes: parity, what a rank holds, stops and divergence."""

import os
import signal
from pathlib import Path
from typing import Any

import torch

from accordion.config.pretrain import ModelShape, ParallelConfig, PretrainConfig, model_config
from accordion.data.loader import ShardLoader
from accordion.data.shards import read_meta
from accordion.errors import Interrupted, TrainingDiverged
from accordion.model import Model
from accordion.model.sampler import Draw
from accordion.train.checkpoint import MOMENTS
from accordion.train.loop import Trainer
from accordion.train.megatron.convert import join_all
from accordion.train.megatron.engine import MegatronEngine
from accordion.train.pretrain import pretrain
from accordion.train.ranks import joined
from tests.unit.model.synthetic import small_batch, small_config
from tests.unit.train.megatron_parity import draws

CPU = torch.device("cpu")
SHAPE = small_config(layers=6)


def engine_settings(**parallel: int) -> PretrainConfig:
    """Six layers, which two and three stages divide."""
    return PretrainConfig(
        engine="megatron", parallel=ParallelConfig(**parallel), batch=4, model=ModelShape(layers=6, heads=2)
    )


def parity(stages: int, microbatches: int) -> None:
    """Every elastic configuration: losses, gradients, their norm, loads and gate mass are those of a plain model."""
    config = engine_settings(pipeline=stages, microbatches=microbatches)
    with joined(config, CPU) as ranks:
        plain = Model(SHAPE, seed=1).train()
        generator = torch.Generator().manual_seed(2)
        for _, router in plain.layers.routers():
            router.bias.normal_(0, 0.1, generator=generator)
        engine = MegatronEngine(config, SHAPE, CPU, ranks)
        engine.load(plain.state_dict(), {})
        for model in (plain, engine.model):
            for _, router in model.layers.routers():
                router.measuring = True
        for name, draw in draws(SHAPE).items():
            _compare(plain, engine, draw if isinstance(draw, Draw) else Draw(draw), name)
        masses = engine.masses()
        assert list(masses) == [f"layers.{index}" for index in range(SHAPE.layers)]
        for index, router in plain.layers.routers():
            torch.testing.assert_close(masses[f"layers.{index}"], router.mass)
        weights, _ = engine.tensors()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in plain.state_dict().items())


def _compare(plain: Model, engine: MegatronEngine, draw: Draw, name: str) -> None:
    batch, called = small_batch(), []
    wanted = plain(batch, draw, scale_weight=0.5)
    plain.zero_grad(set_to_none=True)
    torch.stack(list(wanted.aims.values())).sum().backward()
    gradients = {key: weight.grad for key, weight in plain.named_parameters() if weight.grad is not None}
    norm = torch.nn.utils.get_total_norm(list(gradients.values()))
    hooks = [
        layer.register_forward_hook(lambda module, *_: called.append(module.layer_number - 1))
        for layer in engine.model.layers.layers
    ]
    got = engine.losses(batch, draw, None, 0.5)
    for hook in hooks:
        hook.remove()
    assert got.counts == wanted.counts
    for mine, theirs in ((got.sums, wanted.sums), (got.weighed, wanted.weighed)):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(mine[key], value, rtol=1e-5, atol=1e-5, msg=f"{name} {key}")
    engine.zero()
    engine.backward(torch.stack(list(got.aims.values())).sum())
    torch.testing.assert_close(engine.clip(1e9).float(), norm, rtol=1e-4, atol=0, msg=name)
    parts: dict[str, Any] = {key: vars(weight)["main_grad"] for key, weight in engine.model.named_parameters()}
    for key, gradient in join_all(engine.model, parts).items():
        reference = gradients.get(key, torch.zeros_like(gradient))
        torch.testing.assert_close(
            gradient, reference, rtol=1e-3, atol=2e-6, msg=lambda text, k=key: f"{name} {k} {text}"
        )
    kept = set(range(SHAPE.layers)) if draw.specs is None or draw.twins else {n for s in draw.specs for n in s.layers}
    own = {index for index, _ in engine.model.layers.routers()}
    assert set(called) == kept & own, name  # a layer that no row keeps is not run, and a whole stage passes rows on
    loads = dict(plain.layers.routers())
    for index, router in engine.model.layers.routers():
        assert torch.equal(router.load, loads[index].load), name
    plain.balance(0.01)
    engine.balance(0.01)


def bytes_held(config: PretrainConfig, shards: Path) -> dict[str, int]:
    """Bytes of weights and of AdamW's moments in this process after two steps, counted by their memory."""
    with joined(config, CPU) as ranks:
        loader = ShardLoader(shards, "train", batch=config.batch, seed=0, rank=ranks.rank, ranks=ranks.count)
        trainer = Trainer(config, model_config(config, read_meta(shards)), loader, ranks=ranks)
        trainer.step()
        trainer.step()
        assert isinstance(trainer.engine, MegatronEngine)
        parts = [part.optimizer for part in trainer.engine.optimizer.chained_optimizers if not part.is_stub_optimizer]
        moments = [state[field] for part in parts for state in part.state.values() for field in MOMENTS]
        loader.close()
        return {"weights": _bytes(list(trainer.model.parameters())), "moments": _bytes(moments)}


def _bytes(tensors: list[Any]) -> int:
    """Memory under the tensors, each piece once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def stopped_on_the_last_rank(config: PretrainConfig, shards: Path, folder: Path, resume: Path) -> str:
    """The last process gets SIGTERM in step 3; what each says of it."""
    step, last = Trainer.step, int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1

    def signalled(self: Trainer) -> dict[str, float]:
        if last and self.done == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self)

    Trainer.step = signalled  # type: ignore[method-assign]
    folder.mkdir(exist_ok=True)
    try:
        pretrain(config, shards=shards, out=folder, resume=resume)
    except Interrupted as error:
        return str(error)
    return "not stopped"


def diverged(config: PretrainConfig, shards: Path, folder: Path) -> str:
    """What each process says of a run whose loss is not finite."""
    folder.mkdir(exist_ok=True)
    try:
        pretrain(config, shards=shards, out=folder, resume=folder)
    except TrainingDiverged as error:
        return str(error)
    return "no divergence"


def told(config: PretrainConfig) -> tuple[float, bool, bool]:
    """What a rank decides by when each rank has numbers and flags of its own."""
    with joined(config, CPU) as ranks:
        me = int(os.environ["RANK"])
        return float(ranks.agree(torch.tensor([float(me)]))), ranks.anywhere(me == 1), ranks.anywhere(False)
