"""Training with Megatron-Core: its gradient buffers, and AdamW split over the ranks that hold the same weights."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from accordion.config.pretrain import ModelConfig, PretrainConfig
from accordion.data.batch import Batch
from accordion.model import Losses, Model
from accordion.model.files import load_weights
from accordion.model.sampler import Draw
from accordion.train.checkpoint import MOMENTS
from accordion.train.engine import Engine, Shell, Tensors, decays, whole_model
from accordion.train.megatron import library as core
from accordion.train.megatron.backbone import MegatronBackbone, transformer_config
from accordion.train.megatron.convert import Placement, gather, join_all, over_stages, placements, scatter
from accordion.train.megatron.pipeline import TIED, Pipeline, Stage
from accordion.train.ranks import Ranks


class MegatronEngine(Engine):
    """See `Engine`. As in plain PyTorch, a weight that got no gradient in a step is left alone by it: Megatron's
    buffers hold zeros there, under which momentum and weight decay would move the layers that nobody ran."""

    def __init__(self, config: PretrainConfig, shape: ModelConfig, device: torch.device, ranks: Ranks) -> None:
        self.ranks, self.decay = ranks, config.optimizer.weight_decay
        self.model = Model(shape, backbone=MegatronBackbone(shape, config.parallel)).train()
        stages, core_config = config.parallel.pipeline, transformer_config(shape, config.parallel)
        shell = Stage(self.model) if stages > 1 else Shell(self.model)
        scatter(self.model, Model(shape, seed=config.seed).state_dict())
        self.model.to(device)
        self.named = dict(self.model.named_parameters())
        for place in placements(self.model):
            if place.axis is not None:  # a part that counts in the norm of the gradient on every rank that has one
                core.set_tensor_model_parallel_attributes(self.named[place.local], True, place.axis, 1)
        settings = core.DistributedDataParallelConfig(
            grad_reduce_in_fp32=True, use_distributed_optimizer=True, overlap_grad_reduce=False
        )
        self.run = core.DistributedDataParallel(core_config, settings, shell)
        self.pipeline = None
        if isinstance(shell, Stage):
            self.pipeline = Pipeline(shell, self.run, core_config, config.parallel.microbatches, ranks)
        self.optimizer = self._build_optimizer(config)
        self._touched: set[str] = set()
        for name, weight in self.named.items():
            weight.register_hook(lambda _, name=name: self._touched.add(name))

    def _build_optimizer(self, config: PretrainConfig) -> Any:
        settings = config.optimizer
        undecayed = core.ParamKey(
            with_name_predicate=core.ParamWithNamePredicate(
                name="undecayed", fn=lambda weight, name: not decays(name.partition("model.")[2], weight)
            )
        )
        wanted = core.OptimizerConfig(
            optimizer="adam",
            lr=settings.learning_rate,
            min_lr=0.0,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.betas[0],
            adam_beta2=settings.betas[1],
            adam_eps=1e-8,
            clip_grad=settings.clip,
            use_distributed_optimizer=True,
        )
        return core.get_megatron_optimizer(wanted, [self.run], config_overrides={undecayed: {"wd_mult": 0.0}})

    def losses(self, batch: Batch, draw: Draw, hidden: Tensor | None, scale_weight: float) -> Losses:
        """See `Engine`."""
        if self.pipeline is None:
            return super().losses(batch, draw, hidden, scale_weight)
        return self.pipeline.losses(batch, draw, hidden, scale_weight)

    def backward(self, total: Tensor) -> None:
        """See `Engine`."""
        if self.pipeline is None:
            super().backward(total)
        else:
            self.pipeline.backward(total)

    def zero(self) -> None:
        """See `Engine`."""
        self._touched.clear()
        self.run.zero_grad_buffer()  # type: ignore[attr-defined]
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def clip(self, most: float) -> Tensor:
        """See `Engine`."""
        core.finalize_model_grads([self.run])
        self.optimizer.prepare_grads()
        names = list(self.named)
        flags = torch.tensor([name in self._touched for name in names], dtype=torch.uint8, device=self._device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.ranks.routers)
        if self.pipeline is not None and TIED in names:  # read on the first stage, or by a prediction on the last
            table = flags[names.index(TIED)]
            dist.all_reduce(table, op=dist.ReduceOp.MAX, group=core.parallel_state.get_embedding_group())
        touched = dict(zip(names, flags.tolist(), strict=True))
        for name, share, _, _, _ in self._shares():
            if not touched[name]:
                share.grad = None
        norm = self.optimizer.get_grad_norm()
        for part in self.optimizer.chained_optimizers:
            core.clip_grad_by_total_norm_fp32(part.get_parameters(), most, norm)
        return torch.tensor(norm, device=self._device)

    def step(self, rate: float) -> None:
        """See `Engine`."""
        for group in self.optimizer.param_groups:
            group["lr"], group["weight_decay"] = rate, self.decay * group["wd_mult"]
        self.optimizer.step_with_ready_grads()

    def tensors(self) -> tuple[Tensors, Tensors]:
        """See `Engine`."""
        state: Tensors = {}
        steps = self._steps()
        trained = {name for name, step in steps.items() if step}
        for field in MOMENTS:
            parts = {name: self._moment(name, field) for name in trained}
            state |= {f"{name}/{field}": whole for name, whole in join_all(self.model, parts).items()}
        counted = join_all(self.model, {name: torch.full_like(self.named[name], steps[name]) for name in trained})
        state |= {f"{name}/step": whole.flatten()[0].clone() for name, whole in counted.items()}
        return gather(self.model), state

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """See `Engine`."""
        load_weights(Model(self.model.config), dict(weights), where="checkpoint")  # names and shapes
        scatter(self.model, weights)
        places: dict[str, Placement] = {place.local: place for place in placements(self.model)}
        for name, share, start, end, part in self._shares():
            place = places[name]
            part.optimizer.state.pop(share, None)
            if f"{place.canonical}/step" not in optimizer:
                continue
            state = {"step": optimizer[f"{place.canonical}/step"].clone()}
            for field in MOMENTS:
                whole = optimizer[f"{place.canonical}/{field}"].to(self._device)
                state[field] = place.cut(whole, self.named[name]).reshape(-1)[start:end].clone()
            part.optimizer.state[share] = state

    def all_layers(self, held: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """See `Engine`."""
        return {int(name): tensor for name, tensor in over_stages({str(n): t for n, t in held.items()}).items()}

    def whole(self) -> Model:
        """See `Engine`."""
        return whole_model(self.model, gather(self.model))

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _shares(self) -> Iterator[tuple[str, nn.Parameter, int, int, Any]]:
        """This rank's share of the optimizer: name of a weight, its elements from start to end, whose optimizer."""
        for part in self.optimizer.chained_optimizers:
            if part.is_stub_optimizer:
                continue
            for name, weight in self.named.items():
                if weight in part.model_param_group_index_map:
                    group, order = part.model_param_group_index_map[weight]
                    span = part._get_model_param_range_map(weight)["param"]
                    yield name, part.optimizer.param_groups[group]["params"][order], span.start, span.end, part

    def _steps(self) -> dict[str, float]:
        """How often the optimizer has moved each weight of this rank."""
        counts = dict.fromkeys(self.named, 0.0)
        for name, share, _, _, part in self._shares():
            counts[name] = float(part.optimizer.state.get(share, {}).get("step", 0.0))
        together = torch.tensor(list(counts.values()), device=self._device)
        dist.all_reduce(together, op=dist.ReduceOp.MAX, group=self.ranks.routers)
        return dict(zip(counts, together.tolist(), strict=True))

    def _moment(self, wanted: str, field: str) -> Tensor:
        """A moment of a weight, in its shape, from the ranks that each hold a share of it."""
        whole = torch.zeros_like(self.named[wanted])
        flat = whole.view(-1)
        for name, share, start, end, part in self._shares():
            if name == wanted and share in part.optimizer.state:
                flat[start:end] = part.optimizer.state[share][field]
        expert = not getattr(self.named[wanted], "allreduce", True)
        state = core.parallel_state
        group = state.get_expert_data_parallel_group() if expert else state.get_data_parallel_group(
            with_context_parallel=True
        )  # fmt: skip
        dist.all_reduce(whole, group=group)
        return whole
