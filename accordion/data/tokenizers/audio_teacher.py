"""What code 1 of the audio tokenizer learns: features of a speech encoder, or mel cepstra where there are none.

A teacher file (`.npz`, made by data/build_teacher.py) holds `digest` (clips,32): SHA-256 of each clip's 16-bit
little-endian samples; `frames` (clips,): how many features it has, one each 80 ms; `values` int8 (all frames,K);
`scale`: what they were divided by. Clips are found by their sound, so it fits every corpus that holds them. A corpus
that it mostly does not know is taught by mel cepstra instead, which is said on the terminal and in the metrics.
"""

import hashlib
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from accordion.data.tokenizers.audio_spectra import Spectra
from accordion.errors import ConfigError, DataError
from accordion.home import REPOSITORY
from accordion.observe import say

LEAST_KNOWN = 0.5  # share of the clips that a teacher file must know to be the teacher
BANDS, CEPSTRA = 24, 13
CEPSTRA_NAME = "mel cepstra"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One recording: float PCM (n,), its language, the digest of its 16-bit samples, who speaks (empty: unknown)."""

    name: str
    pcm: Tensor
    language: str
    digest: str
    speaker: str = ""


@dataclass(frozen=True, kw_only=True)
class Taught:
    """Features (T,K) of each clip, or None for one that the teacher did not hear; which teacher; share it knows."""

    features: Sequence[Tensor | None]
    teacher: str
    known: float


def digest(data: bytes) -> str:
    """SHA-256 of 16-bit little-endian samples."""
    return hashlib.sha256(data).hexdigest()


def read_teacher(path: str) -> dict[str, Tensor]:
    """Digest of a clip -> its features (T,K).

    Raises:
        ConfigError: there is no such file.
        DataError: it is no teacher file.
    """
    file = REPOSITORY / path
    if not file.is_file():
        raise ConfigError(
            f"tokenizers.audio.teacher: no file {file}; make it with data/build_teacher.py, or set it to null"
        )
    try:
        with np.load(file) as table:
            digests, frames, values = table["digest"], table["frames"], table["values"]
            scale = float(table["scale"])
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{file}: no teacher file ({error}); make it again with data/build_teacher.py") from None
    if len(digests) != len(frames) or int(frames.sum()) != len(values):
        raise DataError(f"{file}: its tables do not fit each other; make it again with data/build_teacher.py")
    starts = np.concatenate([[0], np.cumsum(frames)])
    return {
        bytes(name).hex(): torch.from_numpy(values[start:end].astype(np.float32) * scale)
        for name, start, end in zip(digests, starts[:-1], starts[1:], strict=True)
    }


def teach(clips: Sequence[Clip], teacher: str | None, rate: int, frame: int) -> Taught:
    """Features of each clip, of mean 0 and variance 1 over all of them.

    Args:
        teacher: a teacher file, relative to the repository; None: mel cepstra. These also stand in for a file that
            knows less than half of the clips.
    """
    found: list[Tensor | None] = [None] * len(clips)
    known = 0.0
    if teacher is not None:
        table = read_teacher(teacher)
        found = [table.get(clip.digest) for clip in clips]
        known = sum(feature is not None for feature in found) / len(clips)
        if known < LEAST_KNOWN:
            say(
                f"audio tokenizer: {teacher} knows {known:.0%} of {len(clips)} clips, so {CEPSTRA_NAME} teach code 1; "
                "data/build_teacher.py makes a file for other speech"
            )
    if known < LEAST_KNOWN:
        found, teacher, known = [cepstra(clip.pcm, rate, frame) for clip in clips], CEPSTRA_NAME, 1.0
    whole = torch.cat([feature for feature in found if feature is not None])
    mean, spread = whole.mean(0), (whole - whole.mean(0)).square().mean().sqrt().clamp_min(1e-6)
    scaled = [None if feature is None else (feature - mean) / spread for feature in found]
    return Taught(features=scaled, teacher=str(teacher), known=known)


def cepstra(pcm: Tensor, rate: int, frame: int) -> Tensor:
    """13 mel cepstra of both halves of each frame less their means over the clip: PCM (n,) -> (T,26).

    What HuBERT's first stage learns from (arXiv 2106.07447, section 3.1); the mean carries voice and channel.
    """
    spectra = Spectra(rate, frame // 8, BANDS)
    mel = spectra.log_mel(spectra(F.pad(pcm, (0, -len(pcm) % frame))[None]))[0].T  # (U,M)
    turn = torch.cos(math.pi / BANDS * torch.outer(torch.arange(BANDS) + 0.5, torch.arange(CEPSTRA)))
    halves = (mel @ turn).unflatten(0, (-1, 2, 4)).mean(2).flatten(1)  # (T, 2 * 13)
    return halves - halves.mean(0)
