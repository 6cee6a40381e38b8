"""What is judged of voices: pairs of cases, losses by condition; a model that follows its voice is seen to do so."""

import numpy as np
import pandas as pd
import pytest
import torch

from accordion.errors import DataError
from accordion.evaluate.voices import altered, cases, loss, losses, spoken
from accordion.generate import Creator
from tests.unit.generate.conftest import model, tools  # noqa: F401  # fixtures


def corpus(folder, speakers: str, split: str = "val"):
    time = np.arange(8000) / 8000
    rows = [
        {"id": f"a{n}", "rate": 8000, "transcript": "the dog", "speaker": speaker.strip(), "split": split,
         "pcm": (np.sin(6.28 * (100 + 90 * ord(speaker) % 7 * 40 + n) * time) * 9000).astype("<i2").tobytes()}
        for n, speaker in enumerate(speakers)
    ]  # fmt: skip
    pd.DataFrame(rows).to_parquet(folder / "audio.parquet")
    return folder


def test_a_case_has_the_voice_of_another_clip_and_of_a_stranger(tmp_path, model, tools):  # noqa: F811
    creator = Creator(model, tools)
    found = cases(creator, corpus(tmp_path, "aabb c "), most=9)
    assert {case.clip.name for case in found} == {"a0", "a1", "a2", "a3"}  # c is heard once, the others have no name
    for case in found:
        assert case.stranger != case.clip.speaker and not torch.equal(case.right, creator.audio.voices(case.clip.pcm))
    assert [case.clip.name for case in cases(creator, tmp_path, most=2)] == [case.clip.name for case in found[:2]]
    for speakers, split in (("abc", "val"), ("aaa", "val"), ("   ", "val"), ("aabb", "train")):
        with pytest.raises(DataError, match="no held-out clip of a speaker who is heard twice beside another"):
            cases(creator, corpus(tmp_path, speakers, split), most=9)


def test_speeds_make_two_voices_of_one_person(tmp_path, model, tools):  # noqa: F811
    creator = Creator(model, tools)
    found = altered(creator, corpus(tmp_path, "aab "), most=9)
    assert {case.clip.name for case in found} == {f"a{n} x {speed}" for n in (0, 1) for speed in (0.85, 1.15)}
    for case in found:
        slow = case.clip.name.endswith("0.85")
        assert len(case.clip.pcm) == pytest.approx(8000 / (0.85 if slow else 1.15), abs=1)
        other = next(each for each in found if each.clip.name[:2] == case.clip.name[:2] and each is not case)
        assert torch.equal(case.right, other.wrong) and not torch.equal(case.right, case.wrong)
    assert len(altered(creator, tmp_path, most=3)) == 3
    with pytest.raises(DataError, match="no held-out clip of a speaker who is heard twice"):
        altered(creator, corpus(tmp_path, "ab"), most=9)


def test_losses_are_those_of_the_voice_that_is_told(tmp_path, model, tools):  # noqa: F811
    creator = Creator(model, tools)
    judged = cases(creator, corpus(tmp_path, "aabb"), most=9)
    found = losses(creator, judged)
    assert found["clips"] == 4 and len(set(found["nats"].values())) == 3
    mean = np.mean([loss(creator, case, case.wrong) - loss(creator, case, case.right) for case in judged])
    assert found["wrong_over_right"]["mean"] == pytest.approx(mean)
    assert found["wrong_over_right"]["low"] <= mean <= found["wrong_over_right"]["high"]


def test_speech_that_follows_the_voice_is_told_from_speech_that_does_not(tmp_path, model, tools, monkeypatch):  # noqa: F811
    creator = Creator(model, tools)
    judged = cases(creator, corpus(tmp_path, "aabb"), most=4)
    sounds = {tuple(case.right.tolist()): case.clip.pcm for case in judged}

    def follow(text, sampling, *, seconds, voice=None):
        return judged[0].clip.pcm if voice is None else next(
            case.clip.pcm for case in judged if voice.equal(case.right)
        )  # fmt: skip

    for case in judged:  # strangers' voices are the right voices of other cases
        other = next(each for each in judged if each.clip.speaker == case.stranger)
        object.__setattr__(case, "wrong", other.right)
    assert len(sounds) == 4
    monkeypatch.setattr(creator, "speak", follow)
    assert spoken(creator, judged, seconds=1)["follows"]["low"] > 0
    monkeypatch.setattr(creator, "speak", lambda text, sampling, *, seconds, voice=None: judged[0].clip.pcm)
    assert spoken(creator, judged, seconds=1)["follows"]["mean"] == 0
    monkeypatch.setattr(creator, "speak", lambda text, sampling, *, seconds, voice=None: torch.zeros(8000))
    assert spoken(creator, judged, seconds=1)["follows"] is None
