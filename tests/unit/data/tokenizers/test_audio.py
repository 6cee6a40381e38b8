"""Audio codec: frames, determinism, decoding by fewer codes, codebook use, bad input."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from accordion.config.data import AudioTokenizerConfig
from accordion.data.tokenizers.audio import AudioTokenizer, scaled_log, unscaled
from accordion.data.tokenizers.audio_training import read_pcm, scale_invariant_sdr, train_audio_tokenizer
from accordion.errors import ArtifactError, DataError

CONFIG = AudioTokenizerConfig(channels=8, codebook=16, levels=3, steps=80, batch=4, learning_rate=1e-2)


def tone(frequency: float, seconds: float = 1.5, loudness: float = 0.3) -> torch.Tensor:
    """Bursts of a voice-like buzz of 11 harmonics with some breath."""
    time = torch.arange(int(seconds * 8000)) / 8000
    buzz = sum(torch.sin(2 * math.pi * frequency * k * time + k * k) / k for k in range(1, 12))
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(int(frequency)))
    return (loudness * (buzz / 2 + 0.3 * noise) * (time % 0.5 < 0.3)).clamp(-1, 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    corpus, out = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("audio")
    rows = [
        {"id": f"a{i}", "rate": 8000, "split": "val" if i % 6 == 0 else "train",
         "pcm": (tone(80 + 15 * i).numpy() * 32767).astype("<i2").tobytes()}
        for i in range(24)
    ]  # fmt: skip
    pd.DataFrame(rows).to_parquet(corpus / "audio.parquet")
    metrics = train_audio_tokenizer(CONFIG, out=out, corpus=corpus)
    return AudioTokenizer.load(out), metrics, out


def test_training_uses_its_codebooks_and_measures_each_number_of_codes(trained) -> None:
    _, metrics, _ = trained
    assert len(metrics["mel_distance_db_by_codes"]) == len(metrics["si_sdr_db_by_codes"]) == 3
    assert metrics["mel_distance_db_by_codes"][-1] < 6
    assert metrics["perplexity_by_level"][0] > 3


def test_frames_are_80_ms_and_the_end_is_padded(trained) -> None:
    codec, _, _ = trained
    assert codec.encode(torch.zeros(6400)).shape == (10, 3)
    codes = codec.encode(tone(110)[:6401])
    assert codes.shape == (11, 3)
    assert codes.min() >= 0
    assert codes.max() < 16
    assert codec.decode(codes).shape == (11 * 640,)


def test_encoding_and_decoding_are_deterministic(trained) -> None:
    codec, _, out = trained
    clip = tone(200)
    again = AudioTokenizer.load(out)
    assert torch.equal(codec.encode(clip), again.encode(clip))
    assert torch.equal(codec.decode(codec.encode(clip)), again.decode(again.encode(clip)))


def test_sound_and_silence_are_told_apart(trained) -> None:
    codec, _, _ = trained
    loud, quiet = codec.decode(codec.encode(tone(140))), codec.decode(codec.encode(torch.zeros(8000)))
    assert loud.square().mean() > 10 * quiet.square().mean()
    assert not torch.equal(codec.encode(tone(140))[1], codec.encode(torch.zeros(8000))[1])


def test_all_quiet_noise_is_one_silence(trained) -> None:
    codec, _, _ = trained
    noise = torch.randn(8000, generator=torch.Generator().manual_seed(0)) * 1e-5
    assert len(torch.unique(codec.encode(noise)[2:-2], dim=0)) == 1


def test_magnitudes_invert_to_the_same_spectrum(trained) -> None:
    codec, _, _ = trained
    magnitude = codec.spectrum(tone(140)[:8960][None])
    again = codec.spectrum(codec._invert(magnitude[0], 32)[None])
    assert (scaled_log(again) - scaled_log(magnitude)).abs().mean() < 0.05
    torch.testing.assert_close(unscaled(scaled_log(magnitude)), magnitude, atol=1e-5, rtol=1e-3)


def test_si_sdr_ignores_scale_and_falls_with_noise() -> None:
    clean = tone(110)
    noise = torch.randn(len(clean), generator=torch.Generator().manual_seed(0)) * clean.std()
    assert scale_invariant_sdr(0.5 * clean + 1e-6 * noise, clean) > 60
    assert abs(scale_invariant_sdr(clean + noise, clean)) < 1


@pytest.mark.parametrize(
    ("pcm", "rate", "match"),
    [
        (torch.zeros(0), 8000, "at least one sample"),
        (torch.zeros(2, 800), 8000, "one channel"),
        (torch.zeros(800), 16000, "16000 Hz"),
        (torch.full((800,), 3.0), None, "divide 16-bit"),
        (torch.full((800,), float("nan")), None, "finite"),
    ],
)
def test_bad_audio_is_named(trained, pcm: torch.Tensor, rate: int | None, match: str) -> None:
    with pytest.raises(DataError, match=match):
        trained[0].encode(pcm, rate)


def test_bad_codes_and_records_are_named(trained, tmp_path) -> None:
    codec, _, _ = trained
    with pytest.raises(DataError, match="end-of-audio"):
        codec.decode(torch.full((2, 3), 16))
    with pytest.raises(DataError, match="wants"):
        codec.decode(torch.zeros(0, 3, dtype=torch.int64))
    with pytest.raises(DataError, match=r"clip7.*44100"):
        read_pcm(np.zeros(4, "<i2").tobytes(), 44100, "clip7", 8000)
    with pytest.raises(DataError, match="clip8"):
        read_pcm(b"", 8000, "clip8", 8000)
    with pytest.raises(ArtifactError, match="train_audio_tokenizer"):
        AudioTokenizer.load(tmp_path)
