"""Which sub-model each training instance draws (elastic training, foundation model, section 5)."""

import math
from dataclasses import dataclass

import torch

from accordion.config.pretrain import ElasticConfig, ModelConfig
from accordion.errors import ConfigError
from accordion.model.elastic import SubmodelSpec


@dataclass(frozen=True)
class Draw:
    """What the rows of one batch run.

    Attributes:
        specs: for each row its sub-model; None: all rows in full.
        twins: rows, ascending, that run in full as well and learn from those predictions.
        weight: of those predictions against the data, in the loss of these rows.
        anyway: layers that are run even where none of these rows keeps them, since rows of another process do.
    """

    specs: list[SubmodelSpec] | None = None
    twins: tuple[int, ...] = ()
    weight: float = 0.0
    anyway: frozenset[int] = frozenset()

    def select(self, rows: list[int]) -> "Draw":
        """What these rows, ascending, of the whole batch run: a whole batch of their own."""
        if self.specs is None:
            return self
        twins = tuple(place for place, row in enumerate(rows) if row in self.twins)
        return Draw([self.specs[row] for row in rows], twins, self.weight)

    def part(self, rows: slice) -> "Draw":
        """What these rows of the batch run, where the other rows are another process's."""
        if self.specs is None:
            return self
        every = range(self.specs[0].layers[-1] + 1)  # the top layer always stays
        kept = every if self.twins else {layer for spec in self.specs for layer in spec.layers}
        twins = tuple(twin - rows.start for twin in self.twins if rows.start <= twin < rows.stop)
        return Draw(self.specs[rows], twins, self.weight, frozenset(kept))


class ElasticSampler:
    """Draws one sub-model for each row of a batch.

    With `full_share` a row trains the full model, otherwise depth, width and top-k are drawn from their choices, as
    `axes` and `smallest_share` say. The first `grow_share` of the steps trains the smallest
    sub-model only, the next `warmup_share` the full model only.

    Args:
        steps: of the whole run.
        seed: of the generator, unless one is given.

    Attributes:
        generator: the only source of chance; its state is saved with the checkpoint.
        growth: steps, the first ones, that train the smallest sub-model only.
        warmup: steps before sub-models are drawn: those, then the full model alone.
    """

    def __init__(self, model: ModelConfig, elastic: ElasticConfig, *, steps: int, seed: int) -> None:
        self.elastic, self.steps = elastic, steps
        self.growth = round(steps * elastic.grow_share) if elastic.enabled else 0
        self.warmup = self.growth + round(steps * elastic.warmup_share) if elastic.enabled else steps
        if elastic.enabled and elastic.subsets == "ranked" and not self.warmup:
            raise ConfigError(
                f"elastic.warmup_share: {elastic.warmup_share} of {steps} steps is no step; "
                "ranked experts need at least one, in which they are ranked"
            )
        self.generator = torch.Generator().manual_seed(seed)
        self.set_model(model)

    def set_model(self, model: ModelConfig) -> None:
        """Draw sub-models of `model` from now on (its experts may have been ranked)."""
        elastic = self.elastic
        self.model = model
        self.full = SubmodelSpec.full(model)
        self.specs: dict[tuple[int, ...], SubmodelSpec] = {
            (layers, experts, top_k): SubmodelSpec.nested(model, layers=layers, experts=experts, top_k=top_k)
            for layers in elastic.layers
            for experts in elastic.experts
            for top_k in elastic.top_k
        } if elastic.enabled else {}  # fmt: skip

    @property
    def smallest(self) -> SubmodelSpec:
        """The sub-model that takes the least of every axis."""
        elastic = self.elastic
        return self.specs[min(elastic.layers), min(elastic.experts), min(elastic.top_k)]

    def draw(self, step: int, rows: int) -> Draw:
        """What the rows of the batch of `step` (from 0) run."""
        if self.elastic.enabled and step < self.growth:
            return Draw([self.smallest] * rows)
        if not self.elastic.enabled or step < self.warmup:
            return Draw()
        elastic = self.elastic
        specs = [self._draw_one(step - self.warmup) for _ in range(rows)]
        reduced = [row for row, spec in enumerate(specs) if spec != self.full]
        if elastic.distil_share in (0.0, 1.0):
            twins = reduced if elastic.distil_share else []
        else:
            twins = [row for row in reduced if self._uniform() < elastic.distil_share]
        return Draw(specs, tuple(twins), elastic.distil_weight)

    def _draw_one(self, step: int) -> SubmodelSpec:
        elastic = self.elastic
        reduced_share = (1 - elastic.full_share) * self._progress(step, elastic.ramp_share)
        if self._uniform() < 1 - reduced_share:
            return self.full
        open_share = self._progress(step, elastic.shrink_share)
        spec = self.specs[self._size(open_share)]
        if elastic.subsets == "random":
            spec = SubmodelSpec(spec.layers, self._random_experts(spec), spec.top_k)
        if elastic.top_k_by_layer:
            spec = SubmodelSpec(spec.layers, spec.experts, self._top_k_by_layer(spec, open_share))
        return spec

    def _size(self, open_share: float) -> tuple[int, ...]:
        """Layers, experts a layer and experts a token of one reduced instance."""
        elastic = self.elastic
        axes = (elastic.layers, elastic.experts, elastic.top_k)
        if elastic.smallest_share and self._uniform() < elastic.smallest_share:
            return tuple(min(self._open(choices, open_share)) for choices in axes)
        if elastic.axes == "each":
            return tuple(self._pick(choices, open_share) for choices in axes)
        chosen = int(torch.randint(len(axes), (), generator=self.generator))
        below = [tuple(choice for choice in choices if choice < max(choices)) or choices for choices in axes]
        return tuple(
            self._pick(below[axis], open_share) if axis == chosen else max(choices) for axis, choices in enumerate(axes)
        )

    def _random_experts(self, spec: SubmodelSpec) -> tuple[tuple[int, ...], ...]:
        """For each kept layer as many experts as `spec` keeps, any of them."""
        chosen = []
        for layer, kept in zip(spec.layers, spec.experts, strict=True):
            count = self.model.experts[layer]
            drawn = kept
            if len(kept) < count:
                drawn = tuple(sorted(torch.randperm(count, generator=self.generator)[: len(kept)].tolist()))
            chosen.append(drawn)
        return tuple(chosen)

    def _top_k_by_layer(self, spec: SubmodelSpec, open_share: float) -> tuple[int, ...]:
        return tuple(
            min(self._pick(self.elastic.top_k, open_share), self.model.top_k[layer], len(kept))
            for layer, kept in zip(spec.layers, spec.experts, strict=True)
        )

    def _progress(self, step: int, share: float) -> float:
        """0 to 1 over `share` of all steps; `step` counts from the end of the warm-up."""
        return min(1.0, (step + 1) / max(1.0, self.steps * share))

    def _uniform(self) -> float:
        return float(torch.rand((), generator=self.generator))

    def _pick(self, choices: tuple[int, ...], open_share: float = 1.0) -> int:
        """One of the choices, evenly."""
        found = self._open(choices, open_share)
        return found[int(torch.randint(len(found), (), generator=self.generator))]

    @staticmethod
    def _open(choices: tuple[int, ...], open_share: float) -> tuple[int, ...]:
        """The choices; the smallest are among them only when `open_share` has come to 1."""
        if open_share == 1:
            return choices
        return tuple(sorted(choices, reverse=True))[: 1 + math.floor((len(choices) - 1) * open_share)]
