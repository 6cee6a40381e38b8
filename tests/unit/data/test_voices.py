"""Which voice a spoken document gets: another clip of its speaker, a half of its own, or none."""

import random

import pytest
import torch

from accordion.data import voices as module
from accordion.data.batch import VOICE_SIZE
from accordion.data.voices import Voices


class Marker(torch.nn.Module):
    """Stands for the encoder: tells the first sample and the length of what it heard; nothing of fewer than 4."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = 0

    def forward(self, pcm):
        self.heard += 1
        return None if len(pcm) < 4 else torch.tensor([float(pcm[0]), float(len(pcm))] + [0.0] * (VOICE_SIZE - 2))


def sound(mark: float, length: int = 10) -> torch.Tensor:
    return torch.full((length,), mark)


def told(voices: Voices, clip: int, speaker: str) -> tuple[int, int] | None:
    """(first sample, length) of what the voice given to a clip is that of."""
    found = voices.given(str(clip), speaker, sound(float(clip)))
    assert found.marked
    return None if found.vector is None else (int(found.vector[0]), int(found.vector[1]))


def test_a_clip_gets_the_voice_of_another_one_of_its_speaker() -> None:
    voices = Voices(Marker(), 0.0, random.Random(0))
    assert told(voices, 1, "ann") == (1, 5) and told(voices, 2, "bob") == (2, 5)  # their own halves
    for _ in range(20):  # again and again, as training reads the clips
        for clip, speaker in ((1, "ann"), (2, "bob"), (3, "ann"), (5, "ann")):
            found = told(voices, clip, speaker)
            if speaker == "ann" and found is not None and found[1] == 10:
                assert found[0] in {1, 3, 5} - {clip}
            else:
                assert speaker == "bob" or clip == 1
    assert told(voices, 2, "bob") == (2, 5)  # bob has no other clip


def test_a_speaker_that_nobody_named_gets_a_half_of_the_clip() -> None:
    voices = Voices(Marker(), 0.0, random.Random(0))
    pcm = torch.arange(10.0)
    starts = {int(voices.given(str(n), "", pcm).vector[0]) for n in range(20)}
    assert starts == {0, 5}
    assert voices.given("short", "", sound(1.0, 7)).vector[1] == 4  # the half that is long enough
    assert voices.given("shorter", "", sound(1.0, 5)).vector is None


def test_some_voices_are_not_told_and_the_draws_repeat() -> None:
    def drawn() -> list[tuple[int, int] | None]:
        voices = Voices(Marker(), 0.25, random.Random(3))
        return [told(voices, clip, "ann") for clip in range(400)]

    assert drawn() == drawn()
    assert drawn().count(None) == pytest.approx(100, abs=30)


def test_each_clip_is_described_once_and_memory_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(module, "SPEAKERS", 3)
    monkeypatch.setattr(module, "VECTORS", 50)
    encoder = Marker()
    voices = Voices(encoder, 0.0, random.Random(0))
    for _ in range(10):
        for clip in range(20):
            told(voices, clip, "ann")
    assert encoder.heard <= 22  # 20 clips and a half of the first
    for clip in range(100, 1000):
        told(voices, clip, f"speaker {clip % 30}")
    assert len(voices._heard) == 3 and len(voices._vectors) == 50
