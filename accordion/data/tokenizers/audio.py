"""Audio tokenizer: residual vector quantization of speech at 12.5 frames a second.

The encoder maps log-mel spectra (10 ms hop) to one vector every 80 ms, `levels` codebooks quantize it one
after the other, each the residual of those before (RVQ, SoundStream, arXiv 2107.03312, section III.C), and
the decoder restores the log-magnitude spectrum. Four codes of 6 bits a frame are 300 bit/s, too few to
carry phase, so the phase is rebuilt from the magnitudes (Griffin-Lim with momentum, Perraudin et al. 2013).
Code 1 is distilled from log-mel targets (there is no speech encoder here), the others carry what is left.

Legend: B batch, N samples, T frames of 12.5 Hz, U spectra (8 a frame), M mel bands, F bins, D width, Q levels.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from accordion.config.data import AudioTokenizerConfig
from accordion.data.tokenizers.vision import load_weights, read_file
from accordion.errors import DataError

SPECTRA = 8  # spectra of a frame
MELS = 32
WIDTH = 32  # of the quantized vector
FLOOR = 5e-3  # magnitude (-46 dB of full scale) below which everything sounds like one silence


def mel_filters(rate: int, bins: int) -> Tensor:
    """Triangular mel filters (M,F), each of sum 1, up to half the sample rate."""
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, MELS + 2) / 2595) - 1)  # Hz
    frequency = torch.linspace(0, rate / 2, bins)
    rising = (frequency - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequency) / (edges[2:] - edges[1:-1])[:, None]
    filters = torch.minimum(rising, falling).clamp_min(0) + 1e-6
    return filters / filters.sum(1, keepdim=True)


class Quantizer(nn.Module):
    """Q codebooks of C vectors, moved to the mean of what falls on them (EMA, arXiv 1711.00937, appendix A.1)."""

    codebooks: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, levels: int, size: int) -> None:
        super().__init__()
        self.register_buffer("codebooks", torch.zeros(levels, size, WIDTH))
        self.register_buffer("counts", torch.ones(levels, size), persistent=False)
        self.register_buffer("sums", torch.zeros(levels, size, WIDTH), persistent=False)

    def nearest(self, residual: Tensor, level: int) -> Tensor:
        """Index (N,) of the nearest codebook vector to each residual (N,D)."""
        return torch.cdist(residual, self.codebooks[level]).argmin(1)

    def encode(self, latent: Tensor) -> Tensor:
        """Vectors (N,D) -> codes (N,Q)."""
        residual, codes = latent, []
        for level in range(len(self.codebooks)):
            codes.append(self.nearest(residual, level))
            residual = residual - self.codebooks[level][codes[-1]]
        return torch.stack(codes, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (...,q) of the first q levels -> sum of their vectors (...,D)."""
        return torch.stack([self.codebooks[level][codes[..., level]] for level in range(codes.shape[-1])]).sum(0)


class Residual(nn.Module):
    """x + conv(silu(conv(norm(x)))) over (B,C,T); the norm is over the channels of one time step."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.first = nn.Conv1d(channels, channels, kernel, padding=kernel // 2)
        self.second = nn.Conv1d(channels, channels, 1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(self.norm(x.transpose(1, 2)).transpose(1, 2))))


class AudioTokenizer(nn.Module):
    """PCM to codes and back; see the module's text."""

    window: Tensor
    filters: Tensor

    def __init__(self, config: AudioTokenizerConfig) -> None:
        super().__init__()
        if config.frame_samples % SPECTRA:
            raise DataError(f"tokenizers.audio.frame_samples: {config.frame_samples} is no multiple of {SPECTRA}")
        self.config = config
        self.hop = config.frame_samples // SPECTRA
        self.fft = 1 << (3 * self.hop - 1).bit_length()
        self.register_buffer("window", torch.hann_window(self.fft), persistent=False)
        self.register_buffer("filters", mel_filters(config.sample_rate, self.fft // 2 + 1), persistent=False)
        c = config.channels
        self.encoder = nn.Sequential(  # at 12.5 Hz; the eight spectra of a frame are its channels
            nn.Conv1d(MELS * SPECTRA, 4 * c, 1),
            Residual(4 * c, kernel=1),
            Residual(4 * c, kernel=1),
            nn.Conv1d(4 * c, WIDTH, 1),
        )  # it sees one frame, so it streams, and silence is the same code wherever it is
        self.quantizer = Quantizer(config.levels, config.codebook)
        self.semantic = nn.Linear(WIDTH, 2 * MELS)
        self.decoder = nn.Sequential(
            nn.Conv1d(WIDTH, 4 * c, 1), Residual(4 * c, kernel=3), Residual(4 * c, kernel=3)
        )  # at 12.5 Hz
        self.spread = nn.Conv1d(4 * c, 2 * c * SPECTRA, 1)  # to 100 Hz
        last = nn.Conv1d(2 * c, self.fft // 2 + 1, 1)
        with torch.no_grad():
            last.bias.fill_(-1.0)  # type: ignore[union-attr]  # starts at silence; a convolution made so has a bias
        self.finish = nn.Sequential(Residual(2 * c, kernel=3), last)

    def spectrum(self, pcm: Tensor) -> Tensor:
        """PCM (B,N), N a multiple of the frame -> magnitudes (B,F,U), 1 for a full-scale sine."""
        pad = (self.fft - self.hop) // 2
        padded = F.pad(pcm, (pad, self.fft - self.hop - pad))
        complex_ = torch.stft(padded, self.fft, self.hop, window=self.window, center=False, return_complex=True)
        return complex_.abs() * (2 / self.window.sum())

    def log_mel(self, magnitude: Tensor) -> Tensor:
        """Magnitudes (B,F,U) -> log-mel (B,M,U), scaled to about [-1, 1]."""
        return scaled_log(self.filters @ magnitude)

    def latent(self, magnitude: Tensor) -> Tensor:
        """Magnitudes (B,F,U) -> one vector a frame, (B,T,D)."""
        mel = self.log_mel(magnitude).unflatten(2, (-1, SPECTRA))  # (B,M,T,8)
        return self.encoder(mel.transpose(2, 3).flatten(1, 2)).transpose(1, 2)

    def restore(self, latent: Tensor) -> Tensor:
        """Quantized vectors (B,T,D) -> scaled log-magnitudes (B,F,U)."""
        hidden = self.spread(self.decoder(latent.transpose(1, 2)))  # (B, 2c * 8, T)
        return self.finish(hidden.unflatten(1, (-1, SPECTRA)).transpose(2, 3).flatten(2))

    @torch.no_grad()
    def encode(self, pcm: Tensor, rate: int | None = None) -> Tensor:
        """PCM (n,) in [-1, 1] -> codes int64 (frames,Q); the end is padded with silence to a whole frame.

        Raises:
            DataError: another sample rate than the codec's, no samples, or values that are no PCM.
        """
        if rate is not None and rate != self.config.sample_rate:
            raise DataError(f"audio at {rate} Hz: this codec wants {self.config.sample_rate} Hz; resample it first")
        if pcm.ndim != 1 or not len(pcm):
            raise DataError(f"audio of shape {tuple(pcm.shape)}: wants one channel with at least one sample")
        if not pcm.is_floating_point() or not bool(torch.isfinite(pcm).all()) or float(pcm.abs().max()) > 1:
            raise DataError("audio: wants finite floats in [-1, 1]; divide 16-bit samples by 32768")
        padded = F.pad(pcm.float(), (0, -len(pcm) % self.config.frame_samples))
        return self.quantizer.encode(self.latent(self.spectrum(padded[None]))[0])

    @torch.no_grad()
    def decode(self, codes: Tensor, iterations: int = 32) -> Tensor:
        """Codes (frames,q) of the first q levels -> PCM float (frames * frame_samples,).

        Raises:
            DataError: no frames, too many levels, or a code outside the codebook.
        """
        if codes.ndim != 2 or not len(codes) or not 1 <= codes.shape[1] <= self.config.levels:
            raise DataError(f"audio codes of shape {tuple(codes.shape)}: wants (frames, 1..{self.config.levels})")
        if int(codes.min()) < 0 or int(codes.max()) >= self.config.codebook:
            raise DataError(f"audio codes: outside 0..{self.config.codebook - 1}; cut them at end-of-audio first")
        restored = self.restore(self.quantizer.decode(codes)[None])
        return self._invert(unscaled(restored)[0], iterations)

    def _invert(self, magnitude: Tensor, iterations: int) -> Tensor:
        """Magnitudes (F,U) -> PCM (N,), Griffin-Lim with momentum 0.9 from a fixed start."""
        length = magnitude.shape[1] * self.hop
        angle = torch.rand(magnitude.shape, generator=torch.Generator().manual_seed(0)) * 2 * math.pi
        phase, before = torch.polar(torch.ones_like(angle), angle), torch.zeros_like(angle, dtype=torch.complex64)
        target = magnitude * (self.window.sum() / 2)
        for _ in range(iterations):
            rebuilt = torch.stft(
                self._overlap_add(target * phase), self.fft, self.hop, window=self.window, center=False,
                return_complex=True,
            )  # fmt: skip
            ahead = rebuilt - 0.9 / 1.9 * before
            phase, before = ahead / ahead.abs().clamp_min(1e-9), rebuilt
        pad = (self.fft - self.hop) // 2
        return self._overlap_add(target * phase)[pad : pad + length].clamp(-1, 1)

    def _overlap_add(self, spectra: Tensor) -> Tensor:
        """Complex spectra (F,U) -> samples, least squares over the overlapping windows."""
        frames = torch.fft.irfft(spectra, n=self.fft, dim=0) * self.window[:, None]
        weights = (self.window**2)[:, None].expand_as(frames)
        size = (1, (spectra.shape[1] - 1) * self.hop + self.fft)
        both = F.fold(torch.stack([frames, weights]), size, (1, self.fft), stride=(1, self.hop))[:, 0, 0]
        return both[0] / both[1].clamp_min(1e-3)

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and `config.json` into `folder`."""
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, Path(folder) / "model.safetensors")
        (Path(folder) / "config.json").write_text(self.config.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "AudioTokenizer":
        """Read what `save` wrote, in evaluation mode.

        Raises:
            ArtifactError: a file is missing, damaged, or does not fit the configuration.
        """
        model = cls(AudioTokenizerConfig.from_json(read_file(Path(folder) / "config.json", "train_audio_tokenizer")))
        load_weights(model, Path(folder) / "model.safetensors", "train_audio_tokenizer")
        return model.eval()


def scaled_log(magnitude: Tensor) -> Tensor:
    """Log of magnitudes: silence -> -1, full scale -> 1."""
    return (magnitude.clamp_min(0) + FLOOR).log() / -math.log(FLOOR) * 2 + 1


def unscaled(value: Tensor) -> Tensor:
    """Inverse of `scaled_log`."""
    return (((value - 1) / 2 * -math.log(FLOOR)).exp() - FLOOR).clamp_min(0)
