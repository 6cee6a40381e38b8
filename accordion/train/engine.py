"""What a training step needs of the hardware: a model, its gradients, its optimizer; and the plain PyTorch form.

Whatever an engine splits over processes, `tensors` and `load` speak the canonical form: the names, shapes and values
of the plain model and its AdamW. So a checkpoint of one engine and number of ranks is continued by any other.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from accordion.config.pretrain import ModelConfig, PretrainConfig
from accordion.data.batch import Batch
from accordion.errors import ConfigError
from accordion.model import Losses, Model
from accordion.model.files import check_weights, load_weights
from accordion.model.sampler import Draw
from accordion.train.parts import read_parts
from accordion.train.ranks import Ranks

Tensors = dict[str, Tensor]
FLEX_FROM = 1024  # positions; a mask of fewer is small


class Shell(nn.Module):
    """A model behind one call that takes and gives what the wrappers of parallel training look into."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, batch: Batch, draw: Draw, hidden: Tensor | None, scale_weight: float
    ) -> tuple[Tensors, dict[str, int], Tensors]:
        """The fields of the `Losses`."""
        losses = self.model(batch, draw, hidden_frames=hidden, scale_weight=scale_weight)
        return losses.sums, losses.counts, losses.weighed


class Engine(ABC):
    """A model in training on one process or on this one among many.

    Attributes:
        model: what this process holds of it.
        ranks: where this process stands.
        loads: layer of this process -> assignments (E,) that each of its experts got in the step last balanced, from
            all tokens.
    """

    model: Model
    ranks: Ranks
    loads: dict[int, Tensor]
    run: Callable[..., Any]

    def losses(self, batch: Batch, draw: Draw, hidden: Tensor | None, scale_weight: float) -> Losses:
        """Losses of this process's rows, see `Model.forward`.

        Args:
            batch, hidden: this process's rows.
            draw: what the rows of the whole batch run, all processes' together.
        """
        return Losses(*self.run(batch, draw.part(self.ranks.part(len(batch))), hidden, scale_weight))

    def backward(self, total: Tensor) -> None:
        """Back-propagate `total`, which was computed from what `losses` gave last."""
        total.backward()

    @abstractmethod
    def zero(self) -> None:
        """Forget all gradients."""

    @abstractmethod
    def clip(self, most: float) -> Tensor:
        """After the backward pass: the norm of the whole gradient, which is scaled down to `most` if it is longer."""

    @abstractmethod
    def step(self, rate: float) -> None:
        """Move the weights."""

    def balance(self, step: float) -> Tensor:
        """Move the selection biases, by the loads of all processes.

        Returns:
            of the step's loads: the busiest expert's over the mean, averaged over layers, and how many experts of
            all layers got no token (2,).
        """
        routers = [router for _, router in self.model.layers.routers()]
        self.ranks.sum_loads(routers)
        self.loads = {index: router.load.clone() for index, router in self.model.layers.routers()}
        loads = [router.load for router in routers]
        most = torch.stack([load.max() / load.mean().clamp_min(1e-9) for load in loads]).sum()
        idle = torch.stack([(load == 0).sum() for load in loads]).sum().to(most.dtype)
        self.model.balance(step)
        return self.ranks.over_layers(torch.stack([most / self.model.config.layers, idle]))

    def masses(self) -> Tensors:
        """`layers.N` -> gate mass (E,) of the experts, of all layers in order; every process calls it."""
        held = self.all_layers({index: router.mass for index, router in self.model.layers.routers()})
        return {f"layers.{index}": mass for index, mass in held.items()}

    def all_layers(self, held: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Layer -> what is held of it, in order, by this process or another that has other layers; all call it."""
        return dict(held)

    @abstractmethod
    def tensors(self) -> tuple[Tensors, Tensors]:
        """Weights, and optimizer state (`name/field`), in canonical form; every process calls it."""

    @abstractmethod
    def load(self, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""

    def save_parts(self, folder: Path, step: int) -> None:
        """Write the weights and the state of the optimizer after `step` into an empty folder; every process calls it
        and writes what it holds (see `parts`).

        Raises:
            ConfigError: this engine cannot.
            TrainingDiverged: some process holds what is not finite; nothing is written.
        """
        raise ConfigError("pretrain.parallel.distributed_checkpoint belongs to engine: megatron; set it to false")

    def load_parts(self, folder: Path) -> None:
        """Go on from what any number of processes have written with `save_parts`; every process calls it.

        Raises:
            ArtifactError: it does not belong to this model.
        """
        self.load(*read_parts(folder, {name: tensor.shape for name, tensor in self.model.state_dict().items()}))

    @abstractmethod
    def whole(self) -> Model:
        """A plain model with all weights, on every process; every process calls it."""


class Used:
    """Which weights outside of the layers of a model in FSDP2 got a gradient in a step, on any process.

    A weight that nobody used has a gradient of zeros there, under which momentum and weight decay would move it.
    """

    def __init__(self, model: Model) -> None:
        self.names = [name for name, _ in model.named_parameters() if not name.startswith("layers.")]
        self._here: set[str] = set()
        self._watched: dict[str, Tensor] = {}
        self._anywhere = torch.zeros(0)
        model.register_forward_pre_hook(lambda model, _: self._watch(model))

    def _watch(self, model: nn.Module) -> None:
        """Before the model is run FSDP puts whole weights into it, which are others than those of the optimizer."""
        for name in self.names:
            weight = model.get_parameter(name)
            if self._watched.get(name) is not weight:
                weight.register_hook(lambda _, name=name: self._here.add(name))
                self._watched[name] = weight

    def share(self, device: torch.device) -> None:
        """After a backward pass: tell the others, and hear from them; no host waits for it."""
        self._anywhere = torch.tensor([name in self._here for name in self.names], dtype=torch.uint8, device=device)
        torch.distributed.all_reduce(self._anywhere, op=torch.distributed.ReduceOp.MAX)
        self._here.clear()

    def nowhere(self) -> list[str]:
        """The weights that no process used."""
        return [name for name, used in zip(self.names, self._anywhere.tolist(), strict=True) if not used]


class PlainEngine(Engine):
    """Plain PyTorch: one process; or several with a copy each (DDP) or a share each (FSDP2)."""

    def __init__(self, config: PretrainConfig, shape: ModelConfig, device: torch.device, ranks: Ranks) -> None:
        self.ranks = ranks
        self.model = Model(shape, seed=config.seed).train().to(device)
        self.model.flex = flex_from(config, device)
        shell = Shell(self.model)
        self._used: Used | None = None
        if config.parallel.shard:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(device.type, (ranks.count,))
            for layer in self.model.layers:
                fully_shard(layer, mesh=mesh)
            # ranks read different modalities: who had no use for a weight adds zeros to the gradient of those who had
            fully_shard(shell, mesh=mesh).set_reduce_scatter_unused_params(True, recurse=False)
            self._used = Used(self.model)
            self.run = shell
        elif ranks.count > 1:
            # a layer that no row of this process keeps gets its gradient from the others
            self.run = nn.parallel.DistributedDataParallel(shell, broadcast_buffers=False, find_unused_parameters=True)
        else:
            self.run = shell
        self.optimizer = build_optimizer(self.model, config)

    def backward(self, total: Tensor) -> None:
        """See `Engine`."""
        super().backward(total)
        if self._used is not None:
            self._used.share(total.device)

    def zero(self) -> None:
        """See `Engine`."""
        for layer in self.model.layers:
            layer.moe.forget_gradients()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def clip(self, most: float) -> Tensor:
        """See `Engine`."""
        weights = [weight for weight in self.model.parameters() if weight.grad is not None]
        norm = nn.utils.get_total_norm([weight.grad for weight in weights])  # type: ignore[misc]
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if norm.is_cuda or norm > most:  # on a GPU the host does not wait for the norm
            nn.utils.clip_grads_with_norm_(weights, most, norm)
        return norm

    def step(self, rate: float) -> None:
        """See `Engine`."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for name in self._used.nowhere() if self._used is not None else ():
            self.model.get_parameter(name).grad = None
        self.optimizer.step()

    def tensors(self) -> tuple[Tensors, Tensors]:
        """See `Engine`."""
        weights = {name: _full(tensor) for name, tensor in self.model.state_dict().items()}
        state = {
            f"{name}/{field}": _full(value)
            for name, weight in self.model.named_parameters()
            for field, value in self.optimizer.state.get(weight, {}).items()
        }
        return weights, state

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """See `Engine`."""
        own = self.model.state_dict()
        check_weights(own, weights, where="checkpoint")
        for name, tensor in own.items():
            tensor.copy_(_like(weights[name], tensor))
        named = dict(self.model.named_parameters())
        self.optimizer.state.clear()
        for key, value in optimizer.items():
            name, _, field = key.rpartition("/")
            here = value.to(named[name].device, copy=True)
            self.optimizer.state[named[name]][field] = _like(here, named[name]) if value.ndim else here

    def whole(self) -> Model:
        """See `Engine`; the model itself where one process has all of it."""
        if not any(isinstance(weight, DTensor) for weight in self.model.parameters()):
            return self.model
        return whole_model(self.model, self.tensors()[0])


def whole_model(model: Model, weights: Tensors) -> Model:
    """A plain model of the config of `model`, with canonical weights, on the same device."""
    plain = Model(model.config)
    load_weights(plain, {name: tensor.cpu() for name, tensor in weights.items()}, where="checkpoint")
    return plain.train(model.training).to(next(model.parameters()).device)


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(whole: Tensor, target: Tensor) -> Tensor:
    """`whole` split as `target` is."""
    if isinstance(target, DTensor):
        return distribute_tensor(whole.to(target.device), target.device_mesh, target.placements)
    return whole


def decays(name: str, weight: Tensor) -> bool:
    """Whether weight decay applies: to matrices (of the ViT and of voices too), not to embeddings, norms, biases."""
    table = name.startswith("embeddings") and not name.startswith(("embeddings.understanding.", "embeddings.voice."))
    return weight.ndim > 1 and not table


def flex_from(config: PretrainConfig, device: torch.device) -> int:
    """From how many positions on sequences attend by FlexAttention; 0: never."""
    if config.attention == "auto":
        return FLEX_FROM if device.type == "cuda" else 0
    return 1 if config.attention == "flex" else 0


def build_optimizer(model: Model, config: PretrainConfig) -> torch.optim.AdamW:
    """AdamW with the weight decay of `decays`."""
    settings = config.optimizer

    def those(decayed: bool) -> Iterator[nn.Parameter]:
        return (weight for name, weight in model.named_parameters() if decays(name, weight) == decayed)

    groups = [
        {"params": list(those(True)), "weight_decay": settings.weight_decay},
        {"params": list(those(False)), "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)


def build_engine(config: PretrainConfig, shape: ModelConfig, device: torch.device, ranks: Ranks) -> Engine:
    """The engine that `pretrain.engine` names.

    Raises:
        ConfigError: processes are to be joined first, which the pre-training stage does and nobody else.
    """
    alone = config.engine == "plain" and not config.parallel.shard
    if not alone and not torch.distributed.is_initialized():
        raise ConfigError(
            "pretrain.engine, pretrain.parallel: only the pre-training stage runs engine: megatron or shards weights; "
            "use engine: plain and shard: false here"
        )
    if config.engine == "plain":
        return PlainEngine(config, shape, device, ranks)
    from accordion.train.megatron.engine import MegatronEngine  # seconds to import

    return MegatronEngine(config, shape, device, ranks)
