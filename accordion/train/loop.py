"""The training loop: one elastic step, its guard against divergence, and the state that a resume restores."""

import json
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from accordion.config.pretrain import ModelConfig, PretrainConfig
from accordion.data.batch import Batch
from accordion.errors import ConfigError, TrainingDiverged
from accordion.model import Model
from accordion.model.files import load_weights
from accordion.model.flops import RowCounts, row_counts, training_flops
from accordion.model.importance import importance_order, measure_importance
from accordion.model.losses import MODALITIES
from accordion.model.sampler import Draw, ElasticSampler
from accordion.train.checkpoint import Snapshot
from accordion.train.corruption import corrupt_codes, flip_bits
from accordion.train.schedule import Conditions, conditions

if TYPE_CHECKING:  # a trainer takes any endless batches with a position
    from accordion.data.loader import ShardLoader

TIMES = ("seconds", "waited")  # of a snapshot's facts: how long it took, not what it did
ELASTIC_SEED, HISTORY_SEED, NOISE_SEED = 1, 2, 3  # added to the run's seed: a stream of its own for each generator


class PosteriorScale:
    """Brings the modalities' losses to one interval: each is divided by its own running mean (stop-gradient).

    arXiv 2602.04705 calls it posterior-based rescaling and gives no formula; this one is ours. The means stay on
    the device of the losses, so that no step waits for them.
    """

    def __init__(self, memory: float) -> None:
        self.memory = memory
        self._means: dict[str, Tensor] = {}

    @property
    def running(self) -> dict[str, float]:
        """modality -> exponential moving average of its loss, nats."""
        return {name: float(mean) for name, mean in self._means.items()}

    def copy(self) -> "PosteriorScale":
        """The same means, to return to."""
        other = PosteriorScale(self.memory)
        other._means = dict(self._means)
        return other

    def restore(self, running: Mapping[str, float], device: torch.device | str = "cpu") -> None:
        """Go on from running means taken earlier."""
        self._means = {name: torch.tensor(mean, dtype=torch.float64, device=device) for name, mean in running.items()}

    def total(self, means: dict[str, Tensor], mtp_weight: float) -> Tensor:
        """The loss to minimise, about 1: the mean over modalities of loss / running loss.

        Multi-token prediction is part of text: text + mtp_weight * mtp, over text's running loss.
        """
        terms = []
        for name in MODALITIES:
            if name not in means:
                continue
            now = means[name].detach().double()
            self._means[name] = self.memory * self._means.get(name, now) + (1 - self.memory) * now
            loss = means[name]
            if name == "text" and "mtp" in means:
                loss = loss + mtp_weight * means["mtp"]
            terms.append(loss / self._means[name].to(loss.dtype))
        return torch.stack(terms).mean()


class Trainer:
    """A model in training, with everything that determines its next step.

    Args:
        config: settings of the run.
        shape: the model to build.
        loader: endless training batches.
        long: the same of long sequences, for stage 2; None where there is none.
        device: where the model is and its steps are computed; chance is drawn on the CPU on every device.
    """

    def __init__(
        self,
        config: PretrainConfig,
        shape: ModelConfig,
        loader: "ShardLoader",
        device: torch.device | str = "cpu",
        *,
        long: "ShardLoader | None" = None,
    ) -> None:
        self.config, self.device = config, torch.device(device)
        self._loader, self._long = loader, long
        if config.long_context.share and long is None:
            raise ConfigError(
                f"pretrain.long_context.share: {config.long_context.share}, but there are no long sequences; "
                "set pack.long_sequence, or the share to 0"
            )
        self.model = Model(shape, seed=config.seed).train().to(self.device)
        self.optimizer = build_optimizer(self.model, config)
        self.scale = PosteriorScale(config.loss_memory)
        self.sampler = ElasticSampler(shape, config.elastic, steps=config.steps, seed=config.seed + ELASTIC_SEED)
        self.history = torch.Generator().manual_seed(config.seed + HISTORY_SEED)
        self.noise = torch.Generator().manual_seed(config.seed + NOISE_SEED)
        self.done = 0  # steps
        self.tokens = 0  # positions read, without padding
        self.flops = 0  # floating-point operations of the products, forward and backward
        self.seconds = 0.0
        self.waited = 0.0  # seconds of them for the next batch
        self.curves: list[str] = []

    def step(self) -> dict[str, float]:
        """Train on one batch and return the figures of the step.

        Raises:
            TrainingDiverged: a loss or gradient is not finite; weights and optimizer are as before the step.
        """
        now, start = conditions(self.config, self.done), time.monotonic()
        self._read_as(now)
        position = self.loader.position
        given = next(self.loader)
        waited = time.monotonic() - start
        batch = self._corrupted(given).to(self.device)
        self._rank_experts()
        draw = self.draw(len(batch))
        with precision(self.config, self.device):
            losses = self.model(
                batch, draw, history_dropout=self.config.history_dropout, generator=self.history,
                scale_weight=self.config.scale_weight,
            )  # fmt: skip
        means, before = losses.means, self.scale.copy()
        total = self.scale.total(losses.aims, now.mtp_weight)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip)
        counts = row_counts(batch)
        figures, rows = _read(
            {**{f"loss/{name}": mean for name, mean in means.items()}, "loss/total": total, "norm": norm}, counts
        )
        norm_value = figures.pop("norm")
        if not (math.isfinite(figures["loss/total"]) and math.isfinite(norm_value)):
            self.scale = before
            self.optimizer.zero_grad(set_to_none=True)
            what = "gradient" if math.isfinite(figures["loss/total"]) else "loss"
            raise self._diverged(what, {**figures, "gradient norm": norm_value}, batch, position)
        for group in self.optimizer.param_groups:
            group["lr"] = now.rate
        self.optimizer.step()
        self.model.balance(now.balance_step)
        self.done += 1
        self.tokens += sum(row.live for row in rows)
        self.flops += training_flops(self.model.config, draw, rows, batch.modality.shape[1])
        self.seconds += time.monotonic() - start
        self.waited += waited
        figures |= {"learning_rate": now.rate, "gradient_norm": norm_value}
        self.curves.append(json.dumps({"step": self.done, **figures}))
        return figures

    @property
    def loader(self) -> "ShardLoader":
        """Where the batches of the present stage come from."""
        if self._long is not None and self.done >= self.config.first_steps:
            return self._long
        return self._loader

    def _read_as(self, now: Conditions) -> None:
        """Make the next batch as large as the schedule asks; long sequences are fewer, for as many positions."""
        if self.config.batch_ramp and not now.long:
            self._loader.resize(now.batch)

    def _corrupted(self, batch: Batch) -> Batch:
        """The batch as it is read in training: with mistakes in its history, and targets that mend them."""
        shape = self.model.config
        noisy = corrupt_codes(batch, self.config.code_noise, shape, self.noise)
        return flip_bits(noisy, self.config.bit_flips, shape, self.noise)

    def draw(self, rows: int) -> Draw:
        """What the rows of the next batch run."""
        return self.sampler.draw(self.done, rows)

    def _rank_experts(self) -> None:
        """Measure the gate mass of every expert during the warm-up of a ranked run; rank them at its end."""
        elastic = self.config.elastic
        if not (elastic.enabled and elastic.subsets == "ranked"):
            return
        measure_importance(self.model, self.done < self.sampler.warmup)
        if self.done == self.sampler.warmup:
            self.model.set_expert_order(importance_order(self.model))
            self.sampler.set_model(self.model.config)

    def _generators(self) -> dict[str, torch.Generator]:
        return {"elastic": self.sampler.generator, "history": self.history, "noise": self.noise}

    def _diverged(self, what: str, values: dict[str, float], batch: Batch, position: int) -> TrainingDiverged:
        """The error that names the step, the figures, and the sequences whose loss alone is not finite."""
        sequences = [f"{dataset}/{row}" for dataset, row in self.loader.places(position)]
        guilty = []
        with torch.no_grad():
            for row, sequence in enumerate(sequences):
                alone = self.model(batch.select([row])).sums.values()
                if not all(bool(torch.isfinite(value)) for value in alone):
                    guilty.append(sequence)
        return TrainingDiverged(
            f"step {self.done + 1}: {what} is not finite ({values}); training sequences {sequences}, of which "
            f"{guilty or 'none'} give a non-finite loss alone; the last checkpoint is intact. "
            "Lower pretrain.optimizer.learning_rate, or look at those sequences"
        )

    def snapshot(self) -> Snapshot:
        """Everything that determines the steps to come."""
        facts = {
            "step": self.done,
            "tokens": self.tokens,
            "flops": self.flops,
            "seconds": self.seconds,
            "waited": self.waited,
            "loader": self._loader.state(),
            "long_loader": None if self._long is None else self._long.state(),
            "running_losses": self.scale.running,
            "expert_order": self.model.config.expert_order,
        }
        generators = {name: generator.get_state() for name, generator in self._generators().items()}
        tensors = {
            "model": dict(self.model.state_dict()),
            "optimizer": _optimizer_tensors(self.model, self.optimizer),
            "generators": generators,
            "importance": {f"layers.{index}": layer.moe.mass for index, layer in enumerate(self.model.layers)},
        }
        return Snapshot(tensors, facts, list(self.curves))

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot as if nothing had happened."""
        load_weights(self.model, snapshot.tensors["model"], where="checkpoint")
        _restore_optimizer(self.model, self.optimizer, snapshot.tensors["optimizer"])
        for name, generator in self._generators().items():
            generator.set_state(snapshot.tensors["generators"][name])
        for index, layer in enumerate(self.model.layers):
            layer.moe.mass.copy_(snapshot.tensors["importance"][f"layers.{index}"])
        facts = snapshot.facts
        self.model.set_expert_order(facts["expert_order"])
        self.sampler.set_model(self.model.config)
        self.done, self.tokens, self.seconds = facts["step"], facts["tokens"], facts.get("seconds", 0.0)
        self.flops = facts["flops"]
        self.waited = facts.get("waited", 0.0)
        self._loader.restore(facts["loader"])
        if self._long is not None:
            self._long.restore(facts["long_loader"])
        self.scale.restore(facts["running_losses"], self.device)
        self.curves = list(snapshot.curves)


def precision(config: PretrainConfig, device: torch.device) -> torch.autocast:
    """The number type in which the products of a step are computed; weights and sums stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")


def _read(values: Mapping[str, Tensor], counts: Tensor) -> tuple[dict[str, float], list[RowCounts]]:
    """Scalars and the counts of the rows as numbers, fetched together: a GPU is waited for once a step."""
    scalars = torch.stack([value.detach().double() for value in values.values()])
    together = torch.cat((scalars, counts.double().flatten())).tolist()
    figures = dict(zip(values, together, strict=False))
    width = counts.shape[1]
    numbers = [int(number) for number in together[len(figures) :]]
    return figures, [RowCounts(*numbers[at : at + width]) for at in range(0, len(numbers), width)]


def build_optimizer(model: Model, config: PretrainConfig) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only, not on embeddings, norms and biases."""
    decayed = {
        name for name, weight in model.named_parameters() if weight.ndim > 1 and not name.startswith("embeddings")
    }
    named = dict(model.named_parameters())
    settings = config.optimizer
    groups = [
        {"params": [named[name] for name in named if name in decayed], "weight_decay": settings.weight_decay},
        {"params": [named[name] for name in named if name not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)


def _optimizer_tensors(model: Model, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    return {
        f"{name}/{field}": value
        for name, weight in model.named_parameters()
        for field, value in optimizer.state.get(weight, {}).items()
    }


def _restore_optimizer(model: Model, optimizer: torch.optim.AdamW, tensors: dict[str, Tensor]) -> None:
    named = dict(model.named_parameters())
    optimizer.state.clear()
    for key, value in tensors.items():
        name, _, field = key.rpartition("/")
        optimizer.state[named[name]][field] = value.to(named[name].device, copy=True)
