"""Sub-models of an elastic model: what one keeps, and how the rows of a batch are sent through theirs.

Elasticity has three axes (arXiv 2602.04705, section 5 of our foundation-model design): layers kept (depth),
experts kept in each layer (width), experts a token uses (sparsity).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from accordion.config.pretrain import MemberSpec, ModelConfig
from accordion.errors import ConfigError
from accordion.model.understanding import understanding_parameters


@dataclass(frozen=True)
class SubmodelSpec:
    """What a sub-model keeps of the full model.

    Attributes:
        layers: indices of the kept layers, ascending; the first and the top `audio_levels` always stay.
        experts: for each kept layer, the kept experts, ascending.
        top_k: for each kept layer, the experts a token uses.
    """

    layers: tuple[int, ...]
    experts: tuple[tuple[int, ...], ...]
    top_k: tuple[int, ...]

    @classmethod
    def full(cls, config: ModelConfig) -> "SubmodelSpec":
        """Everything: every layer, every expert, the model's own top-k."""
        return cls(tuple(range(config.layers)), tuple(tuple(range(n)) for n in config.experts), config.top_k)

    @classmethod
    def nested(
        cls, config: ModelConfig, *, layers: int | None = None, experts: int | None = None, top_k: int | None = None
    ) -> "SubmodelSpec":
        """The member of the nested family with so many layers, experts a layer, and experts a token.

        A smaller member's layers and experts are always part of a larger member's: layers are kept in the order of
        `config.layer_order`, experts in that of `config.expert_order`. `None` keeps the full model's value; a layer
        that has fewer experts than asked for keeps all of them.

        Raises:
            ConfigError: more than the model has, or less than can stay.
        """
        kept = _nested_layers(config, config.layers if layers is None else layers)
        for name, asked, held in (("experts", experts, config.experts), ("top_k", top_k, config.top_k)):
            if asked is not None and not 1 <= asked <= max(held):
                raise ConfigError(f"sub-model: {name} {asked}; wants 1 to {max(held)} of this model")
        widths = [config.experts[layer] if experts is None else experts for layer in kept]
        spec = cls(
            kept,
            tuple(
                tuple(sorted(expert_order(config, layer)[:width])) for layer, width in zip(kept, widths, strict=True)
            ),
            tuple(config.top_k[layer] if top_k is None else min(top_k, config.top_k[layer]) for layer in kept),
        )
        spec.check(config)
        return spec

    @classmethod
    def of(cls, config: ModelConfig, member: MemberSpec) -> "SubmodelSpec":
        """The `nested` sub-model that a named member of the family is."""
        return cls.nested(config, layers=member.layers, experts=member.experts, top_k=member.top_k)

    def check(self, config: ModelConfig) -> None:
        """Refuse a spec that `config`'s model cannot run.

        Raises:
            ConfigError: names the field and what it may be.
        """
        if len(self.experts) != len(self.layers) or len(self.top_k) != len(self.layers):
            raise ConfigError("sub-model: experts and top_k need one entry for each kept layer")
        if list(self.layers) != sorted(set(self.layers)) or not set(self.layers) <= set(range(config.layers)):
            raise ConfigError(f"sub-model: layers {self.layers}; wants ascending indices below {config.layers}")
        if missing := set(fixed_layers(config)) - set(self.layers):
            raise ConfigError(
                f"sub-model: layers {sorted(missing)} are missing; the first layer and the top "
                f"{config.audio_levels} (next-codec prediction) always stay"
            )
        for layer, experts, top_k in zip(self.layers, self.experts, self.top_k, strict=True):
            if list(experts) != sorted(set(experts)) or not set(experts) <= set(range(config.experts[layer])):
                raise ConfigError(
                    f"sub-model: experts {experts} of layer {layer}; wants ascending indices below "
                    f"{config.experts[layer]}"
                )
            if config.isolated and len(experts) < config.experts[layer]:
                raise ConfigError(f"sub-model: layer {layer} keeps {len(experts)} experts; isolated ones stay whole")
            if not 1 <= top_k <= len(experts):
                raise ConfigError(f"sub-model: top_k {top_k} of layer {layer}; wants 1 to {len(experts)}, its experts")

    def config(self, full: ModelConfig) -> ModelConfig:
        """The config of the plain model that this sub-model of `full` is."""
        self.check(full)
        order = None
        if full.expert_order is not None:
            order = tuple(
                tuple(kept.index(expert) for expert in full.expert_order[layer] if expert in kept)
                for layer, kept in zip(self.layers, self.experts, strict=True)
            )
        sizes = {"experts": tuple(len(kept) for kept in self.experts), "top_k": self.top_k, "expert_order": order}
        return full.model_copy(update=sizes)


def fixed_layers(config: ModelConfig) -> tuple[int, ...]:
    """The layers that every member keeps: the first, and the top ones that predict audio codes."""
    return tuple(sorted({0, *range(config.layers - config.audio_levels, config.layers)}))


def _nested_layers(config: ModelConfig, keep: int) -> tuple[int, ...]:
    fixed = fixed_layers(config)
    if not len(fixed) <= keep <= config.layers:
        raise ConfigError(f"sub-model: layers {keep}; wants {len(fixed)} to {config.layers} of this model")
    free = [layer for layer in range(config.layers) if layer not in fixed]
    order = _evenly(fixed, free) if config.layer_order == "even" else _outermost(free)
    return tuple(sorted((*fixed, *order[: keep - len(fixed)])))


def _outermost(free: list[int]) -> list[int]:
    centre = sum(free) / len(free) if free else 0.0
    return sorted(free, key=lambda layer: (-abs(layer - centre), layer))


def _evenly(fixed: Sequence[int], free: list[int]) -> list[int]:
    """The free layers, each next one as far as can be from all that stand before it."""
    order: list[int] = []
    left = list(free)
    while left:
        best = max(left, key=lambda layer: (min(abs(layer - other) for other in (*fixed, *order)), -layer))
        order.append(best)
        left.remove(best)
    return order


def expert_order(config: ModelConfig, layer: int) -> tuple[int, ...]:
    """The experts of a layer, those that narrow members keep first."""
    return tuple(range(config.experts[layer])) if config.expert_order is None else config.expert_order[layer]


def parameter_counts(config: ModelConfig) -> tuple[int, int]:
    """Parameters of a model, and those active for one token (top-k and shared experts only)."""
    hidden = config.hidden
    expert = 3 * hidden * config.expert_hidden
    layer = 4 * hidden**2 + 2 * hidden // config.heads + 2 * hidden + 3 * hidden * config.shared_hidden
    levels, codes = config.audio_levels, config.audio_codebook + 1
    rest = (
        config.text_vocabulary * hidden * 2  # embedding and head
        + (config.bits + len(config.scales) + 1) * hidden  # vision input, scales, start
        + (2 * levels + levels - 1) * codes * hidden  # audio inputs, heads, codes handed down the top layers
        + levels * hidden  # norms of the audio heads
        + (hidden + 1) * config.bits  # vision head
        + 2 * hidden**2 + 3 * hidden  # multi-token prediction
        + hidden  # final norm
        + understanding_parameters(config)
        + config.voice_size * hidden  # voices
    )  # fmt: skip
    routers = sum(experts * hidden for experts in config.experts)
    total = rest + config.layers * layer + routers + sum(experts * expert for experts in config.experts)
    active = rest + config.layers * layer + routers + sum(top_k * expert for top_k in config.top_k)
    return total, active


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """How one layer treats the rows of a batch; layers that treat them alike share one plan.

    Attributes:
        rows: (R,) indices of the rows that pass through the layer; None: all.
        eligible: (R, E) bool, experts each of those rows may use; None: all.
        top_k: (R,) experts a token of each row uses; None: the layer's own.
        slots: the most experts that a token of any row uses; None: the layer's own top-k.
    """

    rows: Tensor | None
    eligible: Tensor | None
    top_k: Tensor | None
    slots: int | None = None


EVERYTHING = LayerPlan(None, None, None)


def plan_layers(
    config: ModelConfig, specs: Sequence[SubmodelSpec] | None, rows: int, anyway: frozenset[int] = frozenset()
) -> list[LayerPlan | None]:
    """For each layer its plan, or None where no row passes through it.

    Args:
        specs: one for each of the `rows` rows of the batch; None: every row runs the full model.
        anyway: layers that are run for no row rather than left out, since another process waits for this one there.
    """
    if specs is None:
        return [EVERYTHING] * config.layers
    if len(specs) != rows:
        raise ValueError(f"{len(specs)} sub-models for {rows} rows; wants one for each row")
    distinct = list(dict.fromkeys(specs))
    for spec in distinct:
        spec.check(config)
    number = {spec: index for index, spec in enumerate(distinct)}
    of_row = [number[spec] for spec in specs]
    plans: dict[tuple[object, ...], LayerPlan] = {}
    found: list[LayerPlan | None] = []
    for layer in range(config.layers):
        kept = [_kept(spec, layer) for spec in distinct]
        if layer not in anyway and all(part is None for part in kept):
            found.append(None)
            continue
        key = (config.experts[layer], config.top_k[layer], *kept)
        if key not in plans:
            plans[key] = _plan_layer(config.experts[layer], config.top_k[layer], [kept[index] for index in of_row])
        found.append(plans[key])
    return found


def _kept(spec: SubmodelSpec, layer: int) -> tuple[tuple[int, ...], int] | None:
    """The experts and top-k of a layer; None where the sub-model leaves it out."""
    if layer not in spec.layers:
        return None
    at = spec.layers.index(layer)
    return spec.experts[at], spec.top_k[at]


def _plan_layer(experts: int, own: int, kept: Sequence[tuple[tuple[int, ...], int] | None]) -> LayerPlan:
    here = [(row, part) for row, part in enumerate(kept) if part is not None]
    eligible = None
    if any(len(chosen) < experts for _, (chosen, _) in here):
        eligible = torch.zeros(len(here), experts, dtype=torch.bool)
        for index, (_, (chosen, _)) in enumerate(here):
            eligible[index, list(chosen)] = True
    top_k = [count for _, (_, count) in here]
    same = all(count == own for count in top_k)
    return LayerPlan(
        rows=None if len(here) == len(kept) else torch.tensor([row for row, _ in here], dtype=torch.int64),
        eligible=eligible,
        top_k=None if same else torch.tensor(top_k),
        slots=None if same else max(top_k),
    )
