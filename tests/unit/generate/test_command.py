"""`accordion generate`: every direction from files to files through the artifacts' lineage; one error a bad input."""

import io

import numpy as np
import pytest
import soundfile
from PIL import Image
from typer.testing import CliRunner

from accordion.cli import app
from accordion.data import media
from accordion.model import save_model
from accordion.store import Store
from tests import media as files
from tests.unit.generate.conftest import VISION

runner = CliRunner()


@pytest.fixture
def made(tmp_path, monkeypatch, model, tools):
    """A checkpoint made with the three tokenizers, in a home of its own."""
    monkeypatch.setenv("ACCORDION_HOME", str(tmp_path / "home"))
    store, parents = Store(tmp_path / "home" / "store"), {}
    for part in ("text", "vision", "audio"):
        with store.staging(f"tokenizer-{part}") as folder:
            getattr(tools, part).save(folder)
            parents[part] = store.publish(
                folder, kind=f"tokenizer-{part}", stage=part, config={}, parents={}, created={}
            )
    with store.staging("checkpoint") as folder:
        save_model(model, folder)
        store.publish(folder, kind="checkpoint", stage="pretrain", config={}, parents=parents, created={})
    (tmp_path / "photo.png").write_bytes(files.image("PNG", files.pixels(20, 30)))
    (tmp_path / "film.mp4").write_bytes(files.video("mp4", frames=4, fps=5))
    sound = io.BytesIO()
    soundfile.write(sound, np.sin(np.arange(4000) / 5) * 0.3, 8000, format="WAV", subtype="PCM_16")
    (tmp_path / "word.wav").write_bytes(sound.getvalue())
    soundfile.write(tmp_path / "quiet.wav", np.zeros(8000), 8000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ["--video", "film.mp4"],
        ["3 + 4", "--checkpoint", "checkpoint"],
        ["--text", "the cat"],
        ["--image", "photo.png"],
        ["--audio", "word.wav"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_text_comes_after_anything(made, arguments):
    shown = [runner.invoke(app, ["generate", *arguments, "--max-tokens", "4"]) for _ in range(2)]
    assert shown[0].exit_code == 0, shown[0].output
    assert shown[0].stdout == shown[1].stdout
    assert arguments[0] != "--text" or shown[0].stdout.startswith("the cat")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [(["--caption", "the cat"], "cat.png"), (["--caption", "the car"], "car.mp4"), (["--text", "the dog"], "dog.wav"),
     (["--text", "the dog", "--voice", "word.wav"], "told.wav"),
     (["--image", "photo.png"], "moving.mp4"), (["--video", "film.mp4", "--caption", "the car"], "more.mp4")],
)  # fmt: skip
def test_media_are_written_whole_and_readable(made, arguments, name):
    options = ["--seed", "3", "--top-k", "4", "--top-p", "0.9", "--guidance", "2", "--seconds", "0.5"]
    shown = runner.invoke(app, ["generate", *arguments, "--out", name, *options])
    assert shown.exit_code == 0, shown.output
    path = made / name
    if path.suffix == ".png":
        assert Image.open(path).size == (VISION.image_size, VISION.image_size)
    elif path.suffix == ".mp4":
        assert len(list(media.video_frames(path))) == VISION.frames
    else:
        pcm, rate = media.read_audio(path)
        assert rate == 8000 and 0 < len(pcm) <= 4000
    again = runner.invoke(app, ["generate", *arguments, "--out", name, *options])
    assert again.exit_code == 2 and "exists already" in again.output


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--image", "nothing.png"], "nothing.png"),
        (["--image", "word.wav"], "word.wav"),
        (["--audio", "photo.png"], "photo.png"),
        (["--audio", "word.wav", "--seconds", "0.1"], "at most 0.1 s are read"),
        (["--video", "photo.png", "--out", "x.mp4"], "photo.png"),
        (["--caption", "x", "--out", "nowhere/x.png"], "no folder nowhere; make it"),
        (["--caption", "cat " * 5000, "--out", "x.png"], "at most 4096"),
        (["--text", "x", "--voice", "nothing.wav", "--out", "x.wav"], "nothing.wav"),
        (["--text", "x", "--voice", "photo.png", "--out", "x.wav"], "photo.png"),
        (["--text", "x", "--voice", "quiet.wav", "--out", "x.wav"], "--voice quiet.wav: less than 0.3 s"),
        (["--text", "x", "--voice", "word.wav"], "only a text that is read aloud has a voice"),
        (["--audio", "word.wav", "--voice", "word.wav"], "only a text that is read aloud has a voice"),
        (["--text", "x", "--member", "small"], "holds no model"),
        (["--text", "x", "--checkpoint", "tokenizer-text"], "holds no model"),
        (["--text", "x", "--temperature", "-1"], "temperature -1"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_bad_request_is_one_line_that_names_it(made, arguments, why):
    result = runner.invoke(app, ["generate", *arguments])
    assert result.exit_code == 2 and why in result.output, result.output
    assert "Traceback" not in result.output and len(result.output.strip().splitlines()) == 1
