"""Losses of the vision tokenizer; each has a weight in the settings, and a weight of 0 costs nothing.

Legend: B batch, T frames, D bits of a token, h side of a scale.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from accordion.config.data import VisionLossConfig
from accordion.data.tokenizers.vision import VisionTokenizer, add_scale, amplitude, downsample
from accordion.data.tokenizers.vision_features import WIDTH, Features, feature_distance


@dataclass(frozen=True)
class Kept:
    """What each clip's decoder is told: its first `scales` (B,) and its first `bits` (B,); on the CPU."""

    scales: Tensor
    bits: Tensor


@dataclass(frozen=True)
class Quantized:
    """A latent beside its code, both (B,T,side,side,D); `heard` (B,1,1,1,D) is 1 for the bits that are kept.

    decisions: for each scale, (N,h,h,D): the residual in units of the scale's amplitude; a bit is its sign.
    """

    latent: Tensor
    code: Tensor
    heard: Tensor
    decisions: Sequence[Tensor]

    @property
    def through(self) -> Tensor:
        """The code, with the gradient of the latent (straight-through)."""
        return (self.latent + (self.code - self.latent).detach()) * self.heard


def quantize_kept(latent: Tensor, scales: Sequence[int], kept: Kept) -> Quantized:
    """The code of the kept scales and bits; each bit is decided as if all were kept, as in encoding."""
    count, frames, _, _, depth = latent.shape
    heard = (torch.arange(depth) < kept.bits[:, None]).to(latent)[:, None, None, None]
    residual = latent.flatten(0, 1)
    code = torch.zeros_like(residual)
    decisions = []
    for scale, height in enumerate(scales):
        decision = downsample(residual, height) / amplitude(scale)
        decisions.append(decision)
        bits = (decision > 0).to(latent.dtype)
        residual = add_scale(residual, 1 - bits, scale)  # adding the opposite signs subtracts the code
        told = (kept.scales > scale).to(latent).repeat_interleave(frames)[:, None, None, None]
        code = code + told * add_scale(torch.zeros_like(code), bits, scale)
    return Quantized(latent, code.detach().unflatten(0, (count, frames)) * heard, heard, decisions)


def bit_entropies(decisions: Sequence[Tensor], bits: int) -> tuple[Tensor, Tensor]:
    """Mean entropy of a bit's decision, and entropy of a bit's mean, in nats, over scales and the first `bits` bits.

    A bit is 1 with probability sigmoid(2 r) for a residual r in amplitudes. The entropy over codes is the sum
    over bits (LFQ, arXiv 2310.05737, section 3.1; factorised as in BSQ, arXiv 2406.07548, section 4.2).
    """
    sure, used = [], []
    for decision in decisions:
        flat = decision[..., :bits].flatten(0, 2)
        sure.append(_entropy(2 * flat).mean())
        used.append(_entropy(torch.logit(torch.sigmoid(2 * flat).mean(0), eps=1e-6)).mean())
    return torch.stack(sure).mean(), torch.stack(used).mean()


def _entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of a coin with these log-odds."""
    return F.softplus(logits) - logits * torch.sigmoid(logits)


class Objective(nn.Module):
    """All terms but the adversarial one.

    Args:
        config: the weights.
        channels: of the decoder's features, which the semantic term projects to those of the trunk.
    """

    def __init__(self, config: VisionLossConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.features = Features() if config.perceptual or config.semantic else None
        self.meaning = nn.Conv2d(channels, WIDTH, 1) if config.semantic else None

    def forward(self, model: VisionTokenizer, frames: Tensor, kept: Kept) -> tuple[dict[str, Tensor], Tensor]:
        """Weighted terms by name, and the restored frames (B,T,3,H,W), for frames in [0,1]."""
        config = self.config
        found = quantize_kept(model.latent(frames), model.config.scales, kept)
        hidden = model.understand(found.through)
        restored = model.paint(hidden)
        error = restored - frames
        terms = {}
        if config.absolute:
            terms["absolute"] = config.absolute * error.abs().mean()
        if config.squared:
            terms["squared"] = config.squared * error.square().mean()
        if config.commitment:
            gap = (found.latent - found.code).square() * found.heard
            terms["commitment"] = config.commitment * gap.sum() / found.heard.expand_as(gap).sum()
        if config.entropy or config.diversity:
            sure, used = bit_entropies(found.decisions, int(kept.bits.max()))
            terms["entropy"] = config.entropy * sure - config.diversity * used
        if self.features is not None:
            terms |= self._compare(self.features, frames, restored, hidden)
        return terms, restored

    def _compare(self, net: Features, frames: Tensor, restored: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            target = net(frames.flatten(0, 1))
        terms = {}
        if self.config.perceptual:
            distance = feature_distance(net(restored.flatten(0, 1)), target).mean()
            terms["perceptual"] = self.config.perceptual * distance
        if self.meaning is not None:
            guess = F.adaptive_avg_pool2d(self.meaning(hidden.flatten(0, 1)), target[-1].shape[-1])
            terms["semantic"] = self.config.semantic * (1 - F.cosine_similarity(guess, target[-1], dim=1).mean())
        return terms


class Critic(nn.Module):
    """PatchGAN (arXiv 1611.07004, section 3.2) on single frames, with spectral normalisation (arXiv 1802.05957)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (3, channels, 2 * channels, 4 * channels)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [spectral_norm(nn.Conv2d(inputs, outputs, 4, 2, padding=1)), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, spectral_norm(nn.Conv2d(widths[-1], 1, 3, padding=1)))

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (B,T,3,H,W) -> a score of each patch (N,1,H/8,W/8): above 0 looks real."""
        scores: Tensor = self.net(frames.flatten(0, 1) * 2 - 1)
        return scores


class Adversary:
    """A critic, its optimiser, and the running means that LeCam holds it to.

    Args:
        config: weight of the term and of LeCam's.
        channels: width of the critic's first layer.
        learning_rate: of the critic.
    """

    def __init__(self, config: VisionLossConfig, channels: int, learning_rate: float) -> None:
        self.config, self.critic = config, Critic(channels)
        self.optimizer = torch.optim.AdamW(self.critic.parameters(), lr=learning_rate, betas=(0.5, 0.9))
        self.real_mean = self.fake_mean = torch.zeros(())

    def learn(self, frames: Tensor, restored: Tensor) -> Tensor:
        """One step of the critic: hinge loss, and LeCam (arXiv 2104.03310, equation 4) against few pictures."""
        real, fake = self.critic(frames), self.critic(restored.detach())
        loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        self.real_mean = real.detach().mean().lerp(self.real_mean.to(real.device), 0.99)
        self.fake_mean = fake.detach().mean().lerp(self.fake_mean.to(fake.device), 0.99)
        held = F.relu(real - self.fake_mean).square().mean() + F.relu(self.real_mean - fake).square().mean()
        self.optimizer.zero_grad()
        (loss + self.config.lecam * held).backward()
        self.optimizer.step()
        return loss.detach()

    def term(self, restored: Tensor, others: Tensor, last_layer: Tensor) -> Tensor:
        """What the tokenizer pays for patches that do not look real, in proportion to its other terms.

        The weight is the ratio of the gradients' lengths at the last layer (VQGAN, arXiv 2012.09841, equation 7).
        """
        loss = -self.critic(restored).mean()
        ours = torch.autograd.grad(others, last_layer, retain_graph=True)[0].norm()
        theirs = torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm()
        return self.config.adversarial * (ours / (theirs + 1e-4)).clamp(max=1e3).detach() * loss
