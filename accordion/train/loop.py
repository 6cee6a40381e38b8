"""The training loop: one elastic step, its guard against divergence, and the state that a resume restores."""

import json
import math
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from accordion.config.pretrain import ModelConfig, PretrainConfig
from accordion.data.batch import Batch
from accordion.data.loader import ShardLoader
from accordion.errors import TrainingDiverged
from accordion.model import Model
from accordion.model.files import load_weights
from accordion.model.losses import MODALITIES
from accordion.model.sampler import ElasticSampler
from accordion.train.checkpoint import Snapshot
from accordion.train.schedule import warmup_stable_decay

ELASTIC_SEED, HISTORY_SEED, NOISE_SEED = 1, 2, 3  # added to the run's seed: a stream of its own for each generator


class PosteriorScale:
    """Brings the modalities' losses to one interval: each is divided by its own running mean (stop-gradient).

    arXiv 2602.04705 calls it posterior-based rescaling and gives no formula; this one is ours.

    Attributes:
        running: modality -> exponential moving average of its loss, nats.
    """

    def __init__(self, memory: float) -> None:
        self.memory = memory
        self.running: dict[str, float] = {}

    def total(self, means: dict[str, Tensor], mtp_weight: float) -> Tensor:
        """The loss to minimise, about 1: the mean over modalities of loss / running loss.

        Multi-token prediction is part of text: text + mtp_weight * mtp, over text's running loss.
        """
        terms = []
        for name in MODALITIES:
            if name not in means:
                continue
            now = float(means[name].detach())
            self.running[name] = self.memory * self.running.get(name, now) + (1 - self.memory) * now
            loss = means[name]
            if name == "text" and "mtp" in means:
                loss = loss + mtp_weight * means["mtp"]
            terms.append(loss / self.running[name])
        return torch.stack(terms).mean()


class Trainer:
    """A model in training, with everything that determines its next step.

    Args:
        config: settings of the run.
        shape: the model to build.
        loader: endless training batches.
    """

    def __init__(self, config: PretrainConfig, shape: ModelConfig, loader: ShardLoader) -> None:
        self.config, self.loader = config, loader
        self.model = Model(shape, seed=config.seed).train()
        self.optimizer = build_optimizer(self.model, config)
        self.scale = PosteriorScale(config.loss_memory)
        self.sampler = ElasticSampler(shape, config.elastic, steps=config.steps, seed=config.seed + ELASTIC_SEED)
        self.history = torch.Generator().manual_seed(config.seed + HISTORY_SEED)
        self.noise = torch.Generator().manual_seed(config.seed + NOISE_SEED)
        self.done = 0  # steps
        self.tokens = 0  # positions read, without padding
        self.seconds = 0.0
        self.curves: list[str] = []

    def step(self) -> dict[str, float]:
        """Train on one batch and return the figures of the step.

        Raises:
            TrainingDiverged: a loss or gradient is not finite; weights and optimizer are as before the step.
        """
        start, position = time.monotonic(), self.loader.state()
        batch = corrupt_codes(next(self.loader), self.config.code_noise, self.model.config, self.noise)
        specs = self.sampler.draw(self.done, len(batch))
        losses = self.model(batch, specs, history_dropout=self.config.history_dropout, generator=self.history)
        means = losses.means
        running = dict(self.scale.running)
        total = self.scale.total(means, self.config.mtp_weight)
        if not math.isfinite(float(total.detach())):
            self.scale.running = running
            raise self._diverged("loss", {name: float(mean.detach()) for name, mean in means.items()}, batch, position)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip))
        if not math.isfinite(norm):
            raise self._diverged("gradient", {"norm": norm}, batch, position)
        rate = self._set_rate()
        self.optimizer.step()
        self.model.balance(self.config.balance_step)
        self.done += 1
        self.tokens += int((batch.modality > 0).sum())
        self.seconds += time.monotonic() - start
        figures = {f"loss/{name}": float(mean.detach()) for name, mean in means.items()}
        figures |= {"loss/total": float(total.detach()), "learning_rate": rate, "gradient_norm": norm}
        self.curves.append(json.dumps({"step": self.done, **figures}))
        return figures

    def _generators(self) -> dict[str, torch.Generator]:
        return {"elastic": self.sampler.generator, "history": self.history, "noise": self.noise}

    def _set_rate(self) -> float:
        settings = self.config.optimizer
        factor = warmup_stable_decay(
            self.done, steps=self.config.steps, warmup=settings.warmup_steps, decay_share=settings.decay_share
        )
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        return settings.learning_rate * factor

    def _diverged(self, what: str, values: dict[str, float], batch: Batch, position: Any) -> TrainingDiverged:
        """The error that names the step, the figures, and the sequences whose loss alone is not finite."""
        self.loader.restore(position)
        sequences = self.loader.next_rows().tolist()
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
            "seconds": self.seconds,
            "loader": self.loader.state(),
            "running_losses": self.scale.running,
        }
        generators = {name: generator.get_state() for name, generator in self._generators().items()}
        tensors = {
            "model": dict(self.model.state_dict()),
            "optimizer": _optimizer_tensors(self.model, self.optimizer),
            "generators": generators,
        }
        return Snapshot(tensors, facts, list(self.curves))

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot as if nothing had happened."""
        load_weights(self.model, snapshot.tensors["model"], where="checkpoint")
        _restore_optimizer(self.model, self.optimizer, snapshot.tensors["optimizer"])
        for name, generator in self._generators().items():
            generator.set_state(snapshot.tensors["generators"][name])
        facts = snapshot.facts
        self.done, self.tokens, self.seconds = facts["step"], facts["tokens"], facts.get("seconds", 0.0)
        self.loader.restore(facts["loader"])
        self.scale.running = dict(facts["running_losses"])
        self.curves = list(snapshot.curves)


def corrupt_codes(batch: Batch, chance: float, shape: ModelConfig, generator: torch.Generator) -> Batch:
    """Replace each audio code that the model reads (not those it predicts) by a random one, with `chance`.

    It is to audio what flipping history bits is to vision (VideoAR, arXiv 2601.05966): the model learns not to
    trust its own past to the letter, and cannot learn a small collection of clips by heart.
    """
    if chance == 0:
        return batch
    drawn = torch.randint(shape.audio_codebook, batch.codes.shape, generator=generator)
    replaced = (torch.rand(batch.codes.shape, generator=generator) < chance) & (batch.codes >= 0)
    return replace(batch, codes=torch.where(replaced, drawn, batch.codes))


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
        optimizer.state[named[name]][field] = value.clone()
