"""Figures of the audio tokenizer on clips it did not learn from: reconstruction, use of the codes, what they tell."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pystoi import stoi
from torch import Tensor

from accordion.data.tokenizers.audio import AudioTokenizer
from accordion.data.tokenizers.audio_quantizer import centres
from accordion.data.tokenizers.audio_teacher import Clip, teach

MEASURED_CLIPS = 16
UNITS = 40  # clusters of the teacher's features, about as many as a language has phones
DRAWS = 5  # shuffles of a null
QUIET = 0.01  # a frame whose root mean square is below this has no unit


def measure(model: AudioTokenizer, clips: Sequence[Clip]) -> dict[str, Any]:
    """Reconstruction by number of codes, codebook use and perplexity by level, and the probe; on whole clips."""
    codes = [model.encode(clip.pcm) for clip in clips]
    levels, size = model.config.levels, model.config.codebook
    chosen = np.unique(np.linspace(0, len(clips) - 1, min(len(clips), MEASURED_CLIPS)).astype(int)).tolist()
    rows = [reconstruction(model, [clips[i] for i in chosen], [codes[i] for i in chosen], used)
            for used in range(1, levels + 1)]  # fmt: skip
    share = F.one_hot(torch.cat(codes), size).double().mean(0)  # (Q,C)
    entropy = -(share * share.clamp_min(1e-12).log()).sum(1)
    frames = model.config.sample_rate / model.config.frame_samples
    return {
        **{f"{name}_by_codes": [row[name] for row in rows] for name in rows[0]},
        "perplexity_by_level": entropy.exp().tolist(),
        "used_entries_by_level": (share > 0).double().mean(1).tolist(),
        "bits_per_second": model.bits_per_second,
        "entropy_bits_per_second": frames * float(entropy.sum()) / math.log(2),
        "probe": probe(model, clips, codes),
        "clips": len(chosen),
        "frames": sum(len(code) for code in codes),
    }


def reconstruction(
    model: AudioTokenizer, clips: Sequence[Clip], codes: Sequence[Tensor], used: int
) -> dict[str, float]:
    """Means over clips decoded from their first `used` codes.

    Returns:
        mel_distance_db: mean absolute difference of log-mel spectra; si_sdr_db; estoi: extended short-time objective
        intelligibility, 0 to 1, of the clips long enough for it.
    """
    found: dict[str, list[float]] = {"mel_distance_db": [], "si_sdr_db": [], "estoi": []}
    for clip, code in zip(clips, codes, strict=True):
        made = model.decode(code[:, :used])
        real = F.pad(clip.pcm, (0, len(made) - len(clip.pcm)))
        found["mel_distance_db"].append(model.mel_distance(made, real))
        found["si_sdr_db"].append(scale_invariant_sdr(made, real))
        found["estoi"].append(intelligibility(made, real, model.config.sample_rate))
    heard = [value for value in found["estoi"] if not math.isnan(value)]
    means = {name: float(np.mean(values)) for name, values in found.items()}
    return means | {"estoi": float(np.mean(heard)) if heard else 0.0}


def intelligibility(estimate: Tensor, reference: Tensor, rate: int) -> float:
    """ESTOI (Jensen and Taal 2016); NaN for a clip with less than 0.4 s of speech, which it cannot judge."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = float(stoi(reference.double().numpy(), estimate.double().numpy(), rate, extended=True))
    return math.nan if caught else value


def scale_invariant_sdr(estimate: Tensor, reference: Tensor) -> float:
    """SI-SDR in dB (Le Roux et al., arXiv 1811.02508, equation 3)."""
    scaled = (estimate @ reference) / reference.square().sum().clamp_min(1e-12) * reference
    return float(10 * torch.log10(scaled.square().sum().clamp_min(1e-12) / (scaled - estimate).square().sum()))


def probe(model: AudioTokenizer, clips: Sequence[Clip], codes: Sequence[Tensor]) -> dict[str, Any]:
    """What each level's code tells, over the frames with sound.

    Returns:
        by level the share of the information in the teacher's units (`units`: its features in 40 clusters, close
        to phones) and in the language, which here is the voice (`voice`), each beside what shuffled labels give.
    """
    config = model.config
    heard = teach(clips, config.teacher, config.sample_rate, config.frame_samples)
    frames, features, voices = [], [], []
    names = sorted({clip.language for clip in clips})
    for clip, code, feature in zip(clips, codes, heard.features, strict=True):
        if feature is None:
            continue
        loud = sounding(clip.pcm, config.frame_samples)[: len(feature)]
        frames.append(code[: len(feature)][loud])
        features.append(feature[loud])
        voices.append(torch.full((int(loud.sum()),), names.index(clip.language)))
    codes_, features_ = torch.cat(frames), torch.cat(features)
    generator = torch.Generator().manual_seed(0)
    middle, _ = centres(features_, min(UNITS, max(2, len(features_) // 20)), generator)
    labels = {"units": torch.cdist(features_, middle).argmin(1), "voice": torch.cat(voices)}
    return {name: by_level(codes_, label) for name, label in labels.items()} | {"frames": len(codes_)}


def sounding(pcm: Tensor, frame: int) -> Tensor:
    """Which frames of PCM (n,) are not silent, (T,)."""
    return F.pad(pcm, (0, -len(pcm) % frame)).unflatten(0, (-1, frame)).square().mean(1).sqrt() > QUIET


def by_level(codes: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """`told` of each level of codes (N,Q), and what the labels in random order give: counting few frames alone."""
    generator = torch.Generator().manual_seed(0)
    orders = [labels[torch.randperm(len(labels), generator=generator)] for _ in range(DRAWS)]
    levels = codes.unbind(1)
    return {
        "by_level": [told(level, labels) for level in levels],
        "shuffled_by_level": [sum(told(level, order) for order in orders) / DRAWS for level in levels],
    }


def told(codes: Tensor, labels: Tensor) -> float:
    """Information of codes (N,) about labels (N,) over the labels' entropy, 0 to 1 (PNMI, arXiv 2106.07447, 4.3)."""
    table = torch.zeros(int(codes.max()) + 1, int(labels.max()) + 1, dtype=torch.float64)
    table.index_put_((codes, labels), torch.ones(len(codes), dtype=torch.float64), accumulate=True)
    joint = table / table.sum()
    apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    information = (joint * (joint.clamp_min(1e-12) / apart.clamp_min(1e-12)).log())[joint > 0].sum()
    share = joint.sum(0)
    entropy = -(share * share.clamp_min(1e-12).log()).sum()
    return float(information / entropy) if entropy > 1e-9 else 0.0
