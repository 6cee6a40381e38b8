"""Audio tokenizer: residual vector quantization of speech at 12.5 frames a second.

The encoder maps the log-mel spectra of a frame (eight, 10 ms apart) and of the few before it to one vector every
80 ms; `levels` codebooks quantize it one after the other; the decoder restores the log-magnitude spectra. Encoder and
decoder start as the best linear maps (principal components, least squares) and learn residual blocks on top, so
minutes of speech and seconds of training are enough. Code 1 is distilled from a speech encoder, the others carry the
acoustic rest; any number of leading codes can be decoded. A few hundred bits a second cannot carry phase: it is
rebuilt from the magnitudes (docs/decisions/0010). The encoder is causal: a code needs no sound after its own 80 ms.

Legend: B batch, N samples, T frames of 12.5 Hz, U spectra (8 a frame), M mel bands, F bins, D width, Q levels.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from accordion.config.data import AudioTokenizerConfig
from accordion.data.tokenizers.audio_quantizer import Quantizer, ridge
from accordion.data.tokenizers.audio_spectra import DB, Spectra, unscaled
from accordion.data.tokenizers.vision import load_weights, read_file
from accordion.data.tokenizers.voice import VoiceEncoder
from accordion.errors import DataError

SPECTRA = 8  # of a frame
MELS = 32
TAIL = 0.02  # standard deviation of weights that a closed-form start leaves free


class Residual(nn.Module):
    """x + linear(silu(conv(norm(x)))) over (B,T,C), nothing but x at the start; `before`, `after`: steps it sees."""

    def __init__(self, channels: int, before: int, after: int) -> None:
        super().__init__()
        self.reach = (before, after)
        self.norm = nn.LayerNorm(channels)
        self.first = nn.Conv1d(channels, channels, before + 1 + after)
        self.second = nn.Linear(channels, channels)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(F.pad(self.norm(x).transpose(1, 2), self.reach))
        return x + self.second(F.silu(hidden).transpose(1, 2))


class Encoder(nn.Module):
    """Log-mel spectra (B,M,U) to one vector a frame (B,T,D)."""

    def __init__(self, config: AudioTokenizerConfig) -> None:
        super().__init__()
        wide = 4 * config.channels
        self.reduce = nn.Linear(MELS * SPECTRA, wide)
        self.blocks = nn.Sequential(*(Residual(wide, config.context, 0) for _ in range(config.blocks)))
        self.narrow = nn.Linear(wide, config.width)

    def forward(self, mel: Tensor) -> Tensor:
        return self.narrow(self.blocks(self.reduce(stacked(mel))))

    @torch.no_grad()
    def place(self, mel: Tensor) -> None:
        """Start as the principal components of stacked spectra (B,M,U): the vectors' mean variance is 1."""
        frames = stacked(mel).flatten(0, 1)
        mean, axes, spread = components(frames, self.reduce.out_features)
        width = self.narrow.out_features
        scale = spread[:width].mean().clamp_min(1e-8).rsqrt()
        self.reduce.weight.zero_()[: len(axes)] = axes * scale
        self.reduce.bias.copy_(self.reduce.weight @ -mean)
        self.narrow.weight.zero_()
        self.narrow.weight[:, :width] = torch.eye(width)
        self.narrow.bias.zero_()


class Decoder(nn.Module):
    """One vector a frame (B,T,D) to scaled log-magnitudes of its eight spectra (B,F,U)."""

    def __init__(self, config: AudioTokenizerConfig, bins: int) -> None:
        super().__init__()
        c = config.channels
        self.widen = nn.Linear(config.width, 4 * c)
        self.blocks = nn.Sequential(*(Residual(4 * c, 1, 1) for _ in range(config.blocks)))
        self.spread = nn.Linear(4 * c, 2 * c * SPECTRA)  # to 100 Hz
        self.finish = Residual(2 * c, 1, 1)
        self.bins = nn.Linear(2 * c, bins)

    def forward(self, latent: Tensor) -> Tensor:
        hidden = self.spread(self.blocks(self.widen(latent))).unflatten(2, (SPECTRA, -1)).flatten(1, 2)
        return self.bins(self.finish(hidden)).transpose(1, 2)

    @torch.no_grad()
    def place(self, latent: Tensor, target: Tensor) -> None:
        """Start as the least squares of spectra (B,F,U) on the vectors of their frames (B,T,D)."""
        spectra = target.transpose(1, 2)  # (B,U,F)
        mean, axes, _ = components(spectra.flatten(0, 1), self.bins.in_features)
        scores = ((spectra - mean) @ axes.T).unflatten(1, (-1, SPECTRA))  # (B,T,8,2c)
        scores = F.pad(scores, (0, self.bins.in_features - len(axes))).flatten(2).flatten(0, 1)
        vectors = latent.flatten(0, 1)
        width = vectors.shape[1]
        self.widen.weight.zero_()[:width] = torch.eye(width)
        self.widen.bias.zero_()
        nn.init.normal_(self.spread.weight, std=TAIL)
        self.spread.weight[:, :width] = ridge(vectors - vectors.mean(0), scores - scores.mean(0)).T
        self.spread.bias.copy_(scores.mean(0) - self.spread.weight[:, :width] @ vectors.mean(0))
        nn.init.normal_(self.bins.weight, std=TAIL)
        self.bins.weight[:, : len(axes)] = axes.T
        self.bins.bias.copy_(mean)


class AudioTokenizer(nn.Module):
    """PCM to codes and back; see the module's text.

    Attributes:
        voices: describes who speaks, in the terms of the speech this was trained on.
    """

    def __init__(self, config: AudioTokenizerConfig) -> None:
        super().__init__()
        if config.frame_samples % SPECTRA:
            raise DataError(f"tokenizers.audio.frame_samples: {config.frame_samples} is no multiple of {SPECTRA}")
        self.config = config
        self.spectra = Spectra(config.sample_rate, config.frame_samples // SPECTRA, MELS)
        self.encoder = Encoder(config)
        self.quantizer = Quantizer(config.levels, config.codebook, config.width)
        self.decoder = Decoder(config, self.spectra.bins)
        self.voices = VoiceEncoder(config.sample_rate)

    @property
    def bits_per_second(self) -> float:
        """Rate of all levels."""
        config = self.config
        return config.sample_rate / config.frame_samples * config.levels * math.log2(config.codebook)

    def latent(self, magnitude: Tensor) -> Tensor:
        """Magnitudes (B,F,U) -> one vector a frame, (B,T,D)."""
        return self.encoder(self.spectra.log_mel(magnitude))

    @torch.no_grad()
    def encode(self, pcm: Tensor, rate: int | None = None) -> Tensor:
        """PCM (n,) in [-1, 1] -> codes int64 (frames,Q); the end is padded with silence to a whole frame.

        Raises:
            DataError: another sample rate than the codec's, no samples, or values that are no PCM.
        """
        if rate is not None and rate != self.config.sample_rate:
            raise DataError(f"audio at {rate} Hz: this codec wants {self.config.sample_rate} Hz; resample it first")
        return self.encode_batch([pcm])[0]

    @torch.no_grad()
    def encode_batch(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """`encode` of each clip in one pass; no frame sees what comes after it, so the silence at the end of shorter
        ones changes nothing.

        Raises:
            DataError: no samples, or values that are no PCM.
        """
        for pcm in clips:
            if pcm.ndim != 1 or not len(pcm):
                raise DataError(f"audio of shape {tuple(pcm.shape)}: wants one channel with at least one sample")
            if not pcm.is_floating_point() or not bool(torch.isfinite(pcm).all()) or float(pcm.abs().max()) > 1:
                raise DataError("audio: wants finite floats in [-1, 1]; divide 16-bit samples by 32768")
        frames = [-(-len(pcm) // self.config.frame_samples) for pcm in clips]
        length = max(frames) * self.config.frame_samples
        padded = torch.stack([F.pad(pcm.float(), (0, length - len(pcm))) for pcm in clips])
        latent = self.latent(self.spectra(padded))  # (B,T,D)
        own = torch.cat([latent[clip, :count] for clip, count in enumerate(frames)])
        return list(self.quantizer.encode(own).split(frames))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (frames,q) of the first q levels -> PCM float (frames * frame_samples,).

        Raises:
            DataError: no frames, too many levels, or a code outside the codebook.
        """
        return self.spectra.invert(self.magnitudes(codes), self.config.rounds)

    @torch.no_grad()
    def magnitudes(self, codes: Tensor) -> Tensor:
        """Codes (frames,q) -> magnitudes (F,U), the decoder's part of `decode`."""
        if codes.ndim != 2 or not len(codes) or not 1 <= codes.shape[1] <= self.config.levels:
            raise DataError(f"audio codes of shape {tuple(codes.shape)}: wants (frames, 1..{self.config.levels})")
        if int(codes.min()) < 0 or int(codes.max()) >= self.config.codebook:
            raise DataError(f"audio codes: outside 0..{self.config.codebook - 1}; cut them at end-of-audio first")
        return unscaled(self.decoder(self.quantizer.decode(codes)[None]))[0]

    def mel_distance(self, made: Tensor, real: Tensor) -> float:
        """Mean absolute difference of the log-mel spectra of two sounds (n,) of whole frames, in dB."""
        mels = [self.spectra.log_mel(self.spectra(pcm[None])) for pcm in (made, real)]
        return float((mels[0] - mels[1]).abs().mean()) * DB

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and `config.json` into `folder`."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}
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


def stacked(mel: Tensor) -> Tensor:
    """Log-mel spectra (B,M,U) -> the eight of each frame side by side (B, T, 8 M)."""
    return mel.transpose(1, 2).unflatten(1, (-1, SPECTRA)).flatten(2)


def components(rows: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (W,) of rows (N,W), their first `most` principal axes (<= most, W), and the variance along each."""
    mean = rows.mean(0)
    spread, axes = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    return mean, axes.flip(1).T[:most], spread.flip(0)[:most]
