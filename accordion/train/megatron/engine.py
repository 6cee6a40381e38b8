"""Training with Megatron-Core: its gradient buffers, and AdamW split over the ranks that hold the same weights."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from accordion.config.pretrain import ModelConfig, PretrainConfig
from accordion.data.batch import Batch
from accordion.model import Losses, Model
from accordion.model.files import load_weights, read_tensors
from accordion.model.sampler import Draw
from accordion.train.checkpoint import MOMENTS, refuse_broken
from accordion.train.engine import Engine, Shell, Tensors, decays, whole_model
from accordion.train.megatron import library as core
from accordion.train.megatron.backbone import MegatronBackbone, transformer_config
from accordion.train.megatron.checkpoint import load_distributed, save_distributed
from accordion.train.megatron.convert import gather, join_all, over_stages, placements, scatter
from accordion.train.megatron.pipeline import TIED, Pipeline, Stage
from accordion.train.parts import STEPS, WEIGHTS
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
        self._places = {place.local: place for place in placements(self.model)}
        for place in self._places.values():
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
        counts = self._counts()
        state = {f"{name}/step": count for name, count in counts.items()}
        for field in MOMENTS:
            parts = {name: self._moment(name, field) for name in self._counted(counts)}
            state |= {f"{name}/{field}": whole for name, whole in join_all(self.model, parts).items()}
        return gather(self.model), state

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """See `Engine`."""
        load_weights(Model(self.model.config), dict(weights), where="checkpoint")  # names and shapes
        scatter(self.model, weights)
        counts = {key.removesuffix("/step"): count for key, count in optimizer.items() if key.endswith("/step")}
        self._count(counts)
        for field in MOMENTS:
            parts = {}
            for name, canonical in self._counted(counts).items():
                whole = optimizer[f"{canonical}/{field}"].to(self._device)
                parts[name] = self._places[name].cut(whole, self.named[name])
            self._set_moment(field, parts)

    def save_parts(self, folder: Path, step: int) -> None:
        """See `Engine`. One moment at a time is put together, of what this rank has of the model."""
        refuse_broken(step, self.ranks.joined(self._broken()))
        counts, weights = self._counts(), self.model.state_dict()
        if self.ranks.leader:
            for name in (WEIGHTS, *MOMENTS):
                (folder / name).mkdir()
            save_file(counts, folder / STEPS)
        self.ranks.wait()
        save_distributed(self.model, {name: weights[name] for name in self._places}, folder / WEIGHTS)
        for field in MOMENTS:
            parts = {name: self._moment(name, field) for name in self._counted(counts)}
            save_distributed(self.model, parts, folder / field)

    @torch.no_grad()
    def load_parts(self, folder: Path) -> None:
        """See `Engine`."""
        counts, weights = read_tensors(folder / STEPS), self.model.state_dict()
        load_distributed(self.model, {name: weights[name] for name in self._places}, folder / WEIGHTS)
        self._count(counts)
        for field in MOMENTS:
            parts = {name: torch.empty_like(self.named[name]) for name in self._counted(counts)}
            load_distributed(self.model, parts, folder / field)
            self._set_moment(field, parts)

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

    def _broken(self) -> list[str]:
        """What this rank holds of weights and moments that is not finite."""
        weights = self.model.state_dict()
        held = [(f"model {place.canonical}", weights[name]) for name, place in self._places.items()]
        for name, share, _, _, part in self._shares():
            state = part.optimizer.state.get(share, {})
            held += [(f"optimizer {self._places[name].canonical}/{field}", tensor) for field, tensor in state.items()]
        return [name for name, tensor in held if not bool(torch.isfinite(tensor).all())]

    def _counts(self) -> Tensors:
        """Canonical name -> how often the optimizer has moved that weight, of all that it has; the same on every rank,
        and each calls it."""
        steps = {name: step for name, step in self._steps().items() if step}
        return over_stages(
            {self._places[name].canonical: torch.tensor(step, device=self._device) for name, step in steps.items()}
        )

    def _counted(self, counts: Mapping[str, Tensor]) -> dict[str, str]:
        """Of the weights of this rank those in `counts`, in the order that every rank with the same ones has; to
        their canonical names."""
        names = {name: self._places[name].canonical for name in self.named}
        return {name: canonical for name, canonical in names.items() if canonical in counts}

    def _count(self, counts: Mapping[str, Tensor]) -> None:
        """Begin the state of the optimizer anew, with so many steps behind each weight."""
        for name, share, _, _, part in self._shares():
            part.optimizer.state.pop(share, None)
            if self._places[name].canonical in counts:  # a count of its own: AdamW adds to it in place
                part.optimizer.state[share] = {"step": counts[self._places[name].canonical].clone()}

    def _set_moment(self, field: str, parts: Mapping[str, Tensor]) -> None:
        """Keep this rank's share of a moment of its weights."""
        for name, share, start, end, part in self._shares():
            if name in parts:
                part.optimizer.state[share][field] = parts[name].reshape(-1)[start:end].clone()

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
