"""Whether a model speaks in the voice that it is given: losses of held-out speech, and whose voice it makes.

The sound of a clip is predicted with the voice of another clip of its speaker (right), with that of somebody else
(wrong), and with none; and its words are spoken in two voices. Where each person speaks one language, losses alone
cannot tell a voice from a language, which the text already tells; what is spoken in a wrong voice can, and so can clips
that are played at another speed, which is another voice of the same person.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from accordion.data.batch import Batch
from accordion.data.documents import Builder, Spoken, spoken_prompt
from accordion.data.encode import at_speed
from accordion.data.tables import require_columns
from accordion.data.tokenizers.audio_training import read_pcm
from accordion.data.tokenizers.voice import similarity
from accordion.errors import DataError
from accordion.evaluate.statistics import bootstrap
from accordion.generate import Creator, Sampling

CONDITIONS = ("right", "wrong", "none")
RESAMPLES = 10_000
SPEEDS = (0.85, 1.15)  # that make two voices of one, as in packing (`pack.audio_speeds`)
LONGEST = 200  # frames of a clip that are judged, 16 s
_COLUMNS = ["id", "pcm", "rate", "transcript", "speaker"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """Held-out speech: pcm (n,) samples, its words, and who speaks."""

    name: str
    transcript: str
    speaker: str
    pcm: Tensor


@dataclass(frozen=True, kw_only=True)
class Case:
    """A held-out clip with the two voices it is judged with.

    Attributes:
        stranger: whose voice the wrong one is.
        right, wrong: (V,).
    """

    clip: Clip
    stranger: str
    right: Tensor
    wrong: Tensor


def cases(creator: Creator, corpus: Path, *, most: int, seed: int = 0) -> list[Case]:
    """Up to `most` held-out clips, each with the voice of another held-out clip of its speaker and of a stranger.

    Raises:
        DataError: no speakers are known, or none is heard twice beside another.
    """
    rng, found = random.Random(seed), list[Case]()
    heard = [
        (clip, vector) for clip in _named(creator, corpus) if (vector := creator.audio.voices(clip.pcm)) is not None
    ]
    for clip, _ in rng.sample(heard, len(heard)):
        same = [vector for other, vector in heard if other.speaker == clip.speaker and other is not clip]
        others = [(other.speaker, vector) for other, vector in heard if other.speaker != clip.speaker]
        if same and others and len(found) < most:
            stranger, wrong = rng.choice(others)
            found.append(Case(clip=clip, stranger=stranger, right=rng.choice(same), wrong=wrong))
    if not found:
        raise DataError(f"{corpus}: no held-out clip of a speaker who is heard twice beside another; name speakers")
    return found


def altered(creator: Creator, corpus: Path, *, most: int, seed: int = 0) -> list[Case]:
    """Up to `most` held-out clips played at a speed, which makes another voice of the same person and language.

    The right voice is that of another clip of the speaker at that speed, the wrong one that of the same other clip at
    the other speed.

    Raises:
        DataError: no speakers are known, or none is heard twice.
    """
    rng, encoder, found = random.Random(seed), creator.audio.voices, list[Case]()
    clips = _named(creator, corpus)
    for clip in rng.sample(clips, len(clips)):
        others = [other for other in clips if other.speaker == clip.speaker and other is not clip]
        if not others or len(found) >= most:
            continue
        other = rng.choice(others)
        played = {speed: at_speed(clip.pcm, encoder.rate, speed) for speed in SPEEDS}
        voices = {speed: encoder(at_speed(other.pcm, encoder.rate, speed)) for speed in SPEEDS}
        for speed, unlike in (SPEEDS, SPEEDS[::-1]):
            right, wrong = voices[speed], voices[unlike]
            if right is not None and wrong is not None:
                fast = Clip(name=f"{clip.name} x {speed:g}", transcript=clip.transcript, speaker=clip.speaker,
                            pcm=played[speed])  # fmt: skip
                found.append(Case(clip=fast, stranger=f"{clip.speaker} x {unlike:g}", right=right, wrong=wrong))
    if not found:
        raise DataError(f"{corpus}: no held-out clip of a speaker who is heard twice; name speakers")
    return found[:most]


def _named(creator: Creator, corpus: Path) -> list[Clip]:
    """The held-out clips whose speaker is known."""
    path = corpus / "audio.parquet"
    require_columns(path, _COLUMNS, pq.read_schema(path).names)
    rate = creator.audio.config.sample_rate
    return [
        Clip(name=row["id"], transcript=row["transcript"], speaker=row["speaker"],
             pcm=read_pcm(row["pcm"], row["rate"], row["id"], rate))
        for row in pq.read_table(path, columns=_COLUMNS, filters=[("split", "=", "val")]).to_pylist()
        if row["speaker"]
    ]  # fmt: skip


@torch.no_grad()
def loss(creator: Creator, case: Case, voice: Tensor | None) -> float:
    """Mean nats of a code of the clip after its transcript and the voice (V,); None: any."""
    config = creator.model.config
    builder = Builder("judged", bits=config.bits, levels=config.audio_levels, codebook=config.audio_codebook)
    prompt = spoken_prompt(creator.text.encode(case.clip.transcript), Spoken(marked=True, vector=voice))
    codes = creator.audio.encode(case.clip.pcm)
    columns = builder.tokens(prompt, voice).speech(codes[:LONGEST].numpy(), cut=len(codes) > LONGEST).document().columns
    whole = {**columns, "document": np.zeros_like(columns["document"])}
    batch = Batch.from_columns({name: values[None] for name, values in whole.items()})
    device = creator.model.norm.weight.device
    return float(creator.model.outputs(batch.to(device)).losses().means["audio"])


def losses(creator: Creator, judged: Sequence[Case]) -> dict[str, Any]:
    """Mean nats of a code by condition, and what a wrong voice and none cost over the right one, with intervals."""
    voices: Mapping[str, Callable[[Case], Tensor | None]] = {
        "right": lambda case: case.right, "wrong": lambda case: case.wrong, "none": lambda _: None
    }  # fmt: skip
    table = {name: np.array([loss(creator, case, voices[name](case)) for case in judged]) for name in CONDITIONS}
    costs = {
        f"{name}_over_right": bootstrap(table[name] - table["right"], resamples=RESAMPLES, seed=0).to_json()
        for name in CONDITIONS[1:]
    }
    return {"clips": len(judged), "nats": {name: float(values.mean()) for name, values in table.items()}, **costs}


def spoken(creator: Creator, judged: Sequence[Case], *, seconds: float, seed: int = 0) -> dict[str, Any]:
    """Whose voice is heard where the words of each clip are spoken in the right voice, the wrong one, and any.

    Returns:
        `follows`: similarity to the voice that was given less similarity to the other one, over both voices of a
        clip (0: the voice given does not matter); `any`, `real`: similarity to the right voice less that to the wrong
        one, of what is spoken without a voice and of the clip itself out of its codes.
    """
    encoder = creator.audio.voices
    follows, anyhow, real = [], [], []
    for case in judged:

        def leaning(pcm: Tensor, case: Case = case) -> float | None:
            """Nearer to the right voice than to the wrong one by so much; None: hardly anything sounds."""
            heard = encoder(pcm)
            return None if heard is None else similarity(heard, case.right) - similarity(heard, case.wrong)

        made = [
            leaning(creator.speak(case.clip.transcript, Sampling(top_p=0.9, seed=seed), seconds=seconds, voice=voice))
            for voice in (case.right, case.wrong, None)
        ]
        coded = leaning(creator.audio.decode(creator.audio.encode(case.clip.pcm)))
        if made[0] is not None and made[1] is not None:
            follows.append((made[0] - made[1]) / 2)
        anyhow += [made[2]] if made[2] is not None else []
        real += [coded] if coded is not None else []
    parts = {"follows": follows, "any": anyhow, "real": real}
    return {
        name: bootstrap(np.array(values), resamples=RESAMPLES, seed=0).to_json() if values else None
        for name, values in parts.items()
    }
