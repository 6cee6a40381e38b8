"""Whether a model speaks in the voice that it is given: losses of held-out speech, and whose voice it makes.

The sound of a clip is predicted with the voice of another clip of its speaker (right), with that of somebody else
(wrong), and with none; and its words are spoken in two voices. Where each person speaks one language, losses alone
cannot tell a voice from a language, which the text already tells; what is spoken in a wrong voice can.
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
from accordion.data.tables import require_columns
from accordion.data.tokenizers.audio_training import read_pcm
from accordion.data.tokenizers.voice import similarity
from accordion.errors import DataError
from accordion.evaluate.statistics import bootstrap
from accordion.generate import Creator, Sampling

CONDITIONS = ("right", "wrong", "none")
RESAMPLES = 10_000
LONGEST = 200  # frames of a clip that are judged, 16 s
_COLUMNS = ["id", "pcm", "rate", "transcript", "speaker"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A held-out clip with the two voices it is judged with.

    Attributes:
        pcm: (n,) samples; right, wrong: (V,).
        speaker, stranger: whose voices these are.
    """

    name: str
    transcript: str
    pcm: Tensor
    speaker: str
    stranger: str
    right: Tensor
    wrong: Tensor


def cases(creator: Creator, corpus: Path, *, most: int, seed: int = 0) -> list[Case]:
    """Up to `most` held-out clips, each with the voice of another held-out clip of its speaker and of a stranger.

    Raises:
        DataError: no speakers are known, or none is heard twice beside another.
    """
    path = corpus / "audio.parquet"
    require_columns(path, _COLUMNS, pq.read_schema(path).names)
    rows = pq.read_table(path, columns=_COLUMNS, filters=[("split", "=", "val")]).to_pylist()
    rng, encoder, rate = random.Random(seed), creator.audio.voices, creator.audio.config.sample_rate
    clips = [(row, read_pcm(row["pcm"], row["rate"], row["id"], rate)) for row in rows if row["speaker"]]
    heard = [(row, pcm, vector) for row, pcm in clips if (vector := encoder(pcm)) is not None]
    found: list[Case] = []
    for row, pcm, _ in rng.sample(heard, len(heard)):
        same = [vector for other, _, vector in heard if other["speaker"] == row["speaker"] and other is not row]
        others = [(other["speaker"], vector) for other, _, vector in heard if other["speaker"] != row["speaker"]]
        if same and others and len(found) < most:
            stranger, wrong = rng.choice(others)
            found.append(
                Case(name=row["id"], transcript=row["transcript"], pcm=pcm, speaker=row["speaker"], stranger=stranger,
                     right=rng.choice(same), wrong=wrong)
            )  # fmt: skip
    if not found:
        raise DataError(f"{path}: no held-out clip of a speaker who is heard twice beside another; name speakers")
    return found


@torch.no_grad()
def loss(creator: Creator, case: Case, voice: Tensor | None) -> float:
    """Mean nats of a code of the clip after its transcript and the voice (V,); None: any."""
    config = creator.model.config
    builder = Builder("judged", bits=config.bits, levels=config.audio_levels, codebook=config.audio_codebook)
    prompt = spoken_prompt(creator.text.encode(case.transcript), Spoken(marked=True, vector=voice))
    codes = creator.audio.encode(case.pcm)
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
            leaning(creator.speak(case.transcript, Sampling(top_p=0.9, seed=seed), seconds=seconds, voice=voice))
            for voice in (case.right, case.wrong, None)
        ]
        coded = leaning(creator.audio.decode(creator.audio.encode(case.pcm)))
        if made[0] is not None and made[1] is not None:
            follows.append((made[0] - made[1]) / 2)
        anyhow += [made[2]] if made[2] is not None else []
        real += [coded] if coded is not None else []
    parts = {"follows": follows, "any": anyhow, "real": real}
    return {
        name: bootstrap(np.array(values), resamples=RESAMPLES, seed=0).to_json() if values else None
        for name, values in parts.items()
    }
