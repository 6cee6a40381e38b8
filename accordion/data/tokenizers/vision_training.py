"""Stage train_vision_tokenizer: 2D training on images and frames, then a causal 3D phase on clips."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from accordion.config.data import VisionTokenizerConfig
from accordion.data.media import read_image
from accordion.data.tokenizers.vision import VisionTokenizer, accumulate, add_scale, quantize
from accordion.errors import DataError, TrainingDiverged
from accordion.observe import progress, record


@dataclass(frozen=True)
class Pictures:
    """What the tokenizer is trained and measured on: images (N,3,H,W) and clips (N,T,3,H,W), uint8."""

    images: Tensor
    clips: Tensor


def train_vision_tokenizer(config: VisionTokenizerConfig, *, out: Path, corpus: Path) -> dict[str, Any]:
    """Train on the corpus' images and clips and write `model.safetensors` and `config.json` into `out`.

    Returns:
        on held-out images and clip frames: PSNR in dB after each scale, entropy of the bits, dead bits.
    """
    pictures = {split: load_pictures(corpus, split, config) for split in ("train", "val")}
    for split, held in pictures.items():
        if not len(held.images) or not len(held.clips):
            raise DataError(f"{corpus}: no {split} images or clips; the vision tokenizer needs both in each split")
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = VisionTokenizer(config)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    loss = _fit(model, pictures["train"], generator)
    model.eval().save(out)
    held = pictures["val"]
    return {
        "loss": loss,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "image": measure(model, held.images.unsqueeze(1)),
        "video": measure(model, held.clips),
    }


def load_pictures(corpus: Path, split: str, config: VisionTokenizerConfig) -> Pictures:
    """Read one split of images.parquet and video.parquet."""
    images = pd.read_parquet(corpus / "images.parquet", columns=["id", "png", "split"])
    rows: Iterable[Any] = images[images["split"] == split].itertuples()
    pixels = [read_png(row.png, str(row.id), config.image_size) for row in rows]
    video = pd.read_parquet(corpus / "video.parquet", columns=["id", "frames", "n", "height", "width", "split"])
    scenes: Iterable[Any] = video[video["split"] == split].itertuples()
    clips = [clip for row in scenes for clip in read_clips(row, config.image_size, config.frames)]
    size = config.image_size
    return Pictures(
        torch.stack(pixels) if pixels else torch.empty(0, 3, size, size, dtype=torch.uint8),
        torch.stack(clips) if clips else torch.empty(0, config.frames, 3, size, size, dtype=torch.uint8),
    )


def read_png(data: bytes, name: str, size: int) -> Tensor:
    """An image as uint8 (3,size,size); transparent parts become white, another size is scaled to fit a square.

    Raises:
        DataError: the bytes are no readable image.
    """
    picture = Image.fromarray(read_image(data, f"image {name}"))
    if picture.size != (size, size):
        picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (size, size), "white")
    canvas.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1)


def read_clips(row: Any, size: int, frames: int) -> Iterator[Tensor]:
    """Cut a row of video.parquet into whole clips of `frames` frames, uint8 (frames,3,size,size).

    Raises:
        DataError: the bytes do not fit the stated shape, the frames are not `size` squares, or there are too few.
    """
    wanted = row.n * row.height * row.width * 3
    if len(row.frames) != wanted:
        raise DataError(f"video {row.id}: {len(row.frames)} bytes; {row.n} frames of its size are {wanted} bytes")
    if (row.height, row.width) != (size, size):
        raise DataError(f"video {row.id}: frames of {row.height}x{row.width}; wants {size}x{size}; run ingest again")
    if row.n < frames:
        raise DataError(f"video {row.id}: {row.n} frames; a clip has {frames}, set tokenizers.vision.frames")
    pixels = np.frombuffer(row.frames, np.uint8).reshape(row.n, size, size, 3)
    for start in range(0, row.n - frames + 1, frames):
        yield torch.from_numpy(pixels[start : start + frames].copy()).permute(0, 3, 1, 2)


def _fit(model: VisionTokenizer, pictures: Pictures, generator: torch.Generator) -> float:
    """Three quarters of the steps in 2D (images and single frames), the rest on clips beside images."""
    config = model.config
    flat = pictures.clips.flatten(0, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.01)
    turn = round(config.steps * 0.75)
    losses: list[float] = []
    model.train()
    for step in progress(range(config.steps), "vision tokenizer", unit="steps", note=lambda: _note(losses)):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, config.steps)
        half = config.batch // 2
        images = _draw(pictures.images, config.batch - half, generator).unsqueeze(1)
        images = torch.where(torch.rand(len(images), 1, 1, 1, 1, generator=generator) < 0.5, images, images.flip(-1))
        others = (
            _draw(flat, half, generator).unsqueeze(1)
            if step < turn
            else _draw(pictures.clips, max(half // config.frames, 1), generator)
        )
        loss = reconstruction_loss(model, images) * 0.5 + reconstruction_loss(model, others) * 0.5
        if not torch.isfinite(loss):
            raise TrainingDiverged(f"vision tokenizer: loss is {loss.item()} at step {step}; lower its learning_rate")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 10 == 0:
            record(step, {"loss/vision_tokenizer": loss.item()})
    return _recent(losses)


def _recent(losses: list[float]) -> float:
    """Mean of the last twenty losses."""
    return sum(losses[-20:]) / max(len(losses[-20:]), 1)


def _note(losses: list[float]) -> str:
    return f"loss {_recent(losses):.4f}"


def _draw(items: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return items[torch.randint(len(items), (count,), generator=generator)].float() / 255


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up over 5 % of the steps, then a cosine to a twentieth."""
    warm = max(steps // 20, 1)
    if step < warm:
        return (step + 1) / warm
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def reconstruction_loss(model: VisionTokenizer, frames: Tensor) -> Tensor:
    """Reconstruction, commitment and bit-usage terms for frames (B,T,3,H,W) in [0,1].

    |x - y| + 2 (x - y)^2 through the straight-through latent; commitment 0.25 (z - sg(q))^2 (VQ-VAE, arXiv
    1711.00937, equation 3); 0.02 (mean of tanh z)^2 for each bit, a light form of LFQ's batch entropy (arXiv
    2310.05737, section 3.1) that keeps every bit in use without pushing all codes to be equally likely.
    """
    latent = model.latent(frames)
    with torch.no_grad():
        code = accumulate(quantize(latent, model.config.scales))[1]
    restored = model.pixels(latent + (code - latent).detach())
    error = restored - frames
    usage = torch.tanh(latent).mean((0, 1, 2, 3)).square().mean()
    return error.abs().mean() + 2 * error.square().mean() + 0.25 * (latent - code).square().mean() + 0.02 * usage


@torch.no_grad()
def measure(model: VisionTokenizer, frames: Tensor) -> dict[str, Any]:
    """PSNR (dB, over all pixels) with all scales and the first k, bit entropy in bits, bits never or always set."""
    clips = frames.float() / 255
    bits = [torch.cat(parts) for parts in zip(*(model.encode(part) for part in clips.split(64)), strict=True)]
    psnr = []
    for kept in range(1, len(bits) + 1):
        latent = _partial_latent(bits, kept)
        restored = torch.cat([model.pixels(part).clamp(0, 1) for part in latent.split(64)])
        psnr.append(-10 * math.log10(float((restored - clips).square().mean())))
    share = torch.cat([grid.flatten(0, 3) for grid in bits]).double().mean(0)  # (D,)
    dead = (share < 0.001) | (share > 0.999)
    share = share.clamp(1e-12, 1 - 1e-12)
    entropy = -(share * share.log2() + (1 - share) * (1 - share).log2())
    return {
        "psnr": psnr[-1],
        "psnr_by_scales": psnr,
        "bit_entropy": float(entropy.mean()),
        "dead_bits": int(dead.sum()),
        "frames": int(clips.shape[0] * clips.shape[1]),
    }


def _partial_latent(bits: list[Tensor], kept: int) -> Tensor:
    """The latent (B,T,side,side,D) from the first `kept` scales."""
    count, frames, side = bits[-1].shape[:3]
    latent = torch.zeros(count * frames, side, side, bits[-1].shape[-1])
    for scale in range(kept):
        latent = add_scale(latent, bits[scale].flatten(0, 1), scale)
    return latent.unflatten(0, (count, frames))
