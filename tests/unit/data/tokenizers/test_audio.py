"""Audio codec: frames, causality, closed-form start, fewer codes, what code 1 is taught, codebook use, bad input."""

import hashlib
import math
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from accordion.config.data import AudioTokenizerConfig
from accordion.data import media
from accordion.data.media.audio import to_int16
from accordion.data.tokenizers import audio_teacher
from accordion.data.tokenizers.audio import AudioTokenizer
from accordion.data.tokenizers.audio_measure import by_level, intelligibility, reconstruction, scale_invariant_sdr, told
from accordion.data.tokenizers.audio_quantizer import DEAD, Quantizer, centres
from accordion.data.tokenizers.audio_spectra import Spectra, scaled_log, unscaled
from accordion.data.tokenizers.audio_teacher import CEPSTRA_NAME, Clip, teach
from accordion.data.tokenizers.audio_training import (
    Examples,
    fit,
    read_pcm,
    train_audio_tokenizer,
)  # fmt: skip
from accordion.errors import ArtifactError, ConfigError, DataError
from accordion.home import REPOSITORY

CONFIG = AudioTokenizerConfig(channels=8, codebook=16, levels=3, blocks=1, steps=80, batch=4, teacher=None)


def tone(frequency: float, seconds: float = 1.5, loudness: float = 0.3) -> torch.Tensor:
    """Bursts of a voice-like buzz of 11 harmonics with some breath."""
    time = torch.arange(int(seconds * 8000)) / 8000
    buzz = sum(torch.sin(2 * math.pi * frequency * k * time + k * k) / k for k in range(1, 12))
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(int(frequency)))
    return (loudness * (buzz / 2 + 0.3 * noise) * (time % 0.5 < 0.3)).clamp(-1, 1)


def sixteen_bit(pcm: torch.Tensor) -> bytes:
    return (pcm.numpy() * 32767).astype("<i2").tobytes()


def clip(name: str, pcm: torch.Tensor) -> Clip:
    digest = hashlib.sha256(sixteen_bit(pcm)).hexdigest()
    return Clip(name=name, pcm=pcm, language="en", digest=digest)


def shipped_speech(count: int) -> list[Clip]:
    """Prompts of data/sample, of all languages."""
    with zipfile.ZipFile(REPOSITORY / "data/sample/audio/prompts.zip") as archive:
        names = sorted(archive.namelist())
        clips = []
        for name in names[:: len(names) // count][:count]:
            pcm = media.read_audio(archive.read(name), name)[0]
            digest = audio_teacher.digest(to_int16(pcm))
            clips.append(Clip(name=name, pcm=torch.from_numpy(pcm), language=name[:2], digest=digest))
    return clips


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rows = [
        {"id": f"a{i}", "rate": 8000, "split": "val" if i % 6 == 0 else "train", "language": "en" if i % 2 else "fr",
         "speaker": "", "pcm": sixteen_bit(tone(80 + 15 * i))}
        for i in range(24)
    ]  # fmt: skip
    pd.DataFrame(rows).to_parquet(folder / "audio.parquet")
    return folder


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("audio")
    metrics = train_audio_tokenizer(CONFIG, out=out, corpus=corpus)
    return AudioTokenizer.load(out), metrics, out


def test_training_uses_its_codebooks_and_measures_each_number_of_codes(trained) -> None:
    _, metrics, _ = trained
    for name in ("mel_distance_db", "si_sdr_db", "estoi"):
        assert len(metrics[f"{name}_by_codes"]) == 3
    assert metrics["mel_distance_db_by_codes"][-1] < 5
    assert metrics["mel_distance_db_by_codes"][-1] < metrics["mel_distance_db_by_codes"][0]
    assert metrics["perplexity_by_level"][0] > 3
    assert metrics["bits_per_second"] == 12.5 * 3 * 4
    assert metrics["entropy_bits_per_second"] < metrics["bits_per_second"]
    units = metrics["probe"]["units"]
    assert units["by_level"][0] > units["shuffled_by_level"][0]
    assert metrics["teacher"] == {"name": CEPSTRA_NAME, "knows": 1.0}


def test_frames_are_80_ms_and_the_end_is_padded(trained) -> None:
    codec, _, _ = trained
    assert codec.encode(torch.zeros(6400)).shape == (10, 3)
    codes = codec.encode(tone(110)[:6401])
    assert codes.shape == (11, 3)
    assert codes.min() >= 0
    assert codes.max() < 16
    for used in (1, 2, 3):
        assert codec.decode(codes[:, :used]).shape == (11 * 640,)


def test_clips_of_any_length_are_encoded_together_as_they_are_alone(trained) -> None:
    codec, _, _ = trained
    clips = [tone(90 + 30 * n, seconds) for n, seconds in enumerate((1.5, 0.05, 0.7, 2.31))]
    for clip, codes in zip(clips, codec.encode_batch(clips), strict=True):
        assert torch.equal(codes, codec.encode(clip))
    with pytest.raises(DataError, match="at least one sample"):
        codec.encode_batch([clips[0], torch.zeros(0)])


def test_encoding_and_decoding_are_deterministic(trained) -> None:
    codec, _, out = trained
    again = AudioTokenizer.load(out)
    codes = codec.encode(tone(200))
    assert torch.equal(codes, again.encode(tone(200)))
    assert torch.equal(codec.decode(codes), again.decode(codes))


def test_a_code_needs_no_later_sound(trained) -> None:
    codec, _, _ = trained
    pcm = tone(150)[: 640 * 18]
    codes = codec.encode(pcm)
    for frames in (1, 9):
        assert torch.equal(codec.encode(pcm[: 640 * frames]), codes[:frames])
    other = torch.cat([pcm[: 640 * 9], tone(300)[: 640 * 9]])
    assert torch.equal(codec.encode(other)[:9], codes[:9])
    assert not torch.equal(codec.encode(other)[9:], codes[9:])


def test_sound_and_silence_are_told_apart(trained) -> None:
    codec, _, _ = trained
    loud, quiet = codec.decode(codec.encode(tone(140))), codec.decode(codec.encode(torch.zeros(8000)))
    assert loud.square().mean() > 10 * quiet.square().mean()
    assert not torch.equal(codec.encode(tone(140))[1], codec.encode(torch.zeros(8000))[1])


def test_all_quiet_noise_is_one_silence(trained) -> None:
    codec, _, _ = trained
    noise = torch.randn(16000, generator=torch.Generator().manual_seed(0)) * 1e-5
    assert len(torch.unique(codec.encode(noise)[12:], dim=0)) == 1


def test_more_than_one_update_of_the_same_seed_gives_the_same_tokenizer(corpus: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"steps": 6})
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        train_audio_tokenizer(config, out=tmp_path / name, corpus=corpus)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_the_start_is_the_best_linear_codec_and_training_betters_it() -> None:
    clips = shipped_speech(40)
    config = AudioTokenizerConfig(channels=16, codebook=32, levels=3, batch=8, steps=0)
    distances, codecs = [], []
    for steps in (0, 60):
        codec, _, teacher = fit(config.model_copy(update={"steps": steps}), clips)
        assert teacher == {"name": config.teacher, "knows": 1.0}
        codes = [codec.encode(one.pcm) for one in clips[:6]]
        distances.append([reconstruction(codec, clips[:6], codes, used)["mel_distance_db"] for used in (1, 3)])
        codecs.append(codec)
    assert distances[0][1] < distances[0][0] < 3.5  # dB; a decoder that starts at random is above 10
    assert distances[1][1] < distances[0][1] - 0.02 and distances[1][0] < distances[0][0]
    start = codecs[0]
    with torch.no_grad():
        magnitude = torch.cat([start.spectra(one.pcm[None, : len(one.pcm) // 640 * 640]) for one in clips], 2)
        latent = start.latent(magnitude)[0]
    centred = latent - latent.mean(0)
    spread = centred.square().mean(0)
    apart = centred.T @ centred / len(latent) - spread.diag()
    assert spread.mean() == pytest.approx(1.0, rel=0.5) and apart.abs().max() < 0.2 * spread.max()  # principal axes


def test_magnitudes_invert_to_the_same_spectrum_up_to_the_last_sample() -> None:
    spectra = Spectra(8000, 80, 32)
    pcm = tone(140)[:8960]
    magnitude = spectra(pcm[None])
    made = spectra.invert(magnitude[0], 32)
    assert made.shape == pcm.shape
    assert (scaled_log(spectra(made[None])) - scaled_log(magnitude)).abs().mean() < 0.05
    torch.testing.assert_close(unscaled(scaled_log(magnitude)), magnitude, atol=1e-5, rtol=1e-3)
    padded = torch.nn.functional.pad(pcm[None], (spectra.before, 0))
    torch.testing.assert_close(spectra(padded, padded=True), magnitude)


def labelled(count: int = 600) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (N,32) whose faintest directions carry one of 8 labels, and the labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(8, (count,), generator=generator)
    latent = torch.randn(count, 32, generator=generator)
    latent[:, :3] = 0.2 * ((labels[:, None] >> torch.arange(3)) % 2).float()
    return latent, labels


def test_code_1_starts_where_the_teacher_is_told_and_the_others_on_the_rest() -> None:
    latent, labels = labelled()
    taught, known = torch.nn.functional.one_hot(labels, 8).float(), torch.rand(len(labels)) < 0.8
    told_by = {}
    for semantic in (0.0, 1.0):
        quantizer = Quantizer(levels=3, size=8, width=32)
        quantizer.place(latent, taught, known, torch.Generator().manual_seed(0), semantic=semantic)
        codes = quantizer.encode(latent)
        told_by[semantic] = [told(codes[:, level], labels) for level in range(3)]
        errors = [float((latent - quantizer.decode(codes[:, :used])).square().mean()) for used in (1, 2, 3)]
        assert errors[0] > errors[1] > errors[2]
    assert told_by[1.0][0] > 0.6 > 0.2 > told_by[1.0][1]
    assert told_by[0.0][0] < 0.2


def test_silence_does_not_take_all_the_centres() -> None:
    generator = torch.Generator().manual_seed(0)
    spoken = torch.randn(400, 8, generator=generator)
    vectors = torch.cat([torch.zeros(3600, 8), spoken])
    _, held = centres(vectors, 32, generator)
    assert (held > 0).sum() >= 28


def test_entries_that_nothing_falls_on_start_again() -> None:
    latent, labels = labelled()
    quantizer = Quantizer(levels=1, size=8, width=32)
    generator = torch.Generator().manual_seed(0)
    quantizer.place(latent, latent[:, :3], labels >= 0, generator, semantic=0.5)
    quantizer.codebooks[0, 3] = 100.0
    quantizer.sums[0, 3], quantizer.counts[0, 3] = 100.0 * 2 * DEAD, 2 * DEAD
    for _ in range(60):
        quantizer.move(latent, quantizer.encode(latent), generator)
    assert quantizer.codebooks.abs().max() < 10
    assert len(torch.unique(quantizer.encode(latent))) == 8


def test_information_is_one_for_a_copy_and_that_of_the_null_for_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(8, (2000,), generator=generator)
    noise = torch.randint(8, (2000,), generator=generator)
    found = by_level(torch.stack([labels, noise], 1), labels)
    assert found["by_level"][0] == pytest.approx(1.0)
    assert abs(found["by_level"][1] - found["shuffled_by_level"][1]) < 0.01
    assert told(labels, torch.zeros(2000, dtype=torch.int64)) == 0.0


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A teacher file that knows two clips of two and three frames."""
    monkeypatch.setattr(audio_teacher, "REPOSITORY", tmp_path)
    known = [tone(100)[:1280], tone(120)[:1920]]
    digests = b"".join(hashlib.sha256(sixteen_bit(pcm)).digest() for pcm in known)
    path = tmp_path / "teacher.npz"
    np.savez(path, digest=np.frombuffer(digests, np.uint8).reshape(2, 32), frames=np.array([2, 3]),
             values=np.arange(10, dtype=np.int8).reshape(5, 2), scale=np.float32(0.5))  # fmt: skip
    return path


def test_the_teacher_is_found_by_sound_and_a_clip_it_did_not_hear_is_left_out(teacher: Path) -> None:
    clips = [clip("new", tone(300)[:640]), clip("long", tone(120)[:1920]), clip("short", tone(100)[:1280])]
    found = teach(clips, teacher.name, 8000, 640)
    assert found.teacher == teacher.name and found.known == pytest.approx(2 / 3)
    assert found.features[0] is None
    assert [feature.shape for feature in found.features[1:] if feature is not None] == [(3, 2), (2, 2)]
    whole = torch.cat([feature for feature in found.features if feature is not None])
    torch.testing.assert_close(whole.square().mean(), torch.tensor(1.0))
    torch.testing.assert_close(whole.mean(0), torch.zeros(2), atol=1e-6, rtol=0)


def test_examples_carry_the_features_of_their_own_moment(teacher: Path) -> None:
    config = AudioTokenizerConfig(teacher=teacher.name, segment=4, batch=64)
    clips = [clip(str(i), pcm) for i, pcm in enumerate([tone(100)[:1280], tone(120)[:1920]])]
    model = AudioTokenizer(config)
    examples = Examples(model, clips, teach(clips, teacher.name, 8000, 640), torch.device("cpu"))
    batch = examples.draw(torch.Generator().manual_seed(0))
    assert batch.magnitude.shape == (64, 129, 32) and batch.taught.shape == (64, 4, 2)
    assert set(batch.known.sum(1).tolist()) == {2.0, 3.0}
    assert bool((batch.known[:, 0] == 1).all() and (batch.known[:, -1] == 0).all())
    assert bool((batch.magnitude[..., 0] > 0).any(1).all()) and not bool(batch.magnitude[..., -1].any())


def test_a_corpus_that_the_teacher_does_not_know_is_taught_by_cepstra_and_says_so(
    teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = teach([clip("other", tone(300)), clip("more", tone(200))], teacher.name, 8000, 640)
    assert found.teacher == CEPSTRA_NAME
    assert [feature.shape for feature in found.features if feature is not None] == [(19, 26), (19, 26)]
    assert "knows 0% of 2 clips, so mel cepstra teach code 1" in capsys.readouterr().err


def test_a_missing_or_strange_teacher_is_named(teacher: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file .*absent.npz; make it with data/build_teacher.py"):
        teach([], "absent.npz", 8000, 640)
    (teacher.parent / "text.npz").write_text("no numbers")
    with pytest.raises(DataError, match=r"text\.npz: no teacher file"):
        teach([], "text.npz", 8000, 640)
    with np.load(teacher) as table:
        np.savez(teacher.parent / "short.npz", **{**table, "values": table["values"][:3]})
    with pytest.raises(DataError, match=r"short\.npz: its tables do not fit"):
        teach([], "short.npz", 8000, 640)


def test_the_shipped_teacher_knows_the_shipped_speech() -> None:
    table = audio_teacher.read_teacher("data/teacher/speech.npz")
    for one in shipped_speech(60):
        assert len(table[one.digest]) == math.ceil(len(one.pcm) / 640)


def test_si_sdr_ignores_scale_and_falls_with_noise() -> None:
    clean = tone(110)
    noise = torch.randn(len(clean), generator=torch.Generator().manual_seed(0)) * clean.std()
    assert scale_invariant_sdr(0.5 * clean + 1e-6 * noise, clean) > 60
    assert abs(scale_invariant_sdr(clean + noise, clean)) < 1


def test_intelligibility_is_one_for_the_same_speech_and_nothing_for_a_click() -> None:
    clean = tone(110, seconds=3)
    assert intelligibility(clean, clean, 8000) == pytest.approx(1.0, abs=1e-3)
    assert intelligibility(torch.randn(len(clean)), clean, 8000) < 0.2
    assert math.isnan(intelligibility(clean[:1280], clean[:1280], 8000))


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


def test_a_corpus_too_small_for_its_codebook_is_named(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot fill a codebook of 4096"):
        train_audio_tokenizer(CONFIG.model_copy(update={"codebook": 4096, "steps": 4}), out=tmp_path, corpus=corpus)


def test_settings_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match="width is 64"):
        AudioTokenizerConfig.parse({"width": 64, "channels": 8}, "tokenizers.audio")
    with pytest.raises(DataError, match="no multiple of 8"):
        AudioTokenizer(AudioTokenizerConfig(frame_samples=100))
