"""What the tests run on several processes: parity of backbones, training, conversion of weights."""

import hashlib
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save

from accordion.config.pretrain import ParallelConfig, PretrainConfig, model_config
from accordion.data.loader import ShardLoader
from accordion.data.shards import read_meta
from accordion.errors import RankLost
from accordion.model import Model
from accordion.model.sampler import Draw
from accordion.train.checkpoint import Snapshot
from accordion.train.loop import Trainer
from accordion.train.megatron import library  # noqa: F401  (slow: once for all processes)
from accordion.train.pretrain import pretrain
from accordion.train.ranks import joined
from tests.unit.model.synthetic import small_batch, small_config
from tests.unit.train.megatron_parity import canonical_gradients, compare, draws, models

CPU = torch.device("cpu")


def settings(**parallel: int) -> PretrainConfig:
    """An engine of Megatron-Core, of a model whose sizes every small split divides."""
    return PretrainConfig(engine="megatron", parallel=ParallelConfig(**parallel), batch=4)


def tensor_parity() -> None:
    """Tensor ranks share a batch and see the whole: each checks everything against the plain model."""
    config = settings(tensor=2)
    with joined(config, CPU) as ranks:
        assert ranks.count == 1
        plain, other = models(small_config(), config.parallel)
        for name, draw in draws(small_config()).items():
            _sum_over_tensor_ranks(other)
            compare(plain, other, small_batch(), draw)
            ranks.sum_loads([router for _, router in other.layers.routers()])
            for (_, mine), (_, theirs) in zip(plain.layers.routers(), other.layers.routers(), strict=True):
                assert torch.equal(mine.load, theirs.load), name
                torch.testing.assert_close(mine.expected, theirs.expected)
                mine.balance(0.01)
                theirs.balance(0.01)


def _sum_over_tensor_ranks(model: Model) -> None:
    """Let the gradients of weights that all tensor ranks have be summed, as Megatron does after a backward pass."""
    if getattr(model, "summed", False):
        return
    model.summed = True  # type: ignore[assignment]
    for name, weight in model.named_parameters():
        norm = getattr(weight, "sequence_parallel", False) and not getattr(weight, "tensor_model_parallel", False)
        if name.startswith("layers.") and (norm or "experts.weight" in name):
            weight.register_post_accumulate_grad_hook(lambda w: dist.all_reduce(w.grad))


def expert_parity() -> None:
    """Expert ranks read different rows: their sum is what the plain model has on all rows."""
    config = settings(expert=2)
    with joined(config, CPU) as ranks:
        assert ranks.count == 2
        plain, other = models(small_config(), config.parallel)
        whole = small_batch()
        for name, specs in draws(small_config()).items():
            draw = specs if isinstance(specs, Draw) else Draw(specs)
            mine = draw.part(ranks.part(2))
            totals = []
            for model, batch, own in ((plain, whole, draw), (other, whole.select(ranks.part(2)), mine)):
                model.zero_grad(set_to_none=True)
                total = torch.stack([part / 100 for part in model(batch, own).weighed.values()]).sum()
                total.backward()
                totals.append(total.detach())
            dist.all_reduce(totals[1])
            torch.testing.assert_close(totals[1], totals[0], rtol=1e-5, atol=1e-6)
            for weight_name, weight in other.named_parameters():
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
                if "experts.weight" not in weight_name:
                    dist.all_reduce(weight.grad)
            for weight_name, gradient in canonical_gradients(other).items():
                wanted = plain.get_parameter(weight_name).grad
                wanted = torch.zeros_like(gradient) if wanted is None else wanted
                torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=2e-6, msg=f"{name} {weight_name}")
            ranks.sum_loads([router for _, router in other.layers.routers()])
            for (_, ours), (_, theirs) in zip(plain.layers.routers(), other.layers.routers(), strict=True):
                assert torch.equal(ours.load, theirs.load), name
                ours.balance(0.01)
                theirs.balance(0.01)


def train(config: PretrainConfig, shards: Path, folder: Path, resume: Path) -> dict[str, Any]:
    """One pre-training stage; only the leader's folder is written."""
    folder.mkdir(exist_ok=True)
    return pretrain(config, shards=shards, out=folder, resume=resume)


def wait_for_one_who_does_not_come(patience: float) -> tuple[str, float]:
    """Rank 1 hangs for a while; what rank 0 is told, and after how many seconds."""
    start = time.monotonic()
    try:
        with joined(PretrainConfig(parallel=ParallelConfig(patience=patience)), CPU) as ranks:
            start = time.monotonic()
            if ranks.rank:
                time.sleep(4 * patience)
            ranks.largest([1])
    except RankLost as error:
        return str(error), time.monotonic() - start
    return "", 0.0


def weights_after_a_resume(config: PretrainConfig, shards: Path, resume: Path) -> tuple[int, str]:
    """The step after which this rank goes on from a checkpoint, and the digest of its weights two steps later."""
    with joined(config, CPU) as ranks:
        part = {"rank": ranks.rank, "ranks": ranks.count}
        with closing(ShardLoader(shards, "train", batch=config.batch, seed=config.seed, **part)) as loader:
            trainer = Trainer(config, model_config(config, read_meta(shards)), loader, CPU, ranks=ranks)
            (folder,) = sorted(resume.glob("step-*"))[-1:]
            trainer.restore(Snapshot.read(folder))
            begun = trainer.done
            for _ in range(2):
                trainer.step()
            weights = trainer.engine.tensors()[0]
        return begun, hashlib.sha256(save(weights)).hexdigest()
