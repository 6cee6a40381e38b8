"""Stage train_audio_tokenizer: an autoencoder of log spectra first, then with its residual codebooks."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from accordion.config.data import AudioTokenizerConfig
from accordion.data.tokenizers.audio import FLOOR, MELS, SPECTRA, AudioTokenizer, Quantizer, scaled_log
from accordion.errors import DataError, TrainingDiverged
from accordion.observe import progress, record

SEGMENT = 16  # frames of a training example, 1.28 s
FREE_SHARE = 0.25  # of the steps, before quantization
DECAY = 0.97  # of the codebooks' moving averages
MEASURED_CLIPS = 16
DB = -20 * math.log10(FLOOR) / 2  # decibels of one unit of `scaled_log`


def train_audio_tokenizer(config: AudioTokenizerConfig, *, out: Path, corpus: Path) -> dict[str, Any]:
    """Train on the corpus' speech and write `model.safetensors` and `config.json` into `out`.

    Returns:
        on held-out clips, by the number of codes used: mel distance (mean absolute, dB) and SI-SDR (dB);
        perplexity and share of used entries of each codebook.
    """
    clips = {split: load_clips(corpus, split, config) for split in ("train", "val")}
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = AudioTokenizer(config)
    loss = _fit(model, clips["train"], generator)
    model.eval().save(out)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"loss": loss, "parameters": parameters, **measure(model, clips["val"])}


def load_clips(corpus: Path, split: str, config: AudioTokenizerConfig) -> list[Tensor]:
    """The clips of one split of audio.parquet, float PCM in [-1, 1].

    Raises:
        DataError: a clip has another rate, is empty, or the split has none.
    """
    table = pd.read_parquet(corpus / "audio.parquet", columns=["id", "pcm", "rate", "split"])
    rows: Iterable[Any] = table[table["split"] == split].itertuples()
    clips = [read_pcm(row.pcm, int(row.rate), str(row.id), config.sample_rate) for row in rows]
    if not clips:
        raise DataError(f"{corpus}/audio.parquet: no {split} clips; the audio tokenizer needs some in each split")
    return clips


def read_pcm(data: bytes, rate: int, name: str, wanted: int) -> Tensor:
    """16-bit little-endian PCM as floats in [-1, 1].

    Raises:
        DataError: wrong rate, no samples, or half a sample.
    """
    if rate != wanted:
        raise DataError(f"audio {name}: {rate} Hz; wants {wanted} Hz, resample it at ingest")
    if not data or len(data) % 2:
        raise DataError(f"audio {name}: {len(data)} bytes are no 16-bit samples; remove or replace it")
    return torch.from_numpy(np.frombuffer(data, "<i2").astype(np.float32) / 32768)


def _fit(model: AudioTokenizer, clips: list[Tensor], generator: torch.Generator) -> float:
    config = model.config
    frame = config.frame_samples
    padded = [F.pad(clip, (0, max(SEGMENT * frame - len(clip), -len(clip) % frame))) for clip in clips]
    spectra = [model.spectrum(clip[None])[0] for clip in padded]  # (F,U) each
    weights = torch.tensor([float(spectrum.shape[1]) for spectrum in spectra])
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.01)
    start = round(config.steps * FREE_SHARE)
    losses: list[float] = []
    model.train()
    for step in progress(range(config.steps), "audio tokenizer", unit="steps", note=lambda: _note(losses)):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min((step + 1) / 20, 1.0, 1.05 - step / config.steps)
        if step == start:
            _place_codebooks(model, spectra, generator)
        drawn = torch.multinomial(weights, config.batch, replacement=True, generator=generator)
        batch = torch.stack([_segment(spectra[i], generator) for i in drawn.tolist()])
        loss = codec_loss(model, batch, generator, quantized=step >= start)
        if not torch.isfinite(loss):
            raise TrainingDiverged(f"audio tokenizer: loss is {loss.item()} at step {step}; lower its learning_rate")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 10 == 0:
            record(step, {"loss/audio_tokenizer": loss.item()})
    return _recent(losses)


def _recent(losses: list[float]) -> float:
    """Mean of the last twenty losses."""
    return sum(losses[-20:]) / max(len(losses[-20:]), 1)


def _note(losses: list[float]) -> str:
    return f"loss {_recent(losses):.4f}"


def _segment(spectrum: Tensor, generator: torch.Generator) -> Tensor:
    start = int(torch.randint(spectrum.shape[1] // SPECTRA - SEGMENT + 1, (1,), generator=generator))
    return spectrum[:, start * SPECTRA : (start + SEGMENT) * SPECTRA]


def codec_loss(model: AudioTokenizer, magnitude: Tensor, generator: torch.Generator, *, quantized: bool) -> Tensor:
    """Loss of a batch of magnitude spectra (B,F,U); the codebooks move as well when `quantized`.

    L1 and square of log spectra, L1 of them averaged over 2 and 4 spectra and mel bands (multi-resolution,
    SoundStream section III.E); commitment 0.25 (z - sg(q))^2; for code 1 the squared error of log-mel
    halves of the frame predicted from its vector alone (distillation, SpeechTokenizer, arXiv 2308.16692,
    section 3.3, with log-mel in place of a teacher). The number of levels is drawn (quantizer dropout).
    """
    latent = model.latent(magnitude)
    target, mel = scaled_log(magnitude), model.log_mel(magnitude)
    code, extra = latent, latent.new_zeros(())
    if quantized:
        flat = latent.detach().flatten(0, 1)
        codes = model.quantizer.encode(flat)
        _move_codebooks(model.quantizer, flat, codes, generator)
        levels = model.config.levels
        draw = int(torch.randint(levels * 2, (1,), generator=generator)) + 1
        used = model.quantizer.decode(codes[:, : min(draw, levels)]).view_as(latent)
        first = model.quantizer.decode(codes[:, :1]).view_as(latent)
        whole = model.quantizer.decode(codes).view_as(latent)
        code = latent + (used - latent).detach()
        first = latent + (first - latent).detach()
        extra = 0.25 * (latent - whole).square().mean() + 0.5 * _semantic_loss(model, first, mel)
    else:
        extra = 0.5 * _semantic_loss(model, latent, mel)
    error = model.restore(code) - target
    spectral = sum((F.avg_pool1d(error, size) if size > 1 else error).abs().mean() for size in (1, 2, 4))
    bands = (model.filters @ error).abs().mean()
    return spectral / 3 + bands + error.square().mean() + extra


def _semantic_loss(model: AudioTokenizer, vectors: Tensor, mel: Tensor) -> Tensor:
    """Squared error of the log-mel means of both halves of each frame, from vectors (B,T,D)."""
    halves = F.avg_pool1d(mel, SPECTRA // 2).unflatten(2, (-1, 2))  # (B,M,T,2)
    return F.mse_loss(model.semantic(vectors), halves.permute(0, 2, 3, 1).reshape(*vectors.shape[:2], 2 * MELS))


@torch.no_grad()
def _place_codebooks(model: AudioTokenizer, spectra: list[Tensor], generator: torch.Generator) -> None:
    """Start each codebook with ten rounds of k-means on the residuals of the training clips."""
    residual = torch.cat([model.latent(spectrum[None])[0] for spectrum in spectra])
    quantizer = model.quantizer
    size = quantizer.codebooks.shape[1]
    if len(residual) < size:
        raise DataError(
            f"audio: {len(residual)} frames cannot fill a codebook of {size}; lower tokenizers.audio.codebook"
        )
    residual = residual[torch.randperm(len(residual), generator=generator)[:4096]]
    for level in range(len(quantizer.codebooks)):
        centres = residual[torch.randperm(len(residual), generator=generator)[:size]].clone()
        for _ in range(10):
            assigned = F.one_hot(torch.cdist(residual, centres).argmin(1), size).float()
            held = assigned.sum(0)
            centres = torch.where(held[:, None] > 0, assigned.T @ residual / held.clamp_min(1)[:, None], centres)
        quantizer.codebooks[level] = centres
        quantizer.counts[level] = held / held.mean()
        quantizer.sums[level] = centres * quantizer.counts[level, :, None]
        residual = residual - centres[quantizer.nearest(residual, level)]


@torch.no_grad()
def _move_codebooks(quantizer: Quantizer, latent: Tensor, codes: Tensor, generator: torch.Generator) -> None:
    """Move each entry towards the mean of its residuals; entries nothing falls on restart at a random residual."""
    residual = latent
    for level, size in enumerate([quantizer.codebooks.shape[1]] * codes.shape[1]):
        assigned = F.one_hot(codes[:, level], size).float()
        scale = size / len(latent)  # so that a fairly used entry counts 1
        quantizer.counts[level].lerp_(assigned.sum(0) * scale, 1 - DECAY)
        quantizer.sums[level].lerp_(assigned.T @ residual * scale, 1 - DECAY)
        after = residual - quantizer.codebooks[level][codes[:, level]]
        dead = quantizer.counts[level] < 0.02
        if dead.any():
            fresh = residual[torch.randint(len(residual), (int(dead.sum()),), generator=generator)]
            quantizer.counts[level][dead] = 1.0
            quantizer.sums[level][dead] = fresh
        quantizer.codebooks[level] = quantizer.sums[level] / quantizer.counts[level, :, None]
        residual = after


@torch.no_grad()
def measure(model: AudioTokenizer, clips: list[Tensor]) -> dict[str, Any]:
    """Mel distance and SI-SDR by number of codes, codebook use and perplexity by level, on whole clips."""
    codes = [model.encode(clip) for clip in clips]
    levels, size = model.config.levels, model.config.codebook
    mel_distance: list[float] = []
    si_sdr: list[float] = []
    for used in range(1, levels + 1):
        distances, ratios = [], []
        for clip, code in list(zip(clips, codes, strict=True))[:MEASURED_CLIPS]:
            restored = model.decode(code[:, :used])
            reference = F.pad(clip, (0, len(restored) - len(clip)))
            mels = [model.log_mel(model.spectrum(pcm[None])) for pcm in (reference, restored)]
            distances.append(float((mels[0] - mels[1]).abs().mean()) * DB)
            ratios.append(scale_invariant_sdr(restored, reference))
        mel_distance.append(sum(distances) / len(distances))
        si_sdr.append(sum(ratios) / len(ratios))
    share = F.one_hot(torch.cat(codes), size).double().mean(0)  # (Q,C)
    perplexity = torch.exp(-(share * share.clamp_min(1e-12).log()).sum(1))
    return {
        "mel_distance_db_by_codes": mel_distance,
        "si_sdr_db_by_codes": si_sdr,
        "perplexity_by_level": perplexity.tolist(),
        "used_entries_by_level": (share > 0).double().mean(1).tolist(),
        "clips": min(len(clips), MEASURED_CLIPS),
        "frames": sum(len(code) for code in codes),
    }


def scale_invariant_sdr(estimate: Tensor, reference: Tensor) -> float:
    """SI-SDR in dB (Le Roux et al., arXiv 1811.02508, equation 3)."""
    scaled = (estimate @ reference) / reference.square().sum().clamp_min(1e-12) * reference
    return float(10 * torch.log10(scaled.square().sum().clamp_min(1e-12) / (scaled - estimate).square().sum()))
