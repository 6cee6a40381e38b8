"""Stage train_audio_tokenizer: a start in closed form, then training through the residual codebooks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accordion.config.data import AudioTokenizerConfig
from accordion.data.tables import require_columns
from accordion.data.tokenizers.audio import AudioTokenizer
from accordion.data.tokenizers.audio_measure import measure
from accordion.data.tokenizers.audio_spectra import scaled_log, unscaled
from accordion.data.tokenizers.audio_teacher import Clip, Taught, digest, teach
from accordion.data.tokenizers.voice import told_apart
from accordion.device import training_device
from accordion.errors import DataError, TrainingDiverged
from accordion.observe import progress, record

GAIN = 0.5  # quietest training example, as a factor
PLACED_BATCHES = 24  # examples of so many batches place the maps and the codebooks
COMMITMENT = 0.25
WARM_UP = 20  # steps


def train_audio_tokenizer(config: AudioTokenizerConfig, *, out: Path, corpus: Path) -> dict[str, Any]:
    """Train on the corpus' speech and write `model.safetensors` and `config.json` into `out`.

    Returns:
        on held-out clips, by the number of codes: mel distance (dB), SI-SDR (dB), ESTOI; perplexity and share of used
        entries of each codebook; bit rate; which teacher taught code 1, and what each code tells of its features; from
        how many sounds voices were learnt to be told apart, and how well they are in held-out clips.
    """
    train, held_out = (load_clips(corpus, split, config) for split in ("train", "val"))
    model, loss, teacher = fit(config, train)
    voices = model.voices.place([clip.pcm for clip in train], [clip.speaker for clip in train])
    model.save(out)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    voices |= told_apart(model.voices, held_out)
    return {"loss": loss, "parameters": parameters, "teacher": teacher, "voices": voices, **measure(model, held_out)}


def load_clips(corpus: Path, split: str, config: AudioTokenizerConfig) -> list[Clip]:
    """The clips of one split of audio.parquet.

    Raises:
        DataError: a clip has another rate, is empty, or the split has none.
    """
    path, columns = corpus / "audio.parquet", ["id", "pcm", "rate", "language", "speaker", "split"]
    require_columns(path, columns, pq.read_schema(path).names)
    table = pd.read_parquet(path, columns=columns)
    rows: Iterable[Any] = table[table["split"] == split].itertuples()
    clips = [
        Clip(name=str(row.id), pcm=read_pcm(row.pcm, int(row.rate), str(row.id), config.sample_rate),
             language=str(row.language), digest=digest(row.pcm), speaker=str(row.speaker))
        for row in rows
    ]  # fmt: skip
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


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Training examples: magnitudes (B,F,U), teacher features (B,T,K), and where these are known (B,T)."""

    magnitude: Tensor
    taught: Tensor
    known: Tensor


class Examples:
    """Draws segments of clips that begin at any sample, each at its own loudness.

    All clips lie end to end, each after the silence that its first window covers. A segment that begins between two
    frames has teacher features between theirs.
    """

    def __init__(self, model: AudioTokenizer, clips: Sequence[Clip], taught: Taught, device: torch.device) -> None:
        self.config, self.spectra, self.device = model.config, model.spectra, device
        frame = self.config.frame_samples
        self.length = self.config.segment * frame
        width = next(feature.shape[1] for feature in taught.features if feature is not None)
        lead = -(-self.spectra.before // frame)  # frames of silence before each clip
        pieces, features, starts, room, at = [], [], [], [], lead * frame
        for clip, feature in zip(clips, taught.features, strict=True):
            padded = F.pad(clip.pcm, (0, max(self.length - len(clip.pcm), -len(clip.pcm) % frame)))
            table = torch.zeros(lead + len(padded) // frame, width + 1)  # the last column: known
            if feature is not None:
                told = feature[: len(table) - lead]
                table[lead : lead + len(told)] = F.pad(told, (0, 1), value=1.0)
            pieces.append(F.pad(padded, (lead * frame, 0)))
            features.append(table)
            starts.append(at)
            room.append(len(padded) - self.length + 1)
            at += len(padded) + lead * frame
        self.pcm, self.taught = torch.cat(pieces).to(device), torch.cat(features).to(device)
        self.starts, self.room = torch.tensor(starts), torch.tensor(room)
        self.weights = (self.room + self.length).double()

    def draw(self, generator: torch.Generator) -> Batch:
        """One batch."""
        config, frame = self.config, self.config.frame_samples
        chosen = torch.multinomial(self.weights, config.batch, replacement=True, generator=generator)
        offset = (torch.rand(config.batch, generator=generator, dtype=torch.float64) * self.room[chosen]).long()
        gain = (GAIN ** torch.rand(config.batch, generator=generator)).to(self.device)
        begin = (self.starts[chosen] + offset).to(self.device)
        samples = begin[:, None] + torch.arange(-self.spectra.before, self.length, device=self.device)
        magnitude = self.spectra(self.pcm[samples] * gain[:, None], padded=True)
        steps = (begin // frame)[:, None] + torch.arange(config.segment, device=self.device)
        share = ((begin % frame).float() / frame)[:, None, None]
        after = (steps + 1).clamp_max(len(self.taught) - 1)
        taught = self.taught[steps] * (1 - share) + self.taught[after] * share
        return Batch(magnitude=magnitude, taught=taught[..., :-1], known=taught[..., -1])


def fit(config: AudioTokenizerConfig, clips: Sequence[Clip]) -> tuple[AudioTokenizer, float, dict[str, Any]]:
    """Train a tokenizer on `clips`, on a GPU if there is one.

    Returns:
        the tokenizer on the CPU in evaluation mode; the mean of its last losses; who taught code 1 (`name`, and the
        share of the clips that it `knows`).

    Raises:
        TrainingDiverged: the loss is no number.
    """
    device, generator = training_device(), torch.Generator().manual_seed(config.seed)
    taught = teach(clips, config.teacher, config.sample_rate, config.frame_samples)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = AudioTokenizer(config)
        examples = Examples(model.to(device), clips, taught, device)
        place(model, [examples.draw(generator) for _ in range(PLACED_BATCHES)], generator)
        teacher = nn.Linear(config.width, examples.taught.shape[1] - 1).to(device)
    optimizer = torch.optim.AdamW([*model.parameters(), *teacher.parameters()], lr=config.learning_rate,
                                  betas=(0.9, 0.99), weight_decay=0.01, fused=device.type == "cuda")  # fmt: skip
    losses: list[float] = []
    model.train()
    for step in progress(range(config.steps), "audio tokenizer", unit="steps", note=lambda: _note(losses)):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min((step + 1) / WARM_UP, 1.0, 1.02 - step / config.steps)
        loss = codec_loss(model, teacher, examples.draw(generator), generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 0 or step == config.steps - 1:
            losses.append(loss.item())
            if not np.isfinite(losses[-1]):
                raise TrainingDiverged(f"audio tokenizer: loss is {losses[-1]} at step {step}; lower its learning_rate")
            record(step, {"loss/audio_tokenizer": losses[-1]})
    return model.cpu().eval(), _recent(losses), {"name": taught.teacher, "knows": taught.known}


def _recent(losses: Sequence[float]) -> float:
    """Mean of the last three recorded losses."""
    return sum(losses[-3:]) / max(len(losses[-3:]), 1)


def _note(losses: Sequence[float]) -> str:
    return f"loss {_recent(losses):.4f}"


@torch.no_grad()
def place(model: AudioTokenizer, batches: Sequence[Batch], generator: torch.Generator) -> None:
    """Start in closed form on the examples of some batches: encoder, codebooks, decoder."""
    magnitude = torch.cat([batch.magnitude for batch in batches])
    taught = torch.cat([batch.taught for batch in batches]).flatten(0, 1)
    known = torch.cat([batch.known for batch in batches]).flatten() > 0.5
    model.encoder.place(model.spectra.log_mel(magnitude))
    latent = model.latent(magnitude)
    model.quantizer.place(latent.flatten(0, 1), taught, known, generator, semantic=model.config.semantic)
    coded = model.quantizer.decode(model.quantizer.encode(latent.flatten(0, 1))).view_as(latent)
    model.decoder.place(coded, scaled_log(magnitude))


def codec_loss(model: AudioTokenizer, teacher: nn.Linear, batch: Batch, generator: torch.Generator) -> Tensor:
    """Loss of a batch; the codebooks move as well.

    Half of the examples are decoded from a drawn number of codes (quantizer dropout, arXiv 2107.03312, section
    III.C). Commitment: (z - sg(q))^2. Distillation: see `semantic_loss`.
    """
    config = model.config
    latent = model.latent(batch.magnitude)
    flat = latent.detach().flatten(0, 1)
    codes = model.quantizer.encode(flat)
    parts = [book[codes[:, level]].view_as(latent) for level, book in enumerate(model.quantizer.codebooks)]
    model.quantizer.move(flat, codes, generator)
    draw = torch.randint(1, 2 * config.levels + 1, (len(latent), 1, 1), generator=generator).to(latent.device)
    used = torch.stack([part * (draw > level) for level, part in enumerate(parts)]).sum(0)
    straight = latent - latent.detach()  # 0, with the gradient of the latent
    commitment = (latent - torch.stack(parts).sum(0)).square().mean()
    return (
        spectral_loss(model, model.decoder(used + straight), batch.magnitude)
        + COMMITMENT * commitment
        + config.distillation * semantic_loss(teacher(parts[0] + straight), batch)
    )


def spectral_loss(model: AudioTokenizer, made: Tensor, magnitude: Tensor) -> Tensor:
    """Distance of decoded scaled log-magnitudes (B,F,U) from magnitudes (B,F,U).

    Absolute difference of log spectra and of log-mel bands, both also averaged over 2 and 4 spectra (several
    resolutions in time, SoundStream section III.E), and squared difference of log spectra.
    """
    error = made - scaled_log(magnitude)
    mel = model.spectra.log_mel(unscaled(made)) - model.spectra.log_mel(magnitude)
    smooth = [part if size == 1 else F.avg_pool1d(part, size) for part in (error, mel) for size in (1, 2, 4)]
    return sum((part.abs().mean() for part in smooth), error.square().mean()) / 2


def semantic_loss(read: Tensor, batch: Batch) -> Tensor:
    """Squared error over variance 1 plus half the cosine distance (SpeechTokenizer, arXiv 2308.16692, section 3.3).

    Args:
        read: features (B,T,K) that a linear map reads off what code 1 adds to the vector.
    """
    apart = (read - batch.taught).square().mean(-1) + 0.5 * (1 - F.cosine_similarity(read, batch.taught, dim=-1))
    return (apart * batch.known).sum() / batch.known.sum().clamp_min(1)
