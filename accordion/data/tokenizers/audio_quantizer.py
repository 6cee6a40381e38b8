"""Residual vector quantizer of the audio tokenizer: level 1 hears what is said, the others what is left.

Every level adds an entry of its codebook to what the levels before gave (RVQ, arXiv 2107.03312, section III.C). Levels
2 and later take the entry nearest to the residual. Level 1 takes the nearest along the directions from which the
teacher's features can be read: its code is a cluster of what the teacher hears, its entry still the mean of all that
falls on it. The codebooks follow these means (EMA, arXiv 1711.00937, appendix A.1).

Legend: N vectors, D width, Q levels, C entries, K teacher features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accordion.errors import DataError

DECAY = 0.97  # of the moving averages
DEAD = 0.1  # uses, 1 being the fair share, below which an entry starts again
ROUNDS = 12  # of k-means


class Quantizer(nn.Module):
    """Vectors (N,D) to codes (N,Q) and back, any number of leading levels."""

    codebooks: Tensor
    counts: Tensor
    sums: Tensor
    heard: Tensor

    def __init__(self, levels: int, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("codebooks", torch.zeros(levels, size, width))
        self.register_buffer("heard", torch.eye(width))  # distances of level 1 are taken after this map (D,D)
        self.register_buffer("counts", torch.ones(levels, size), persistent=False)
        self.register_buffer("sums", torch.zeros(levels, size, width), persistent=False)

    def nearest(self, residual: Tensor, level: int) -> Tensor:
        """Index (N,) of the entry nearest to each residual (N,D)."""
        book = self.codebooks[level]
        if level == 0:
            residual, book = residual @ self.heard, book @ self.heard
        return (book.square().sum(1) - 2 * residual @ book.T).argmin(1)

    def encode(self, latent: Tensor) -> Tensor:
        """Vectors (N,D) -> codes (N,Q)."""
        residual, codes = latent, []
        for level in range(len(self.codebooks)):
            codes.append(self.nearest(residual, level))
            residual = residual - self.codebooks[level][codes[-1]]
        return torch.stack(codes, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (...,q) of the first q levels -> sum of their entries (...,D)."""
        return torch.stack([self.codebooks[level][codes[..., level]] for level in range(codes.shape[-1])]).sum(0)

    @torch.no_grad()
    def move(self, latent: Tensor, codes: Tensor, generator: torch.Generator) -> None:
        """Move each entry towards the mean of its residuals; entries nothing falls on restart at a random residual."""
        residual, size = latent, self.codebooks.shape[1]
        for level in range(len(self.codebooks)):
            assigned = F.one_hot(codes[:, level], size).to(latent.dtype)
            scale = size / len(latent)  # so that a fairly used entry counts 1
            self.counts[level].lerp_(assigned.sum(0) * scale, 1 - DECAY)
            self.sums[level].lerp_(assigned.T @ residual * scale, 1 - DECAY)
            after = residual - self.codebooks[level][codes[:, level]]
            drawn = torch.randint(len(residual), (size,), generator=generator).to(latent.device)
            dead = self.counts[level] < DEAD
            self.counts[level] = torch.where(dead, 1.0, self.counts[level])
            self.sums[level] = torch.where(dead[:, None], residual[drawn], self.sums[level])
            self.codebooks[level] = self.sums[level] / self.counts[level, :, None]
            residual = after

    @torch.no_grad()
    def place(
        self, latent: Tensor, taught: Tensor, known: Tensor, generator: torch.Generator, *, semantic: float
    ) -> None:
        """Start from data: k-means of each level's residuals, that of level 1 in what the teacher would say.

        Args:
            latent: (N,D); taught: (N,K) teacher features of the same frames, where `known` (N,).
            semantic: 0 to 1, how much of level 1's distance is the teacher's, the rest being the latent's own.

        Raises:
            DataError: fewer vectors than entries.
        """
        size = self.codebooks.shape[1]
        if len(latent) < size:
            raise DataError(
                f"audio: {len(latent)} frames cannot fill a codebook of {size}; lower tokenizers.audio.codebook"
            )
        self.heard.copy_(_metric(latent, taught, known, semantic))
        residual = latent
        for level in range(len(self.codebooks)):
            metric = residual @ self.heard if level == 0 else residual
            middle, held = centres(metric, size, generator)
            codes = torch.cdist(metric, middle).argmin(1)
            assigned = F.one_hot(codes, size).to(latent.dtype)
            means = assigned.T @ residual / assigned.sum(0).clamp_min(1)[:, None]
            self.codebooks[level] = means
            self.counts[level] = (held / held.mean()).clamp_min(DEAD)
            self.sums[level] = means * self.counts[level, :, None]
            residual = residual - means[self.nearest(residual, level)]


def _metric(latent: Tensor, taught: Tensor, known: Tensor, semantic: float) -> Tensor:
    """Map (D,D) after which the distance of two vectors is that of the features read off them, and partly their own."""
    centred = latent - latent.mean(0)
    read = ridge(centred[known], taught[known] - taught[known].mean(0))  # (D,K)
    told, own = ((part.square().sum(1).mean().clamp_min(1e-8)) for part in (centred @ read, centred))
    gram = semantic * read @ read.T / told + (1 - semantic) * torch.eye(len(read), device=read.device) / own
    spread, axes = torch.linalg.eigh(gram)
    return axes * spread.clamp_min(0).sqrt()  # a square root of the metric


def ridge(inputs: Tensor, targets: Tensor) -> Tensor:
    """Least squares (in,out) of targets (N,out) on inputs (N,in), with a little ridge."""
    gram = inputs.T @ inputs
    small = 1e-3 * gram.diagonal().mean().clamp_min(1e-8) * torch.eye(len(gram), device=gram.device)
    return torch.linalg.solve(gram + small, inputs.T @ targets)


def centres(vectors: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """k-means of (N,W): centres (size,W) and how many vectors fell on each (size,).

    Centres that nothing falls on start again at vectors far from the others (k-means++, Arthur and Vassilvitskii 2007):
    in speech much is the same silence, and random starts would spend many centres on it.
    """
    found = vectors[torch.randperm(len(vectors), generator=generator)[:size].to(vectors.device)].clone()
    held = torch.ones(size, device=vectors.device)
    for _ in range(ROUNDS):
        distance, nearest = torch.cdist(vectors, found).min(1)
        assigned = F.one_hot(nearest, size).to(vectors.dtype)
        held = assigned.sum(0)
        far = torch.multinomial(distance.square().cpu() + 1e-9, size, replacement=True, generator=generator)
        means = assigned.T @ vectors / held.clamp_min(1)[:, None]
        found = torch.where(held[:, None] > 0, means, vectors[far.to(vectors.device)])
    return found, held
