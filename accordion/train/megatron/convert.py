"""Weights between their canonical form (that of the plain model, `model.safetensors`) and a rank's part of them.

Conversion only reshapes, permutes, cuts and joins: it is exact both ways, for weights and for anything that has
their shapes, such as the moments of an optimizer.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accordion.config.pretrain import ModelConfig
from accordion.model import Model
from accordion.train.megatron.library import parallel_state


@dataclass(frozen=True)
class Placement:
    """Where a canonical tensor lies in a model with a Megatron-Core backbone.

    Attributes:
        canonical, local: its name in the plain model, and in this one.
        view: the canonical tensor's shape, with the axis that is split, and any that moves, on its own.
        axis: of `view`, split over the ranks of `over`; None: each rank has all of it.
        over: tensor or expert.
        swapped: whether Megatron has the first two axes of `view` the other way round.
    """

    canonical: str
    local: str
    view: tuple[int, ...]
    axis: int | None = None
    over: str = ""
    swapped: bool = False

    @property
    def ranks(self) -> int:
        """Parts that the tensor is in."""
        return 1 if self.axis is None else int(_group(self.over).size())

    @property
    def rank(self) -> int:
        """Which of them this process has."""
        return 0 if self.axis is None else int(_group(self.over).rank())

    def cut(self, whole: Tensor, like: Tensor) -> Tensor:
        """This rank's part of a canonical tensor, in the shape of `like`."""
        block = whole.view(self.view)
        if self.axis is not None:
            block = block.chunk(self.ranks, self.axis)[self.rank]
        return self.part(block, like)

    def part(self, block: Tensor, like: Tensor) -> Tensor:
        """A rank's part as it lies in the model, in the shape of `like`, from the axes of `view`."""
        return (block.transpose(0, 1) if self.swapped else block).reshape(like.shape)

    def block(self, part: Tensor) -> Tensor:
        """The reverse: a rank's part, in the axes of `view`."""
        sizes = list(self.view)
        if self.axis is not None:
            sizes[self.axis] //= self.ranks
        if self.swapped:
            return part.view(sizes[1], sizes[0], *sizes[2:]).transpose(0, 1).contiguous()
        return part.reshape(sizes)

    def join(self, part: Tensor, shape: torch.Size) -> Tensor:
        """The canonical tensor, from the parts of all ranks (each calls this)."""
        block = self.block(part)
        if self.axis is not None and self.ranks > 1:
            blocks = [torch.empty_like(block) for _ in range(self.ranks)]
            torch.distributed.all_gather(blocks, block.contiguous(), group=_group(self.over))
            block = torch.cat(blocks, self.axis)
        return block.reshape(shape)


def _group(over: str) -> Any:
    if over == "tensor":
        return parallel_state.get_tensor_model_parallel_group()
    return parallel_state.get_expert_model_parallel_group()


def placements(model: Model) -> list[Placement]:
    """What this rank holds: its layers, and all of embeddings and heads (of those that its stage has)."""
    found = [place for position, layer in enumerate(model.layers.layers)
             for place in _layer(model.config, position, layer.layer_number - 1)]  # fmt: skip
    for name, tensor in model.state_dict().items():
        if not name.startswith("layers."):
            found.append(Placement(name, name, tuple(tensor.shape)))
    return found


def _layer(shape: ModelConfig, position: int, index: int) -> Iterator[Placement]:
    hidden, heads, inner, shared = shape.hidden, shape.heads, shape.expert_hidden, shape.shared_hidden
    width, experts = hidden // heads, shape.experts[index]
    ours, theirs = f"layers.{index}.", f"layers.layers.{position}."

    def at(canonical: str, local: str, *view: int, axis: int | None = None, over: str = "", swapped: bool = False):
        return Placement(ours + canonical, theirs + local, view, axis, over, swapped)

    yield at("norm_attention.weight", "input_layernorm.weight", hidden)
    yield at(
        "attention.qkv.weight", "self_attention.linear_qkv.weight", 3, heads, width, hidden,
        axis=1, over="tensor", swapped=True,
    )  # fmt: skip
    yield at("attention.out.weight", "self_attention.linear_proj.weight", hidden, hidden, axis=1, over="tensor")
    yield at("attention.norm_q.weight", "self_attention.q_layernorm.weight", width)
    yield at("attention.norm_k.weight", "self_attention.k_layernorm.weight", width)
    yield at("norm_moe.weight", "pre_mlp_layernorm.weight", hidden)
    yield at("moe.router", "mlp.router.weight", experts, hidden)
    yield at("moe.bias", "mlp.router.bias", experts)
    yield at("moe.expert_in", "mlp.experts.weight_in", experts, hidden, 2 * inner, axis=0, over="expert")
    yield at("moe.expert_out", "mlp.experts.weight_out", experts, inner, hidden, axis=0, over="expert")
    if shared:
        yield at(
            "moe.shared_in.weight", "mlp.shared_experts.linear_fc1.weight", 2, shared, hidden, axis=1, over="tensor"
        )
        yield at("moe.shared_out.weight", "mlp.shared_experts.linear_fc2.weight", hidden, shared, axis=1, over="tensor")


@torch.no_grad()
def scatter(model: Model, tensors: Mapping[str, Tensor]) -> None:
    """Fill this rank's part of `model` from canonical tensors, whose names and shapes have been checked."""
    own = model.state_dict()
    for place in placements(model):
        own[place.local].copy_(place.cut(tensors[place.canonical], own[place.local]))


@torch.no_grad()
def gather(model: Model) -> dict[str, Tensor]:
    """The canonical tensors of the whole model, on every rank (each calls this)."""
    own = model.state_dict()
    return join_all(model, {place.local: own[place.local] for place in placements(model)})


@torch.no_grad()
def join_all(model: Model, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Canonical name -> whole tensor, from each rank's parts by local name, of all or some of the weights."""
    shapes = canonical_shapes(model.config)
    return over_stages(
        {
            place.canonical: place.join(parts[place.local].detach(), shapes[place.canonical])
            for place in placements(model)
            if place.local in parts
        }
    )


def over_stages(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What all stages of the pipeline hold, in their order, on every rank (each calls this); the same is sent once."""
    group = parallel_state.get_pipeline_model_parallel_group()
    if group.size() == 1:
        return dict(held)
    kinds: list[Any] = [None] * group.size()
    torch.distributed.all_gather_object(
        kinds, {name: (tensor.shape, tensor.dtype) for name, tensor in held.items()}, group=group
    )
    whole: dict[str, Tensor] = {}
    device = torch.device(torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    for stage, names in enumerate(kinds):
        for name, (shape, dtype) in names.items():
            if name in whole:
                continue
            mine = stage == group.rank()
            whole[name] = held[name].contiguous() if mine else torch.empty(shape, dtype=dtype, device=device)
            torch.distributed.broadcast(whole[name], group=group, group_src=stage)
    return whole


def canonical_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Name -> shape of every tensor of the plain model."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in Model(config).state_dict().items()}
