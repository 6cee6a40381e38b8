"""`accordion tokenize`: every kind of file there and back, its figures, and one clear error for each bad file."""

import io
import itertools
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from accordion import tokenize as tokenize_module
from accordion.cli import app
from accordion.config.data import AudioTokenizerConfig, TextTokenizerConfig, VisionTokenizerConfig
from accordion.data.media import read_audio, read_image, resample, video_frames
from accordion.data.media.image import on_square
from accordion.data.tokenizers.audio import AudioTokenizer
from accordion.data.tokenizers.text import TextTokenizer
from accordion.data.tokenizers.text_training import fit
from accordion.data.tokenizers.vision import VisionTokenizer
from accordion.errors import DataError
from accordion.report.run import RunFigures
from accordion.store import Artifact, Store
from accordion.tokenize import Outputs, Tokenized, Tokenizers, describe, tokenize
from tests import media

SIDE, SCALES, BITS, FRAMES = 32, (1, 2, 4, 8), 8, 4
VOCABULARY = 382  # of 16 control ids, 353 base tokens and the 13 merges that the text below holds
TOKENS = sum(scale * scale for scale in SCALES)
IMAGES = {f"photo.{form.lower()}": media.image(form) for form in ("PNG", "JPEG", "WEBP", "GIF")}
SOUNDS = {
    "stereo.wav": media.audio("WAV", rate=44_100, channels=2),
    "wide.flac": media.audio("FLAC", rate=48_000, channels=6),
    "low.ogg": media.audio("OGG", rate=11_025),
    "a.mp3": media.audio("MP3", rate=22_050, channels=2),
    "raw.gsm": media.audio("GSM"),
}
FILMS = {
    "film.mp4": media.video("mp4", frames=10, fps=5),
    "film.webm": media.video("webm", frames=9, fps=6),
    "moving.gif": media.animation("GIF", frames=5, milliseconds=200),
    "moving.webp": media.animation("WEBP", frames=3, milliseconds=100),
}
runner = CliRunner()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one untrained tokenizer of each kind."""
    home = tmp_path_factory.mktemp("home")
    torch.manual_seed(0)
    made = {
        "text": fit(TextTokenizerConfig(vocabulary=400), ["the cat and the dog and the car"] * 20),
        "vision": VisionTokenizer(
            VisionTokenizerConfig.parse(
                {"image_size": SIDE, "scales": SCALES, "bits": BITS, "channels": 8, "frames": FRAMES}
            )
        ),
        "audio": AudioTokenizer(AudioTokenizerConfig(levels=2, codebook=16)),
    }
    for part, tokenizer in made.items():
        publish(home, part, tokenizer)
    return home


def publish(home: Path, part: str, tokenizer: TextTokenizer | VisionTokenizer | AudioTokenizer) -> Artifact:
    artifacts = Store(home / "store")
    with artifacts.staging(part) as folder:
        tokenizer.save(folder)
        return artifacts.publish(
            folder, kind=f"tokenizer-{part}", stage=f"train_{part}_tokenizer", config={}, parents={}, created={}
        )


@pytest.fixture
def tokenizers(store: Path, monkeypatch: pytest.MonkeyPatch) -> Tokenizers:
    monkeypatch.setenv("ACCORDION_HOME", str(store))
    return Tokenizers.of()


def convert(name: str, data: bytes, tokenizers: Tokenizers, folder: Path) -> Tokenized:
    (folder / name).write_bytes(data)
    return tokenize(folder / name, tokenizers, Outputs(folder / "out"))


@pytest.mark.parametrize("text", ["the cat 猫 😀\r\n\x1b[31m", "a", " \n", "שלום 1234567890"])
def test_text_comes_back_byte_for_byte(text: str, tokenizers: Tokenizers, tmp_path: Path) -> None:
    found = convert("notes.txt", text.encode(), tokenizers, tmp_path)
    ids = tokenizers.text.encode(text)
    assert found.kind == "text" and found.tokens == len(ids) and found.figures["exact"] is True
    assert found.figures["characters"] == len(text)
    assert found.figures["characters_per_token"] == len(text) / len(ids)
    assert found.figures["bits_per_character"] == pytest.approx(len(ids) * np.log2(VOCABULARY) / len(text))
    assert found.written and found.written.read_bytes() == text.encode()
    assert [index for index, _ in found.pieces] == ids[: tokenize_module.SHOWN]
    assert "comes back exactly" in describe(found) and "\x1b" not in "".join(piece for _, piece in found.pieces)


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_coded_as_the_model_sees_it(name: str, tokenizers: Tokenizers, tmp_path: Path) -> None:
    found = convert(name, IMAGES[name], tokenizers, tmp_path)
    figures = found.figures
    assert found.kind == "image" and found.tokens == TOKENS
    assert (figures["width"], figures["height"], figures["coded_side"]) == (40, 24, SIDE)
    assert figures["tokens_per_scale"] == [scale * scale for scale in SCALES]
    assert figures["bits"] == TOKENS * BITS and figures["bits_per_pixel"] == TOKENS * BITS / SIDE**2
    assert found.written is not None
    decoded, original = read_image(found.written), on_square(read_image(tmp_path / name), SIDE)
    error = float(((decoded.astype(float) - original) ** 2).mean())
    assert figures["psnr_db"] == pytest.approx(10 * np.log10(255**2 / error), abs=0.05)
    assert -1 <= figures["ssim"] <= 1


@pytest.mark.parametrize("name", SOUNDS)
def test_sound_of_any_rate_and_channels_is_coded(name: str, tokenizers: Tokenizers, tmp_path: Path) -> None:
    found = convert(name, SOUNDS[name], tokenizers, tmp_path)
    figures = found.figures
    pcm, rate = read_audio(tmp_path / name)
    samples = len(resample(pcm, rate, 8000))
    assert found.kind == "audio" and found.tokens == figures["frames"] == -(-samples // 640)
    assert figures["seconds"] == len(pcm) / rate and figures["rate_hz"] == rate
    assert figures["codes_per_second"] == 25 and figures["bits_per_second"] == 12.5 * 2 * 4
    assert figures["mel_distance_db"] > 0
    assert len(figures["mel_distance_db_by_codes"]) == 2
    assert figures["mel_distance_db_by_codes"][-1] == figures["mel_distance_db"]
    codes = tokenizers.audio.encode(torch.from_numpy(resample(pcm, rate, 8000)).clamp(-1, 1)[: 6 * 640])
    assert figures["first_frames"] == codes.tolist()
    assert "first frames: " + " ".join(map(str, codes[0].tolist())) in "\n".join(describe(found))
    decoded, coded_rate = read_audio(found.written or "")
    assert coded_rate == 8000 and len(decoded) == samples


def test_long_sound_is_coded_in_pieces_of_whole_frames(
    tokenizers: Tokenizers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize_module, "PIECE_SECONDS", 1)
    lengths = []
    encode = AudioTokenizer.encode

    def watch(self: AudioTokenizer, pcm: torch.Tensor, rate: int | None = None) -> torch.Tensor:
        lengths.append(len(pcm))
        return encode(self, pcm, rate)

    monkeypatch.setattr(AudioTokenizer, "encode", watch)
    found = convert("long.wav", media.audio("WAV", rate=8000, seconds=3.5), tokenizers, tmp_path)
    assert lengths == [7680, 7680, 7680, 4960] and found.tokens == 12 * 3 + 8
    assert len(read_audio(found.written or "")[0]) == 28_000


@pytest.mark.parametrize(
    ("name", "frames"), [("film.mp4", 10), ("film.webm", 9), ("moving.gif", 5), ("moving.webp", 3)]
)
def test_a_video_is_coded_clip_by_clip(name: str, frames: int, tokenizers: Tokenizers, tmp_path: Path) -> None:
    found = convert(name, FILMS[name], tokenizers, tmp_path)
    figures = found.figures
    assert found.kind == "video" and figures["frames"] == frames and found.tokens == frames * TOKENS
    assert [clip["frames"] for clip in figures["clips"]] == [FRAMES] * (frames // FRAMES) + [frames % FRAMES] * bool(
        frames % FRAMES
    )
    assert figures["bits"] == frames * TOKENS * BITS == sum(clip["bits"] for clip in figures["clips"])
    assert figures["bits_per_second"] == pytest.approx(figures["bits"] / figures["seconds"])
    weighted = [clip["psnr_db"] * clip["frames"] for clip in figures["clips"]]
    assert figures["psnr_db"] == pytest.approx(sum(weighted) / frames)
    before, after = list(video_frames(tmp_path / name)), list(video_frames(found.written or ""))
    assert [frame.seconds for frame in after] == pytest.approx([frame.seconds for frame in before], abs=0.002)
    assert figures["seconds"] == pytest.approx(before[-1].seconds * frames / (frames - 1))
    clip = torch.from_numpy(np.stack([on_square(frame.pixels, SIDE) for frame in before[:FRAMES]])).movedim(-1, 1)
    wanted = tokenizers.vision.decode(tokenizers.vision.encode(clip[None] / 255))[0].movedim(1, -1).numpy()
    assert np.abs(np.stack([frame.pixels for frame in after[:FRAMES]]) / 255 - wanted).mean() < 0.06  # H.264 loses some


def test_no_more_than_one_clip_of_a_video_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = itertools.count()
    endless = (next(taken) for _ in itertools.repeat(None))
    monkeypatch.setattr(tokenize_module.media, "video_frames", lambda path: endless)
    clips = tokenize_module._clips(tmp_path, 4)
    assert [next(clips), next(clips)] == [[0, 1, 2, 3], [4, 5, 6, 7]] and next(taken) == 8


def huge_png() -> bytes:
    """A PNG of 10,000 x 10,000 pixels in a few bytes: only its header says so."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


BAD = {
    "empty.txt": (b"", "empty"),
    "mark.txt": (b"\xef\xbb\xbf", "byte order mark"),
    "latin1.txt": ("é".encode("latin-1") * 3, "unknown type|not UTF-8"),
    "cut.png": (IMAGES["photo.png"][:-30], "damaged PNG"),
    "cut.jpg": (IMAGES["photo.jpeg"][:200], "damaged JPEG"),
    "huge.png": (huge_png(), "10000x10000 pixels; at most"),
    "cut.wav": (SOUNDS["stereo.wav"][:1000], "damaged WAV"),
    "cut.flac": (SOUNDS["wide.flac"][:400], "damaged FLAC"),
    "cut.ogg": (SOUNDS["low.ogg"][:-500], "damaged OGG"),
    "odd.gsm": (SOUNDS["raw.gsm"][:-5], "GSM"),
    "cut.mp4": (FILMS["film.mp4"][:-200], "damaged MP4"),
    "cut.gif": (FILMS["moving.gif"][:-50], "damaged GIF"),
    "cut.webp": (FILMS["moving.webp"][:-50], "damaged WEBP"),
    "what.bin": (bytes(range(256)) * 9, "unknown type"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_error_that_names_it(name: str, tokenizers: Tokenizers, tmp_path: Path) -> None:
    data, why = BAD[name]
    with pytest.raises(DataError, match=why) as caught:
        convert(name, data, tokenizers, tmp_path)
    assert name in str(caught.value) and "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_neighbours_of_bad_files_go_through_and_the_exit_code_says_so(tokenizers: Tokenizers, tmp_path: Path) -> None:
    for name, (data, _) in BAD.items():
        (tmp_path / name).write_bytes(data)
    good = {"photo.png": IMAGES["photo.png"], "raw.gsm": SOUNDS["raw.gsm"], "notes.txt": b"the cat\n"}
    for name, data in good.items():
        (tmp_path / name).write_bytes(data)
    files = [str(tmp_path / name) for name in sorted([*BAD, *good, "missing.png"])] + [str(tmp_path)]
    shown = runner.invoke(app, ["tokenize", *files, "--reconstruct", str(tmp_path / "new" / "out")])
    assert shown.exit_code == 2 and "Traceback" not in shown.output
    assert shown.stderr.count("accordion: ") == len(shown.stderr.splitlines()) == len(BAD) + 2
    assert {path.name for path in (tmp_path / "new" / "out").iterdir()} == {
        "photo.png.decoded.png", "raw.gsm.decoded.wav", "notes.txt.decoded.txt",
    }  # fmt: skip
    assert "PSNR" in shown.stdout and "mel distance" in shown.stdout and "the| cat" in shown.stdout
    assert runner.invoke(app, ["tokenize", str(tmp_path / "notes.txt")]).exit_code == 0
    listed = json.loads(runner.invoke(app, ["tokenize", "--json", *files]).stdout)
    assert sum("error" in entry for entry in listed) == len(BAD) + 2
    found = {Path(entry["file"]).name: entry for entry in listed if "error" not in entry}
    assert set(found) == set(good) and found["photo.png"]["figures"]["psnr_db"] > 0


def test_files_of_one_name_do_not_overwrite_each_other(tokenizers: Tokenizers, tmp_path: Path) -> None:
    outputs = Outputs(tmp_path / "out")
    for part, text in (("a", "the cat"), ("b", "the dog")):
        (tmp_path / part).mkdir()
        (tmp_path / part / "x.txt").write_text(text)
    written = [tokenize(tmp_path / part / "x.txt", tokenizers, outputs).written for part in ("a", "b")]
    assert [path.read_text() for path in written if path] == ["the cat", "the dog"]


def test_a_folder_that_cannot_be_made_is_refused_before_any_work(tokenizers: Tokenizers, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("the cat")
    shown = runner.invoke(app, ["tokenize", str(tmp_path / "file"), "--reconstruct", str(tmp_path / "file" / "out")])
    assert shown.exit_code == 2 and "cannot be made" in shown.output and shown.stdout == ""


def test_the_newest_tokenizers_are_used_unless_others_are_named(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCORDION_HOME", str(tmp_path))
    (tmp_path / "notes.txt").write_text("the cat and the dog")
    command = ["tokenize", "--json", str(tmp_path / "notes.txt")]
    assert "run the pipeline first" in runner.invoke(app, command).output

    def vocabulary(*options: str) -> int:
        shown = runner.invoke(app, [*command, *options])
        assert shown.exit_code == 0, shown.output
        return json.loads(shown.stdout)[0]["figures"]["vocabulary"]

    folders = {
        f"{part}_tokenizer": next((store / "store" / f"tokenizer-{part}").iterdir())
        for part in ("text", "vision", "audio")
    }
    assert vocabulary("--tokenizer", str(folders["text_tokenizer"])) == VOCABULARY
    newer = publish(tmp_path, "text", fit(TextTokenizerConfig(vocabulary=400), ["aa"]))
    assert vocabulary() == 370
    RunFigures(metrics={}, timings={}, folders=folders).save(tmp_path)
    assert vocabulary("--run", str(tmp_path)) == VOCABULARY
    assert vocabulary("--run", str(tmp_path), "--tokenizer", str(newer)) == 370
    for options, why in (
        (["--run", str(store)], "no run.json"),
        (["--tokenizer", "tokenizer-text:ffff"], "fits 0 artifacts"),
    ):
        refused = runner.invoke(app, [*command, *options])
        assert refused.exit_code == 2 and why in refused.output and "Traceback" not in refused.output
    RunFigures(metrics={}, timings={}, folders={}).save(tmp_path)
    assert "made no tokenizers" in runner.invoke(app, [*command, "--run", str(tmp_path)]).output
    (Store(tmp_path / "store").path(newer) / "tokenizer.json").write_text("{}")
    assert "was altered" in runner.invoke(app, command).output


def test_an_artifact_that_is_no_tokenizer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCORDION_HOME", str(tmp_path))
    artifacts = Store(tmp_path / "store")
    with artifacts.staging("corpus") as folder:
        (folder / "data.txt").write_text("data")
        artifacts.publish(folder, kind="corpus", stage="ingest", config={}, parents={}, created={})
    shown = runner.invoke(app, ["tokenize", "--tokenizer", "corpus", str(tmp_path)])
    assert shown.exit_code == 2 and "wants tokenizer-text, tokenizer-vision, tokenizer-audio" in shown.output


def test_a_name_that_is_no_utf8_is_shown_escaped(tokenizers: Tokenizers, tmp_path: Path) -> None:
    path = tmp_path / "caf\udce9.png"
    Image.fromarray(media.pixels()).save(buffer := io.BytesIO(), "PNG")
    path.write_bytes(buffer.getvalue())
    for options in ([], ["--json"]):
        shown = runner.invoke(app, ["tokenize", str(path), *options])
        assert shown.exit_code == 0, shown.output
        assert "caf" in shown.stdout
