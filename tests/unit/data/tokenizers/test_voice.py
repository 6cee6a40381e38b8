"""What describes a voice: pitch and spectrum are in it, loudness and pauses are not; voices are told apart."""

import hashlib
import json
import math
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from accordion.config.data import AudioTokenizerConfig
from accordion.data import media
from accordion.data.batch import VOICE_SIZE
from accordion.data.tokenizers.audio import AudioTokenizer
from accordion.data.tokenizers.audio_teacher import Clip
from accordion.data.tokenizers.voice import LEAST_SECONDS, MELS, VoiceEncoder, similarity, told_apart
from accordion.errors import ArtifactError
from accordion.home import REPOSITORY

SPEECH = REPOSITORY / "data/sample/audio"


def buzz(frequency: float, seconds: float = 1.0) -> torch.Tensor:
    """A tone of a pitch with falling harmonics, (n,) at 8 kHz."""
    time = torch.arange(int(seconds * 8000)) / 8000
    return 0.3 * sum(torch.sin(2 * math.pi * frequency * k * time) / k**1.5 for k in range(1, 9))


def prompts(keys: int) -> list[Clip]:
    """The first prompts of data/sample in every voice."""
    rows = [json.loads(line) for line in (SPEECH / "transcripts.jsonl").read_text().splitlines()]
    chosen = sorted({row["key"] for row in rows})[:keys]
    with zipfile.ZipFile(SPEECH / "prompts.zip") as archive:
        return [
            Clip(
                name=row["file"], pcm=torch.from_numpy(media.read_audio(archive.read(row["file"]), row["file"])[0]),
                language=row["language"], digest=hashlib.sha256(row["file"].encode()).hexdigest(),
                speaker=row["speaker"],
            )
            for row in rows if row["key"] in chosen
        ]  # fmt: skip


@pytest.mark.parametrize("frequency", [90, 140, 220, 330])
def test_the_pitch_is_heard(frequency: int) -> None:
    found = VoiceEncoder(8000).statistics(buzz(frequency))
    assert found is not None and found.shape == (VOICE_SIZE,)
    assert 2 ** float(found[2 * MELS]) == pytest.approx(frequency, rel=0.02)
    assert float(found[2 * MELS + 1]) < 0.02 and float(found[2 * MELS + 2]) > 0.9
    noise = VoiceEncoder(8000).statistics(0.1 * torch.randn(8000, generator=torch.Generator().manual_seed(0)))
    assert noise is not None and float(noise[2 * MELS + 2]) < 0.1


def test_loudness_and_pauses_do_not_count() -> None:
    encoder, sound = VoiceEncoder(8000), buzz(140)
    whole = encoder.statistics(sound)
    assert torch.allclose(encoder.statistics(sound * 0.2), whole, atol=1e-3)
    amid = torch.cat([torch.zeros(4000), sound, torch.zeros(8000)])  # its last windows reach into the pause
    assert torch.allclose(encoder.statistics(amid), whole, atol=0.15)


@pytest.mark.parametrize(
    "sound",
    [
        torch.zeros(8000),
        buzz(140, LEAST_SECONDS - 0.05),
        torch.cat([buzz(140, 0.1), torch.zeros(8000)]),
        torch.zeros(0),
    ],
    ids=["silence", "short", "a click in silence", "nothing"],
)
def test_what_hardly_sounds_has_no_voice(sound: torch.Tensor) -> None:
    assert VoiceEncoder(8000)(sound) is None


def test_real_voices_are_told_apart_by_speakers_and_better_than_without_training() -> None:
    clips = prompts(24)
    late = sorted({clip.name[3:] for clip in clips})[18:]
    learnt, held_out = ([clip for clip in clips if (clip.name[3:] in late) == held] for held in (False, True))
    encoder = VoiceEncoder(8000)
    before = told_apart(encoder, held_out)
    counts = encoder.place([clip.pcm for clip in learnt], [clip.speaker for clip in learnt])
    assert counts == {"sounds": len(learnt), "compared": 4}
    after = told_apart(encoder, held_out)
    assert after["pairs"] == before["pairs"] and min(after["pairs"]) > 5
    assert after["similarity"][0] > after["similarity"][1] + 0.1
    assert after["equal_error_rate"] < min(0.4, before["equal_error_rate"] + 1e-9)
    vector = encoder(clips[0].pcm)
    assert float(vector.square().mean()) == pytest.approx(1, abs=1e-4)
    assert similarity(vector, vector) == pytest.approx(1, abs=1e-5)


def test_without_names_the_halves_of_clips_are_compared_and_without_any_pair_clips_themselves() -> None:
    sounds = [buzz(100 + 20 * n) for n in range(6)]
    encoder = VoiceEncoder(8000)
    assert encoder.place(sounds, [""] * 6) == {"sounds": 12, "compared": 6}
    assert torch.isfinite(encoder.turn).all() and encoder(sounds[0]) is not None
    alone = VoiceEncoder(8000)
    assert alone.place(sounds, list("abcdef")) == {"sounds": 6, "compared": 0}
    assert torch.isfinite(alone.turn).all() and torch.allclose(alone.turn, alone.turn.diag().diag())
    silent = VoiceEncoder(8000)
    assert silent.place([torch.zeros(8000)] * 2, ["a", "a"]) == {"sounds": 0, "compared": 0}
    assert torch.equal(silent.turn, torch.eye(VOICE_SIZE))
    assert told_apart(alone, [])["equal_error_rate"] is None


def test_it_is_kept_with_the_audio_tokenizer_and_an_older_one_is_refused(tmp_path) -> None:
    tokenizer = AudioTokenizer(AudioTokenizerConfig(channels=8, levels=2, codebook=8))
    tokenizer.voices.place([buzz(100), buzz(110)], ["a", "a"])
    tokenizer.save(tmp_path)
    assert torch.equal(AudioTokenizer.load(tmp_path).voices(buzz(170)), tokenizer.voices(buzz(170)))
    path = tmp_path / "model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if not name.startswith("voices")}, path)
    with pytest.raises(ArtifactError, match=r"voices\.mean[\s\S]*run train_audio_tokenizer again"):
        AudioTokenizer.load(tmp_path)
