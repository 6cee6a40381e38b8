"""Spectra of the audio tokenizer: short-time Fourier transform, mel bands, and sound from magnitudes alone.

A spectrum looks at the past only: number u (hop H, window W) covers the samples from (u + 1) H - W to (u + 1) H.

Legend: B batch, N samples, U spectra of 100 Hz, M mel bands, F bins.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FLOOR = 5e-3  # magnitude (-46 dB of full scale) below which everything sounds like one silence
DB = -20 * math.log10(FLOOR) / 2  # decibels of one unit of `scaled_log`
MOMENTUM = 0.9  # of Griffin-Lim


class Spectra(nn.Module):
    """Magnitudes of sound, 1 for a full-scale sine, their mel bands, and sound of magnitudes."""

    window: Tensor
    filters: Tensor

    def __init__(self, rate: int, hop: int, mels: int) -> None:
        super().__init__()
        self.hop = hop
        self.size = 1 << (3 * hop - 1).bit_length()  # of the window: 3 to 6 hops
        self.bins = self.size // 2 + 1
        self.register_buffer("window", torch.hann_window(self.size), persistent=False)
        self.register_buffer("filters", mel_filters(rate, self.bins, mels), persistent=False)

    @property
    def before(self) -> int:
        """Samples before the first hop that the first window covers."""
        return self.size - self.hop

    def forward(self, pcm: Tensor, *, padded: bool = False) -> Tensor:
        """PCM (B,N), N a multiple of the hop -> magnitudes (B,F,U).

        Args:
            padded: `pcm` begins with the `before` samples that come before; otherwise silence is put there.
        """
        return self.transform(pcm if padded else F.pad(pcm, (self.before, 0))).abs()

    def transform(self, pcm: Tensor) -> Tensor:
        """PCM (B, before + N) -> complex spectra (B,F,U)."""
        spectra = torch.stft(pcm, self.size, self.hop, window=self.window, center=False, return_complex=True)
        return spectra * (2 / self.window.sum())

    def log_mel(self, magnitude: Tensor) -> Tensor:
        """Magnitudes (B,F,U) -> log-mel (B,M,U), scaled to about [-1, 1]."""
        return scaled_log(self.filters @ magnitude)

    def invert(self, magnitude: Tensor, rounds: int) -> Tensor:
        """Magnitudes (F,U) -> PCM (U * hop,): Griffin-Lim with momentum (Perraudin et al. 2013) from a fixed start."""
        target = F.pad(magnitude, (0, self.after))
        angle = torch.rand(target.shape, generator=torch.Generator().manual_seed(0)) * 2 * math.pi
        phase, previous = torch.polar(torch.ones_like(angle), angle), torch.zeros_like(angle, dtype=torch.complex64)
        for _ in range(rounds):
            rebuilt = self.transform(self._overlap_add(target * phase)[None])[0]
            ahead = rebuilt - MOMENTUM / (1 + MOMENTUM) * previous
            phase, previous = ahead / ahead.abs().clamp_min(1e-9), rebuilt
        return self.sound(magnitude * phase[:, : magnitude.shape[1]])

    def sound(self, spectra: Tensor) -> Tensor:
        """Complex spectra (F,U) -> PCM (U * hop,) in [-1, 1].

        The sound is taken to be silent after its end, so the windows that reach over the end are there.
        """
        pcm = self._overlap_add(F.pad(spectra, (0, self.after)))
        return pcm[self.before : self.before + spectra.shape[1] * self.hop].clamp(-1, 1)

    @property
    def after(self) -> int:
        """Spectra after the last hop whose windows reach into it."""
        return -(-self.before // self.hop)

    def _overlap_add(self, spectra: Tensor) -> Tensor:
        """Complex spectra (F,U) -> samples, least squares over the overlapping windows."""
        frames = torch.fft.irfft(spectra * (self.window.sum() / 2), n=self.size, dim=0) * self.window[:, None]
        weights = (self.window**2)[:, None].expand_as(frames)
        size = (1, (spectra.shape[1] - 1) * self.hop + self.size)
        both = F.fold(torch.stack([frames, weights]), size, (1, self.size), stride=(1, self.hop))[:, 0, 0]
        return both[0] / both[1].clamp_min(1e-3)


def mel_filters(rate: int, bins: int, mels: int) -> Tensor:
    """Triangular mel filters (M,F), each of sum 1, up to half the sample rate."""
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, mels + 2) / 2595) - 1)  # Hz
    frequency = torch.linspace(0, rate / 2, bins)
    rising = (frequency - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequency) / (edges[2:] - edges[1:-1])[:, None]
    filters = torch.minimum(rising, falling).clamp_min(0) + 1e-6
    return filters / filters.sum(1, keepdim=True)


def scaled_log(magnitude: Tensor) -> Tensor:
    """Log of magnitudes: silence -> -1, full scale -> 1."""
    return (magnitude.clamp_min(0) + FLOOR).log() / -math.log(FLOOR) * 2 + 1


def unscaled(value: Tensor) -> Tensor:
    """Inverse of `scaled_log`."""
    return (((value - 1) / 2 * -math.log(FLOOR)).exp() - FLOOR).clamp_min(0)
