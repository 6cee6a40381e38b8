"""What describes a voice: statistics over a sound's time of its spectrum and pitch, without learning a network.

Of the moments at which something sounds: mean and deviation of the log-mel spectrum, mean and deviation of the pitch,
and the share that has a pitch. Means over time are what is left when the words are averaged out (i-vectors and the
pooling of x-vectors begin there). The vector is taken relative to the mean voice of the training clips, in units of how
the clips of one speaker differ (within-class covariance normalization, Hatch et al. 2006), and brought to one length
(Garcia-Romero & Espy-Wilson 2011). Loudness does not count.

Legend: N samples, U spectra of 100 Hz, M mel bands, W frames of pitch, V numbers of a voice.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from accordion.data.batch import VOICE_SIZE
from accordion.data.tokenizers.audio_spectra import Spectra
from accordion.data.tokenizers.audio_teacher import Clip

MELS = (VOICE_SIZE - 3) // 2
LEVEL = 0.1  # root mean square to which the sounding part is brought
RANGE_DB = 30.0  # under the loudest moment; what is quieter is a pause
LEAST_SECONDS = 0.3  # of sound that tell a voice
LONGEST_SECONDS = 60  # what comes later is not heard
LOWEST, HIGHEST = 60.0, 400.0  # Hz, of the pitch
CLEAR = 0.5  # correlation of a sound with itself one period later, from which it has a pitch
OCTAVE = 0.02  # of that correlation, for each octave that a pitch is lower: a multiple of the period fits as well
USUAL = math.log2(150.0)  # taken as the pitch of what has none
MOST_COMPARED = 500  # clips by which it is judged how well voices are told apart
SHRINKAGE = 0.2  # of the covariance towards its diagonal


class VoiceEncoder(nn.Module):
    """A sound to a vector of V numbers whose mean square is 1; `place` sets what it is compared with.

    Args:
        rate: samples a second.
    """

    mean: Tensor
    turn: Tensor

    def __init__(self, rate: int) -> None:
        super().__init__()
        self.rate = rate
        self.spectra = Spectra(rate, rate // 100, MELS)
        self.register_buffer("mean", torch.zeros(VOICE_SIZE))
        self.register_buffer("turn", torch.eye(VOICE_SIZE))

    @torch.no_grad()
    def forward(self, pcm: Tensor) -> Tensor | None:
        """PCM (n,) in [-1, 1] -> (V,); None: less than `LEAST_SECONDS` of it sound."""
        found = self.statistics(pcm)
        if found is None:
            return None
        turned = self.turn @ (found - self.mean)
        return turned / turned.square().mean().sqrt().clamp_min(1e-6)

    @torch.no_grad()
    def place(self, clips: Sequence[Tensor], speakers: Sequence[str]) -> dict[str, int]:
        """Learn the mean voice of clips (n,) and how those of one speaker differ.

        Where no speaker is heard twice, each number is taken in units of its deviation over all clips.

        Args:
            speakers: of each clip; one that is not known (an empty string) is taken for the halves of its clip.

        Returns:
            how many `sounds` tell a voice, and how many voices are `compared`, which are heard at least twice.
        """
        rows: list[Tensor] = []
        classes: dict[str, list[int]] = {}
        for number, (pcm, speaker) in enumerate(zip(clips, speakers, strict=True)):
            parts = [pcm] if speaker else [pcm[: len(pcm) // 2], pcm[len(pcm) // 2 :]]
            for found in map(self.statistics, parts):
                if found is not None:
                    classes.setdefault(speaker or f"\0{number}", []).append(len(rows))
                    rows.append(found)
        several = [members for members in classes.values() if len(members) > 1]
        if rows:
            table = torch.stack(rows).double()
            groups = [table[members] for members in several] or [table]
            apart = torch.cat([group - group.mean(0) for group in groups])
            within = apart.T @ apart / max(len(apart) - len(groups), 1)
            diagonal = within.diagonal().clamp_min(float(within.diagonal().mean()) * 1e-3 + 1e-12)
            shrinkage = SHRINKAGE if several else 1.0
            values, axes = torch.linalg.eigh((1 - shrinkage) * within + shrinkage * diagonal.diag())
            self.mean.copy_(table.mean(0))
            self.turn.copy_(axes @ values.clamp_min(float(values.max()) * 1e-6).rsqrt().diag() @ axes.T)
        return {"sounds": len(rows), "compared": len(several)}

    @torch.no_grad()
    def statistics(self, pcm: Tensor) -> Tensor | None:
        """PCM (n,) -> (V,): mean and deviation of each mel band and of the pitch (log2 Hz), share that has a pitch."""
        hop = self.spectra.hop
        pcm = pcm[: min(len(pcm) // hop, LONGEST_SECONDS * self.rate // hop) * hop].float()
        if len(pcm) < LEAST_SECONDS * self.rate:
            return None
        magnitude = self.spectra(pcm[None])  # (1,F,U)
        power = magnitude[0].square().sum(0)  # (U,)
        sounding = power > max(float(power.max()) * 10 ** (-RANGE_DB / 10), 1e-12)
        if int(sounding.sum()) * hop < LEAST_SECONDS * self.rate:
            return None
        heard = pcm.unflatten(0, (-1, hop))[sounding].square().mean().sqrt().clamp_min(1e-6)
        mel = self.spectra.log_mel(magnitude * (LEVEL / heard))[0][:, sounding]  # (M,U)
        pitch, clear = self._pitch(pcm)
        if int(clear.sum()) > 1:
            tone = torch.stack([pitch[clear].mean(), pitch[clear].std()])
        else:
            tone = torch.tensor([USUAL, 0.0])
        share = clear.float().sum() * 2 * hop / (sounding.sum() * hop)  # a frame of pitch each two spectra
        return torch.cat([mel.mean(1), mel.std(1), tone, share.clamp_max(1.0)[None]])

    def _pitch(self, pcm: Tensor) -> tuple[Tensor, Tensor]:
        """Log2 Hz (W,) at 50 Hz and where it is clear, by autocorrelation less that of the window (Boersma 1993)."""
        size = round(3 * self.rate / LOWEST)
        frames = pcm.unfold(0, min(size, len(pcm)), 2 * self.spectra.hop)  # (W, size)
        window = torch.hann_window(frames.shape[1])
        length = 1 << (2 * frames.shape[1] - 1).bit_length()

        def autocorrelation(rows: Tensor) -> Tensor:
            found = torch.fft.irfft(torch.fft.rfft(rows, length).abs().square(), length)
            return found / found[..., :1].clamp_min(1e-9)

        own = autocorrelation((frames - frames.mean(1, keepdim=True)) * window)
        first, last = math.ceil(self.rate / HIGHEST), min(int(self.rate / LOWEST), frames.shape[1] // 2)
        lags = torch.arange(first, last + 1)
        ratio = own[:, lags] / autocorrelation(window)[lags]
        best = (ratio - OCTAVE * (lags / first).log2()).argmax(1)
        loud = frames.square().mean(1)
        clear = (ratio.gather(1, best[:, None])[:, 0] > CLEAR) & (loud > loud.max() * 10 ** (-RANGE_DB / 10))
        return (self.rate / lags[best]).log2(), clear


def similarity(one: Tensor, other: Tensor) -> float:
    """Cosine of two voices (V,), -1 to 1."""
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def told_apart(encoder: VoiceEncoder, clips: Sequence[Clip], only: str | None = None) -> dict[str, Any]:
    """How well pairs of clips of known speakers show whether one person speaks.

    Args:
        only: pairs with this speaker; None: all.

    Returns:
        `pairs` of one speaker and of two; the mean similarity of each; the equal error rate: the share of pairs that
        are judged wrongly where both kinds of mistake are as frequent (None without both kinds of pairs).
    """
    chosen = clips[:: -(-len(clips) // MOST_COMPARED)] if clips else []
    known = [(clip.speaker, vector) for clip in chosen if clip.speaker and (vector := encoder(clip.pcm)) is not None]
    names = np.array([name for name, _ in known])
    vectors = np.array([vector.numpy() for _, vector in known]).reshape(-1, VOICE_SIZE)
    first, second = np.triu_indices(len(known), 1)
    if only is not None:
        with_it = (names[first] == only) | (names[second] == only)
        first, second = first[with_it], second[with_it]
    alike = (vectors @ vectors.T)[first, second] / VOICE_SIZE  # cosines: mean squares are 1
    of_one = names[first] == names[second]
    same, other = alike[of_one], alike[~of_one]
    found: dict[str, Any] = {"pairs": [len(same), len(other)]}
    if not len(same) or not len(other):
        return {**found, "similarity": None, "equal_error_rate": None}
    bounds = np.sort(alike)
    missed = np.searchsorted(np.sort(same), bounds) / len(same)
    accepted = 1 - np.searchsorted(np.sort(other), bounds) / len(other)
    at = int(np.abs(missed - accepted).argmin())
    rate = float(missed[at] + accepted[at]) / 2
    return {**found, "similarity": [float(np.mean(same)), float(np.mean(other))], "equal_error_rate": rate}
