"""The training loop: one elastic step, its guard against divergence, and the state that a resume restores."""

import json
import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from accordion.config.pretrain import ModelConfig, PretrainConfig
from accordion.data.batch import Batch, Batches
from accordion.errors import ConfigError, TrainingDiverged
from accordion.model import Model
from accordion.model.attention import draw_hidden_frames
from accordion.model.flops import RowCounts, row_counts, training_flops
from accordion.model.importance import importance_order, measure_importance
from accordion.model.losses import MODALITIES
from accordion.model.sampler import Draw, ElasticSampler
from accordion.train.checkpoint import Snapshot
from accordion.train.corruption import corrupt_codes, flip_bits
from accordion.train.engine import build_engine
from accordion.train.growth import grow
from accordion.train.guards import SpikeGuard
from accordion.train.ranks import Ranks
from accordion.train.schedule import Conditions, conditions

TIMES = ("seconds", "waited")  # of a snapshot's facts: how long it took, not what it did
LOADS_EVERY = 10  # steps between figures of the experts' loads
LOADS_KEPT = 100  # times in a run that the share of each single expert is kept
ELASTIC_SEED, HISTORY_SEED, NOISE_SEED, GROWTH_SEED = 1, 2, 3, 4  # added to the run's seed: a stream for each


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
        loader: endless training batches, this process's part of each.
        long: the same of long sequences, for stage 2; None where there is none.
        device: where the model is and its steps are computed; chance is drawn on the CPU on every device.
        ranks: this process among all. Chance is drawn for whole batches, and figures are those of whole batches, so
            that a run on several processes is the run on one.
    """

    def __init__(
        self,
        config: PretrainConfig,
        shape: ModelConfig,
        loader: Batches,
        device: torch.device | str = "cpu",
        *,
        long: Batches | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.config, self.device = config, torch.device(device)
        self._loader, self._long = loader, long
        if config.long_context.share and long is None:
            raise ConfigError(
                f"pretrain.long_context.share: {config.long_context.share}, but there are no long sequences; "
                "set pack.long_sequence, or the share to 0"
            )
        self.ranks = Ranks() if ranks is None else ranks
        self.engine = build_engine(config, shape, self.device, self.ranks)
        self.scale = PosteriorScale(config.loss_memory)
        self.sampler = ElasticSampler(shape, config.elastic, steps=config.steps, seed=config.seed + ELASTIC_SEED)
        self.history = torch.Generator().manual_seed(config.seed + HISTORY_SEED)
        self.noise = torch.Generator().manual_seed(config.seed + NOISE_SEED)
        self.guard = SpikeGuard(config.spike_deviations)
        self.done = 0  # steps
        self.tokens = 0  # positions read, without padding
        self.flops = 0  # floating-point operations of the products, forward and backward
        self.seconds = 0.0
        self.waited = 0.0  # seconds of them for the next batch
        self.curves: list[str] = []

    def step(self) -> dict[str, float]:
        """Train on one batch and return the figures of the step.

        A step whose loss jumps (`SpikeGuard`) is counted and not learnt from: its figures say `skipped`.

        Raises:
            TrainingDiverged: a loss or gradient is not finite; weights and optimizer are as before the step.
        """
        now, start = conditions(self.config, self.done), time.monotonic()
        self._read_as(now)
        position = self.loader.position
        given = next(self.loader)
        waited = time.monotonic() - start
        self._rank_experts()
        self._grow()
        batch, draw, hidden = self._prepare(given)
        before = self.scale.copy()
        figures, norm, rows = self._gradient(batch, draw, hidden, now.mtp_weight)
        if not (math.isfinite(figures["loss/total"]) and math.isfinite(norm)):
            self._forget(before)
            raise self._diverged(figures, norm, batch, position)
        shares: dict[str, float] = {}
        if self.guard.jumps(figures["loss/total"]):
            self._forget(before)
            self.engine.balance(0.0)  # forgets the loads of the step
            figures["skipped"] = 1.0
        else:
            loads, shares = self._learn(now)
            figures |= loads
        self.done += 1
        self.tokens += sum(row.live for row in rows)
        self.flops += training_flops(self.model.config, draw, rows, batch.modality.shape[1])
        self.seconds += time.monotonic() - start
        self.waited += waited
        figures |= {"learning_rate": now.rate, "gradient_norm": norm}
        self.curves.append(json.dumps({"step": self.done, **figures, **shares}))
        return figures

    def _gradient(
        self, batch: Batch, draw: Draw, hidden: Tensor | None, mtp_weight: float
    ) -> tuple[dict[str, float], float, list[RowCounts]]:
        """Put the gradient of a batch, clipped, where the optimizer finds it.

        Returns:
            losses, `loss/total` the one that was followed; length of the gradient before clipping; what the rows of
            the whole batch hold.
        """
        with precision(self.config, self.device):
            losses = self.engine.losses(batch, draw, hidden, self.config.scale_weight)
        means, aims = self.ranks.means(losses)
        total = self.scale.total(aims, mtp_weight)
        self.engine.zero()
        self.engine.backward(total)
        norm = self.engine.clip(self.config.optimizer.clip)
        figures, rows = _read(
            {**{f"loss/{name}": mean for name, mean in means.items()}, "loss/total": total, "norm": norm},
            self.ranks.all_rows(row_counts(batch)),
            self.ranks,
        )
        return figures, figures.pop("norm"), rows

    def _learn(self, now: Conditions) -> tuple[dict[str, float], dict[str, float]]:
        """Follow the gradient: what is told of the experts' loads with the step, and what in the curves alone."""
        self.engine.step(now.rate)
        loads = self.engine.balance(now.balance_step)
        told = {}
        if self.done % LOADS_EVERY == 0:
            told = dict(zip(("load/max_over_mean", "load/idle_experts"), loads.tolist(), strict=True))
        return told, self._expert_shares()

    def _forget(self, before: PosteriorScale) -> None:
        """Drop the gradient, and the running losses that its batch changed."""
        self.scale = before
        self.engine.zero()

    @property
    def model(self) -> Model:
        """What this process holds of the model."""
        return self.engine.model

    @property
    def loader(self) -> Batches:
        """Where the batches of the present stage come from."""
        if self._long is not None and self.done >= self.config.first_steps:
            return self._long
        return self._loader

    def _read_as(self, now: Conditions) -> None:
        """Make the next batch as large as the schedule asks; long sequences are fewer, for as many positions."""
        if self.config.batch_ramp and not now.long:
            self._loader.resize(now.batch)

    def _prepare(self, given: Batch) -> tuple[Batch, Draw, Tensor | None]:
        """This process's rows as they are read in training, what the rows of the whole batch run, hidden frames.

        What is read has mistakes in its history, and targets that mend them.
        """
        config, shape, ranks = self.config, self.model.config, self.ranks
        noisy = corrupt_codes(given, config.code_noise, shape, self.noise, ranks)
        batch = flip_bits(noisy, config.bit_flips, shape, self.noise, ranks)
        draw = self.draw(len(given) * ranks.count)
        rows = ranks.part(len(given))
        hidden = draw_hidden_frames(
            given, config.history_dropout, self.history, rows=rows, parts=ranks.count, largest=ranks.largest
        )
        return batch.to(self.device), draw, None if hidden is None else hidden.to(self.device)

    def draw(self, rows: int) -> Draw:
        """What the rows of the next batch run, all processes' together."""
        return self.sampler.draw(self.done, rows)

    def _expert_shares(self) -> dict[str, float]:
        """`load/LAYER.EXPERT` -> its share of the layer's tokens in this step; empty in most steps of a long run.

        They are for the curves: a tracking server chokes on so many metrics.
        """
        if self.done % max(LOADS_EVERY, self.config.steps // LOADS_KEPT):
            return {}
        return {
            f"load/{layer}.{expert}": round(share, 5)
            for layer, load in self.engine.all_layers(self.engine.loads).items()
            for expert, share in enumerate((load / load.sum().clamp_min(1)).tolist())
        }

    def _rank_experts(self) -> None:
        """Measure the gate mass of every expert during the warm-up of a ranked run; rank them at its end."""
        elastic = self.config.elastic
        if not (elastic.enabled and elastic.subsets == "ranked"):
            return
        measure_importance(self.model, self.done < self.sampler.warmup)
        if self.done == self.sampler.warmup:
            self.model.set_expert_order(importance_order(self.engine.masses().values()))
            self.sampler.set_model(self.model.config)

    def _grow(self) -> None:
        """At the end of `grow_share`: make the larger sub-models out of the smallest, the only one trained so far."""
        if self.sampler.growth and self.done == self.sampler.growth:
            generator = torch.Generator().manual_seed(self.config.seed + GROWTH_SEED)
            self.engine.load(*grow(*self.engine.tensors(), self.model.config, self.sampler.smallest, generator))

    def _generators(self) -> dict[str, torch.Generator]:
        return {"elastic": self.sampler.generator, "history": self.history, "noise": self.noise}

    def _diverged(self, losses: dict[str, float], norm: float, batch: Batch, position: int) -> TrainingDiverged:
        """The error that names the step, the figures, and the sequences whose loss alone is not finite."""
        what = "gradient" if math.isfinite(losses["loss/total"]) else "loss"
        values = {**losses, "gradient norm": norm}
        sequences = [f"{dataset}/{row}" for dataset, row in self.loader.places(position)]
        guilty = []
        with torch.no_grad():
            for row, sequence in enumerate(sequences):
                alone = self.engine.losses(batch.select([row]), Draw(), None, 0.0).sums.values()
                if not all(bool(torch.isfinite(value)) for value in alone):
                    guilty.append(sequence)
        return TrainingDiverged(
            f"step {self.done + 1}: {what} is not finite ({values}); training sequences {sequences}, of which "
            f"{guilty or 'none'} give a non-finite loss alone; the last checkpoint is intact. "
            "Lower pretrain.optimizer.learning_rate, or look at those sequences"
        )

    def snapshot(self, *, whole: bool = True) -> Snapshot:
        """Everything that determines the steps to come; every process calls it, and each gets all.

        Args:
            whole: with the weights and the optimizer's state; False: all but them, which is small.
        """
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
            "guard": self.guard.state(),
        }
        generators = {name: generator.get_state() for name, generator in self._generators().items()}
        tensors = {"generators": generators, "importance": self.engine.masses()}
        if whole:
            tensors["model"], tensors["optimizer"] = self.engine.tensors()
        return Snapshot(tensors, facts, list(self.curves))

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot as if nothing had happened.

        Raises:
            ArtifactError: its tensors are not those of this model and its optimizer.
        """
        if snapshot.parts is None:
            snapshot.check()
            self.engine.load(snapshot.tensors["model"], snapshot.tensors["optimizer"])
        else:
            self.engine.load_parts(snapshot.parts)
        for name, generator in self._generators().items():
            generator.set_state(snapshot.tensors["generators"][name])
        for index, router in self.model.layers.routers():
            router.mass.copy_(snapshot.tensors["importance"][f"layers.{index}"])
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
        self.guard.restore(facts["guard"])
        self.curves = list(snapshot.curves)


def precision(config: PretrainConfig, device: torch.device) -> torch.autocast:
    """The number type in which the products of a step are computed; weights and sums stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")


def _read(
    values: Mapping[str, Tensor], counts: Tensor, ranks: Ranks
) -> tuple[dict[str, float], list[RowCounts]]:  # fmt: skip
    """Scalars and the counts of the rows as numbers, fetched together: a GPU is waited for once a step."""
    scalars = torch.stack([value.detach().double() for value in values.values()])
    together = ranks.agree(torch.cat((scalars, counts.double().flatten()))).tolist()
    figures = dict(zip(values, together, strict=False))
    width = counts.shape[1]
    numbers = [int(number) for number in together[len(figures) :]]
    return figures, [RowCounts(*numbers[at : at + width]) for at in range(0, len(numbers), width)]
