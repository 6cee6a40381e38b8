"""The benchmarks of the media tokenizers: speed beside common codecs, tables of what is left of held-out media."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from accordion.config.data import AudioTokenizerConfig
from accordion.data import media
from accordion.data.media.audio import to_int16
from accordion.data.tokenizers.audio import AudioTokenizer
from accordion.data.tokenizers.audio_teacher import Clip, digest
from accordion.data.tokenizers.vision_fit import Pictures
from accordion.home import REPOSITORY
from benchmarks import audio_quality, media_tokenizers, vision_quality, voices
from tests.small_corpus import tables, write_corpus


def test_media_tokenizers_are_measured_beside_webp() -> None:
    pictures = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = media_tokenizers.vision(pictures, repeats=1)
    assert [row.figure.removeprefix("vision: ") for row in rows] == list(media_tokenizers.FIGURES)
    assert all(row.ours_values[0] > 0 and row.peer_values[0] > 0 for row in rows)


def test_the_vision_table_is_trained_from_packed_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = torch.Generator().manual_seed(0)
    parts = {
        split: Pictures(*(torch.randint(256, shape, dtype=torch.uint8, generator=draw)
                          for shape in ((4, 3, 32, 32), (4, 4, 3, 32, 32))))
        for split in ("train", "val")
    }  # fmt: skip
    vision_quality.pack(parts, tmp_path / "pictures.safetensors")
    small = ["steps=2", "batch=4", "channels=8", "losses.perceptual=0"]
    vision_quality.main(
        ["--pictures", str(tmp_path / "pictures.safetensors"), "--set", *small, "--json", str(tmp_path / "found.json")]
    )
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["config"]["channels"] == 8 and len(found["image"]["budgets"]) == 12
    assert "16 held-out frames" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="did you mean 'bits'"):
        vision_quality.main(["--pictures", str(tmp_path / "pictures.safetensors"), "--set", "bitts=3"])


def test_speech_is_measured_beside_the_encodec_architecture() -> None:
    clips = [torch.randn(2000, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)]
    rows = media_tokenizers.speech(clips, repeats=1)
    assert [row.figure for row in rows] == ["speech: encode", "speech: decode", "speech: decode to magnitudes"]
    assert all(row.ours_values[0] > 0 and row.peer_values[0] > 0 for row in rows)
    peer = media_tokenizers.encodec(AudioTokenizerConfig())
    assert peer.encode(clips[0][None, None, :1920]).audio_codes.shape[-2:] == (4, 3)  # codes, frames of 640 samples


def test_the_audio_table_tells_known_voices_from_a_held_out_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = tables()
    corpus = write_corpus(tmp_path / "corpus", content)
    audio = content["audio"]
    spoken = [row.pcm for row in audio.itertuples() if row.language == "en"]
    phones = tmp_path / "phones.npz"
    names = b"".join(hashlib.sha256(pcm).digest() for pcm in spoken)
    steps = [len(pcm) // 160 for pcm in spoken]
    np.savez(phones, digest=np.frombuffer(names, np.uint8).reshape(-1, 32), steps=steps,
             phones=np.arange(sum(steps), dtype=np.uint8) // 16 % 3, names=["none", "a", "b"])  # fmt: skip
    monkeypatch.setattr(audio_quality, "PHONES", phones)
    monkeypatch.setattr(audio_quality, "REPOSITORY", tmp_path)
    small = ["steps=3", "batch=4", "channels=8", "codebook=4", "levels=2", "segment=4", "teacher=null"]
    line = ["--corpus", str(corpus), "--set", *small]
    audio_quality.main([*line, "--hold-out", "es", "--json", str(tmp_path / "found.json"), "--listen", str(tmp_path)])
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["groups"]) == ["known voices", "es, held out"] and found["held_out"] == ["es"]
    assert len(found["groups"]["es, held out"]["mel_distance_db_by_codes"]) == 2
    truth = found["bounds"]["known voices"]["all codes, true phase"]
    assert truth["si_sdr_db"] > found["groups"]["known voices"]["si_sdr_db_by_codes"][-1]
    assert found["phones"]["clips"] == 4 and len(found["phones"]["by_level"]) == 2
    assert len(list(tmp_path.glob("*/*.wav"))) == 6 and len(list(tmp_path.glob("*/*.png"))) == 2
    assert "known voices: 1 clips" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--hold-out xx: no validation clips; the corpus has en, es"):
        audio_quality.main([*line, "--hold-out", "xx"])
    with pytest.raises(SystemExit, match="nothing is left"):
        audio_quality.main([*line, "--hold-out", "en", "es"])
    np.savez(phones, digest=np.zeros((1, 32), np.uint8), steps=[1], phones=[1], names=["none", "a"])
    audio_quality.main(line)
    assert "none of these clips" in capsys.readouterr().out


def test_the_shipped_phones_are_those_of_the_shipped_english_speech() -> None:
    with zipfile.ZipFile(REPOSITORY / "data/sample/audio/prompts.zip") as archive:
        sounds = {name: media.read_audio(archive.read(name), name)[0] for name in archive.namelist()}
    clips = [Clip(name=name, pcm=torch.from_numpy(pcm), language=name[:2], digest=digest(to_int16(pcm)))
             for name, pcm in sounds.items()]  # fmt: skip
    torch.manual_seed(0)
    model = AudioTokenizer(AudioTokenizerConfig(channels=8)).eval()
    found = audio_quality.phones(model, [clip for clip in clips if clip.language == "en"], audio_quality.PHONES)
    assert found is not None and found["clips"] > 40 and found["frames"] > 900
    assert audio_quality.phones(model, [clip for clip in clips if clip.language == "fr"], audio_quality.PHONES) is None


def test_voices_are_judged_with_each_person_left_out_and_a_model_without_them_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [clip for clip in voices.prompts() if clip.language in ("fr", "it")][::6]
    found = voices.tell(some)
    assert set(found) == {"deviation over all clips", "halves of clips", "clips of a person"}
    for rates in found.values():
        assert set(rates) == {"all", "Carlo Flora", "June Wallack"} and all(0 <= rate <= 1 for rate in rates.values())
    monkeypatch.setenv("ACCORDION_HOME", str(tmp_path))
    with pytest.raises(SystemExit, match=r"^voices: "):
        voices.main(["--checkpoint", str(tmp_path / "nothing")])
