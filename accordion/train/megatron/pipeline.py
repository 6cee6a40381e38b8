"""The stages of a pipeline: which parts of the model each holds, and how a batch goes through them and back.

The schedule is that of GPipe (arXiv 1811.06965): a batch is cut into microbatches, all of them go forward, then all go
back. What is minimised weighs each modality by its loss over the whole batch (`PosteriorScale`), so no microbatch's
gradient is known before the last one has been read. Megatron-Core's own schedules send a microbatch back as soon as it
is through, with a loss of its own; its exchange between stages and its backward step serve here as they are.

Legend: S' a rank's positions, B rows of a microbatch with those of its twins, H hidden.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from accordion.data.batch import Batch
from accordion.model import Losses, Model
from accordion.model.losses import MODALITIES
from accordion.model.model import Passage
from accordion.model.sampler import Draw
from accordion.train.megatron import library as core
from accordion.train.ranks import Ranks

TIED = "embeddings.text.weight"  # on the first stage for what is read, on the last for multi-token prediction
WEIGHED = {name: f"weighed {name}" for name in MODALITIES}  # what `Losses.weighed` is called beside `sums`


class Stage(nn.Module):
    """This process's part of a model behind one call, as Megatron's wrapper and gradient sums want to find it.

    The first stage has the embeddings, the last one norm and heads; what a stage has not is taken out of the model,
    which is not called itself. The text table is on both ends, and its gradient is summed over them.
    """

    share_embeddings_and_output_weights = True

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.pre_process, self.post_process = model.layers.pre_process, model.layers.post_process
        if not self.pre_process:
            _strip(model.embeddings, keep=("text",) if self.post_process else ())
        if not self.post_process:
            _strip(model.norm)
            _strip(model.heads)
        if self.pre_process or self.post_process:
            table = self.shared_embedding_or_output_weight()
            table.shared_embedding = True  # type: ignore[attr-defined]  # in a bucket of its own, cut alike on both
            table.shared = not self.pre_process  # type: ignore[attr-defined]  # once in the norm of the gradient

    def shared_embedding_or_output_weight(self) -> Tensor:
        """The text table; Megatron asks the stages at the ends for it."""
        return self.model.embeddings.text.weight

    def forward(self, passage: Passage, received: Tensor | None, scale_weight: float) -> Tensor | Losses:
        """States (S', B, H) for the next stage, from those of the stage before; or the losses, on the last."""
        states = self.model.embeddings(passage.batch) if received is None else received
        states, audio = self.model.carry(passage, states)
        return self.model.losses(passage, states, audio, scale_weight) if self.post_process else states


def _strip(module: nn.Module, keep: tuple[str, ...] = ()) -> None:
    for name in [*module._parameters, *module._modules]:
        if name not in keep:
            delattr(module, name)


@dataclass(frozen=True, eq=False)
class _Micro:
    """A microbatch that has been forward: what the stage got, and what it made of it."""

    received: Tensor | None
    made: Any
    shape: tuple[int, int, int]


class Pipeline:
    """Sends batches through the stages; the same calls are made on every stage, in the same order.

    Args:
        stage: this process's part.
        run: `stage`, wrapped for the reduction of gradients.
        config: Megatron's.
        microbatches: parts in which the rows of a process go through; no more than there are rows.
    """

    def __init__(self, stage: Stage, run: Callable[..., Any], config: Any, microbatches: int, ranks: Ranks) -> None:
        self.stage, self.run, self.config, self.microbatches, self.ranks = stage, run, config, microbatches, ranks
        self.exchange = core.P2PCommunicator(ranks.stages, config)
        self._open: list[_Micro] = []
        self._totals: dict[str, Tensor] = {}

    def losses(self, batch: Batch, draw: Draw, hidden: Tensor | None, scale_weight: float) -> Losses:
        """See `Engine.losses`: those of all microbatches together, the same numbers on every stage."""
        model, rows, readers = self.stage.model, len(batch), self.ranks.count
        self._open, counts = [], dict.fromkeys((*MODALITIES, "mtp"), 0)
        for part in torch.arange(rows).tensor_split(min(self.microbatches, rows)):
            first, last = int(part[0]), int(part[-1]) + 1
            every = [reader * rows + row for reader in range(readers) for row in range(first, last)]
            own = draw.select(every).part(self.ranks.part(last - first))
            passage = model.prepare(
                batch.select(slice(first, last)), own, None if hidden is None else hidden[first:last]
            )
            self._open.append(self._forward(passage, scale_weight))
            for name, count in passage.targets.counts.items():
                counts[name] += count
        return self._together(counts)

    def backward(self, total: Tensor) -> None:
        """See `Engine.backward`: the microbatch that was sent last comes back first."""
        total.backward()
        last = self.stage.post_process
        weights = {name: leaf.grad for name, leaf in self._totals.items() if leaf.grad is not None}
        for micro in reversed(self._open):
            made, gradient = micro.made, self.exchange.recv_backward(micro.shape, last)
            if last:
                made = torch.stack([weight * micro.made[name] for name, weight in weights.items()]).sum()
            gradient = core.backward_step(micro.received, made, gradient, None, self.config)
            self.exchange.send_backward(gradient, self.stage.pre_process)
        self._open = []

    def _forward(self, passage: Passage, scale_weight: float) -> _Micro:
        shape = self.stage.model.layers.state_shape(*passage.batch.modality.shape)
        received = self.exchange.recv_forward(shape, self.stage.pre_process)
        made = self.run(passage, received, scale_weight)
        self.exchange.send_forward(made, self.stage.post_process)
        if self.stage.post_process:
            made = made.sums | {WEIGHED[name]: value for name, value in made.weighed.items()}
        return _Micro(received, made, shape)

    def _together(self, counts: dict[str, int]) -> Losses:
        """Sum each loss over the microbatches and broadcast it from the last stage. The sums are leaves: after
        `total.backward()` their gradients weigh each microbatch's losses."""
        names = [*counts, *WEIGHED.values()]
        device = next(self.stage.parameters()).device
        values = torch.zeros(len(names), device=device)
        if self.stage.post_process:
            values = torch.stack(
                [torch.stack([micro.made[name].detach() for micro in self._open]).sum() for name in names]
            )
        dist.broadcast(values, group=self.ranks.stages, group_src=dist.get_world_size(self.ranks.stages) - 1)
        self._totals = {name: value.clone().requires_grad_() for name, value in zip(names, values, strict=True)}
        weighed = {name: self._totals[key] for name, key in WEIGHED.items()}
        return Losses({name: self._totals[name] for name in counts}, counts, weighed)
