"""What changes in the course of a run: learning rate, batch, context, and the weights that go with them."""

import math
from dataclasses import dataclass

from accordion.config.pretrain import PretrainConfig

RAMP = (0.25, 0.5, 0.75)  # of the batch, in the equal parts of its ramp


def warmup_stable_decay(step: int, *, steps: int, warmup: int, decay_share: float, to: float = 0.1) -> float:
    """Factor of the learning rate at `step` (from 0): linear up, flat, linear down (WSD, arXiv 2404.06395).

    Args:
        steps: of the whole run.
        warmup: steps of the linear rise; the first step already learns.
        decay_share: share of all steps spent in the fall; 0: there is none.
        to: what it falls to.
    """
    rise = min(1.0, (step + 1) / (warmup + 1))
    fall = round(steps * decay_share)
    if not fall:
        return rise
    left = (steps - step) / fall
    return rise * (1.0 if left >= 1 else to + (1 - to) * left)


def cosine(step: int, *, steps: int) -> float:
    """Factor from 1 to a tenth along half a cosine, at `step` (from 0) of `steps`."""
    return 0.1 + 0.9 * (1 + math.cos(math.pi * (step + 1) / steps)) / 2


@dataclass(frozen=True)
class Conditions:
    """What one step is done with.

    Attributes:
        rate: learning rate.
        batch: sequences of the usual length.
        long: whether it reads the long sequences (stage 2).
        mtp_weight, balance_step: see `PretrainConfig`.
    """

    rate: float
    batch: int
    long: bool
    mtp_weight: float
    balance_step: float


def conditions(config: PretrainConfig, step: int) -> Conditions:
    """The conditions of `step`, from 0: warm-up, stable, decay; then, with long sequences, a cosine to a tenth."""
    settings, long = config.optimizer, config.long_context
    first = config.first_steps

    def first_rate(step: int) -> float:
        return settings.learning_rate * warmup_stable_decay(
            step, steps=first, warmup=settings.warmup_steps, decay_share=settings.decay_share, to=settings.decay_to
        )

    if step < first or not long.share:
        rate = first_rate(step)
        batch = ramped(step, steps=round(config.steps * config.batch_ramp), batch=config.batch)
        return Conditions(rate, batch, False, config.mtp_weight, config.balance_step)
    rate = first_rate(first) * cosine(step - first, steps=config.steps - first)
    return Conditions(rate, config.batch, True, long.mtp_weight, long.balance_step)


def ramped(step: int, *, steps: int, batch: int) -> int:
    """Sequences in the batch of `step` (from 0): a quarter, a half, three quarters over `steps` steps, then all."""
    if step >= steps:
        return batch
    return max(1, round(batch * RAMP[step * len(RAMP) // steps]))


def long_batch(batch: int, *, usual: int, long: int) -> int:
    """Sequences of `long` positions in a step of stage 2: as many positions as `batch` sequences of `usual` ones."""
    return max(1, batch * usual // long)


def batch_sizes(config: PretrainConfig) -> list[int]:
    """How many sequences of the usual length the steps of the run read, each number once, smallest first."""
    ramp = round(config.steps * config.batch_ramp)
    rising = {ramped(step, steps=ramp, batch=config.batch) for step in range(min(ramp, config.first_steps))}
    return sorted(rising | {config.batch})
