"""How one value is drawn from a model's prediction: temperature, top-k, top-p; the same for tokens and audio codes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from accordion.errors import DataError, TrainingDiverged


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of the draws.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest value each time and draws nothing.
        top_k: only so many of the likeliest tokens or codes; 0: all. A bit has two values and is not cut.
        top_p: only the likeliest tokens or codes that together have this probability; 1: all.
        guidance: g of classifier-free guidance for images and video: logits u + g (c - u) with the caption's
            logits c and those without a caption u (arXiv 2207.12598, in the form of 2105.05233); 1: the caption's.
        seed: of the draws.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is out of range.

        Raises:
            DataError: names the setting and what it may be.
        """
        for name, wrong, wants in (
            ("temperature", not 0 <= self.temperature <= 100, "0 (the likeliest each time) to 100"),
            ("top_k", self.top_k < 0, "0 (all) or more"),
            ("top_p", not 0 < self.top_p <= 1, "more than 0 and at most 1 (all)"),
            ("seed", not 0 <= self.seed < 2**32, f"0 to {2**32 - 1}"),
            ("guidance", not 0 <= self.guidance <= 100, "0 (no caption) to 100; 1 is the caption alone"),
        ):
            if wrong:
                raise DataError(f"sampling: {name} {getattr(self, name)}; wants {wants}")

    def generator(self) -> torch.Generator:
        """A generator of the draws, from the seed."""
        return torch.Generator().manual_seed(self.seed)


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One index drawn from logits (V,); those at minus infinity are never drawn.

    Raises:
        TrainingDiverged: the logits are NaN, or none is finite.
    """
    logits = logits.detach().double().cpu()
    if bool(logits.isnan().any()) or not bool(logits.isfinite().any()):
        raise _damaged()
    if sampling.temperature == 0:
        return int(logits.argmax())
    logits = logits / sampling.temperature
    if sampling.top_k and sampling.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], float("-inf"))
    chance, order = logits.softmax(-1).sort(descending=True)
    chance = chance.masked_fill(chance.cumsum(0) - chance >= sampling.top_p, 0.0)  # the first always stays
    return int(order[torch.multinomial(chance, 1, generator=generator)])


def draw_bits(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Bits (...), uint8, drawn each for itself from the logits (...) of being 1.

    Raises:
        TrainingDiverged: a logit is NaN.
    """
    logits = logits.detach().double().cpu()
    if bool(logits.isnan().any()):
        raise _damaged()
    if sampling.temperature == 0:
        return (logits > 0).to(torch.uint8)
    chance = (logits / sampling.temperature).sigmoid()
    return (torch.rand(chance.shape, generator=generator, dtype=torch.double) < chance).to(torch.uint8)


def _damaged() -> TrainingDiverged:
    return TrainingDiverged(
        "generation: the model's scores are not finite; its weights are damaged or diverged, use an earlier checkpoint"
    )
