"""The processes of a training run: who reads what, and sums over those who read different sequences.

A launcher (torchrun, Slurm, Flyte's PyTorch operator) starts the processes and sets RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR and MASTER_PORT; without them a run is one process.
"""

import gc
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from accordion.config.pretrain import PretrainConfig
from accordion.errors import ConfigError, RankLost
from accordion.model.balance import Balanced
from accordion.model.losses import Losses
from accordion.train.schedule import batch_sizes

LOST = ("Timed out waiting", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed")


@dataclass(frozen=True)
class Ranks:
    """This process among all.

    Attributes:
        rank, count: which part of every batch it reads, of how many.
        readers: group of the processes that read different parts; None: one process alone.
        routers: group of those that route different tokens through the same layers.
        stages: group of those that hold the other layers for the same rows; None: this process holds all layers.
        leader: whether it is the one that writes files.
    """

    rank: int = 0
    count: int = 1
    readers: Any = None
    routers: Any = None
    stages: Any = None
    leader: bool = True

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.processes == 1

    @property
    def processes(self) -> int:
        """All processes of the run, whatever is split over them."""
        return dist.get_world_size() if dist.is_initialized() else 1

    def part(self, rows: int) -> slice:
        """The rows of a whole batch of which this process has `rows`."""
        return slice(self.rank * rows, (self.rank + 1) * rows)

    def all_rows(self, part: Tensor) -> Tensor:
        """The rows of every part (rows, ...), in order."""
        if self.count == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.count)]
        dist.all_gather(parts, part.contiguous(), group=self.readers)
        return torch.cat(parts)

    def largest(self, values: Sequence[int]) -> list[int]:
        """For each number the largest of all parts."""
        if self.count == 1:
            return list(values)
        together = torch.tensor(values, device=_device(self.readers))
        dist.all_reduce(together, op=dist.ReduceOp.MAX, group=self.readers)
        return [int(value) for value in together]

    def share(self, count: int) -> tuple[int, int]:
        """Of a number that each process has one of: the sum of those before this one, and of all."""
        if self.count == 1:
            return 0, count
        counts = self.all_rows(torch.tensor([count], device=_device(self.readers))).tolist()
        return sum(counts[: self.rank]), sum(counts)

    def means(self, losses: Losses) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """`means` and `aims` of the losses of the whole batch.

        Their gradient is that of this process's part, `count` times: gradients are averaged over the parts after.
        """
        if self.count == 1:
            return losses.means, losses.aims
        means = self._means(losses.sums, losses.counts)
        return means, means | self._means(losses.weighed, losses.counts)

    def _means(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
        if not sums:
            return {}
        own = torch.stack([total.detach().double() for total in sums.values()])
        held = torch.tensor([counts[name] for name in sums], dtype=torch.float64, device=own.device)
        together = torch.cat((own, held))
        dist.all_reduce(together, group=self.readers)
        means = {}
        for index, (name, count) in enumerate(zip(sums, together[len(own) :].tolist(), strict=True)):
            if count:
                part = sums[name] * (self.count / count)
                means[name] = part + ((together[index] / count).to(part.dtype) - part).detach()
        return means

    @torch.no_grad()
    def sum_loads(self, routers: Sequence[Balanced]) -> None:
        """Make every router's load, expectation and fresh mass those of all tokens; call it once a step."""
        if self.routers is None or dist.get_world_size(self.routers) == 1:
            return
        counted = [tensor for router in routers for tensor in (router.load, router.expected, router.fresh)]
        together = torch.cat(counted)
        dist.all_reduce(together, group=self.routers)
        for tensor, whole in zip(counted, together.split([len(tensor) for tensor in counted]), strict=True):
            tensor.copy_(whole)

    def over_layers(self, values: Tensor) -> Tensor:
        """Sums over the layers of this process as sums over all layers, in place."""
        if self.stages is not None:
            dist.all_reduce(values, group=self.stages)
        return values

    def agree(self, values: Tensor) -> Tensor:
        """The leader's values on every process: what is decided by them is decided alike, to the last bit."""
        if not self.alone:
            dist.broadcast(values, src=0)
        return values

    def anywhere(self, flag: bool) -> bool:
        """Whether a flag is set on any process."""
        if self.alone:
            return flag
        raised = torch.tensor([int(flag)], device=_device(dist.group.WORLD))
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return bool(raised)

    def joined(self, names: list[str]) -> list[str]:
        """What each process has a list of, in order and each once, on every process."""
        if self.alone:
            return names
        lists: list[list[str]] = [[] for _ in range(self.processes)]
        dist.all_gather_object(lists, names)
        return list(dict.fromkeys(name for every in lists for name in every))

    def tell(self, what: Any) -> Any:
        """What the leader has, on every process."""
        if self.alone:
            return what
        box = [what]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Until every process is here."""
        if not self.alone:
            dist.barrier()


def _device(group: Any) -> torch.device:
    return torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")


@contextmanager
def joined(config: PretrainConfig, device: torch.device) -> Iterator[Ranks]:
    """Join the other processes of the run, if there are any, and leave them at the end.

    Raises:
        ConfigError: their number does not fit `pretrain.parallel`.
        RankLost: one of them died, or let the others wait longer than `pretrain.parallel.patience`.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    check_processes(config, world)
    if dist.is_initialized():  # by a caller, who also ends it
        yield _split(config)
        return
    if world == 1 and config.engine == "plain" and not config.parallel.shard:
        yield Ranks()
        return
    backend, timeout = "nccl" if device.type == "cuda" else "gloo", timedelta(seconds=config.parallel.patience)
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    with _all_answering(config.parallel.patience):
        if "MASTER_ADDR" in os.environ:
            # torchrun keeps its store when it starts the processes again: names of the dead ones lie in it
            store, rank, count = next(dist.rendezvous("env://", timeout=timeout))
            store = dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
            dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timeout)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        yield _split(config)  # after an error the group is left as it is: others may hang in it, and this process ends
    gc.collect()  # what has a hand on the group goes first: torch waits for its threads when the last hand lets go
    if config.engine == "megatron":
        from accordion.train.megatron.groups import leave

        leave()
    dist.destroy_process_group()


@contextmanager
def _all_answering(patience: float) -> Iterator[None]:
    """Turn what a backend says of a process that does not answer into an error that says what to do."""
    start = time.monotonic()
    try:
        yield
    except RuntimeError as error:
        words = str(error)
        if isinstance(error, RankLost) or not (
            isinstance(error, dist.DistError) or any(part in words for part in LOST)
        ):
            raise
        raise RankLost(
            f"{time.monotonic() - start:.0f} s into the run another process of it died or did not answer for "
            f"{patience:g} s ({words.splitlines()[0]}); run it again with the same resume folder to go on from the "
            "newest checkpoint. If all are well and only slow, raise pretrain.parallel.patience"
        ) from error


def check_processes(config: PretrainConfig, world: int) -> None:
    """Refuse a number of processes among which the settings cannot share out the model and every batch.

    Raises:
        ConfigError: names the setting that does not fit, and what would.
    """
    parallel = config.parallel
    copy = {name: getattr(parallel, name) for name in ("tensor", "context", "pipeline")}
    fixed = math.prod(copy.values())
    if world % fixed:
        raise ConfigError(
            f"pretrain.parallel: {' x '.join(copy)} is {fixed}, which does not divide the {world} processes of the "
            "run; start a multiple of it, or lower them"
        )
    stage = world // parallel.pipeline
    if stage % parallel.expert:
        raise ConfigError(
            f"pretrain.parallel.expert: got {parallel.expert}, which does not divide the {stage} processes of "
            f"{'a stage' if parallel.pipeline > 1 else 'the run'}; start a multiple of it, or lower it"
        )
    readers = world // fixed
    if config.batch % readers:
        raise ConfigError(
            f"pretrain.batch: got {config.batch}; wants a multiple of the {readers} processes that read different "
            "sequences"
        )
    if uneven := [size for size in batch_sizes(config) if size % readers]:
        raise ConfigError(
            f"pretrain.batch_ramp: steps of it read {uneven[0]} sequences, which is no multiple of the {readers} "
            f"processes that read different ones; make pretrain.batch a multiple of {4 * readers}, start fewer "
            "processes, or set batch_ramp to 0"
        )
    if parallel.microbatches > config.batch // readers:
        raise ConfigError(
            f"pretrain.parallel.microbatches: got {parallel.microbatches}, but each process reads "
            f"{config.batch // readers} sequences a step; lower it, or raise pretrain.batch"
        )


def _split(config: PretrainConfig) -> Ranks:
    if config.engine == "megatron":
        from accordion.train.megatron.groups import join

        return join(config.parallel)
    everyone = dist.group.WORLD
    return Ranks(dist.get_rank(), dist.get_world_size(), everyone, everyone, leader=dist.get_rank() == 0)
