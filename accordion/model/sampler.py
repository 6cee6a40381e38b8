"""Which sub-model each training instance draws (elastic training, foundation model, section 5)."""

import torch

from accordion.config.pretrain import ElasticConfig, ModelConfig
from accordion.model.elastic import SubmodelSpec


class ElasticSampler:
    """Draws one nested sub-model for each row of a batch.

    With `full_share` a row trains the full model, otherwise depth, width and top-k are drawn independently
    and evenly from their choices. The first `warmup_share` of the steps trains the full model only.

    Attributes:
        generator: the only source of chance; its state is saved with the checkpoint.
    """

    def __init__(self, model: ModelConfig, elastic: ElasticConfig, *, steps: int, seed: int) -> None:
        self.elastic = elastic
        self.warmup = round(steps * elastic.warmup_share) if elastic.enabled else steps
        self.full = SubmodelSpec.full(model)
        self.generator = torch.Generator().manual_seed(seed)
        self.specs = {
            (layers, experts, top_k): SubmodelSpec.nested(model, layers=layers, experts=experts, top_k=top_k)
            for layers in elastic.layers
            for experts in elastic.experts
            for top_k in elastic.top_k
        } if elastic.enabled else {}  # fmt: skip

    def draw(self, step: int, rows: int) -> list[SubmodelSpec] | None:
        """A spec for each row of the batch of `step` (from 0); None: all rows in full."""
        if step < self.warmup:
            return None
        return [self._draw_one() for _ in range(rows)]

    def _draw_one(self) -> SubmodelSpec:
        if float(torch.rand((), generator=self.generator)) < self.elastic.full_share:
            return self.full
        layers, experts, top_k = (
            self._pick(c) for c in (self.elastic.layers, self.elastic.experts, self.elastic.top_k)
        )
        return self.specs[layers, experts, top_k]

    def _pick(self, choices: tuple[int, ...]) -> int:
        return choices[int(torch.randint(len(choices), (), generator=self.generator))]
