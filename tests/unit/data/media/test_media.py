"""Media readers: every format, what is no media file, and damage of every kind as one clear error."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from accordion.data.media import audio as audio_module
from accordion.data.media import kind_of, read_audio, read_image, read_text, read_video, resample, video_frames
from accordion.data.media import video as video_module
from accordion.errors import DataError
from accordion.home import REPOSITORY
from tests import media

IMAGES = {form: media.image(form) for form in ("PNG", "JPEG", "WEBP", "GIF")}
CLIPS = {form: media.audio(form) for form in ("WAV", "FLAC", "OGG", "MP3", "GSM")}
FILMS = {form: media.video(form) for form in ("mp4", "webm")}
FILMS |= {form: media.animation(form) for form in ("GIF", "WEBP")}
READERS = {"image": read_image, "audio": read_audio, "video": read_video}


@pytest.mark.parametrize("form", IMAGES)
def test_each_image_format_is_read_from_bytes_and_from_a_path_with_a_wrong_suffix(form: str, tmp_path: Path) -> None:
    picture = read_image(IMAGES[form])
    assert picture.shape == (24, 40, 3) and picture.dtype == np.uint8
    assert np.abs(picture.astype(int) - media.pixels()).mean() < (1 if form == "PNG" else 12)
    path = tmp_path / "photo.txt"
    path.write_bytes(IMAGES[form])
    assert kind_of(path) == "image"
    assert np.array_equal(read_image(path), picture)


def test_transparency_is_laid_on_white_and_a_stated_rotation_is_applied() -> None:
    layer = np.zeros((8, 12, 4), np.uint8)
    layer[:, :6] = (255, 0, 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(layer).save(buffer, "PNG")
    picture = read_image(buffer.getvalue())
    assert (picture[:, :6] == (255, 0, 0)).all() and (picture[:, 6:] == 255).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    buffer = io.BytesIO()
    Image.fromarray(media.pixels(24, 40)).save(buffer, "JPEG", exif=exif)
    assert read_image(buffer.getvalue()).shape == (40, 24, 3)


def test_palettes_grey_16_bits_and_cmyk_become_rgb() -> None:
    source = Image.fromarray(media.pixels())
    deep = Image.fromarray(np.full((4, 4), 0x80FF, np.uint16))
    for picture, form, mean in [(source.convert("P"), "PNG", None), (source.convert("LA"), "PNG", None),
                                (source.convert("CMYK"), "JPEG", None), (deep, "PNG", 0x80)]:  # fmt: skip
        buffer = io.BytesIO()
        picture.save(buffer, form)
        found = read_image(buffer.getvalue())
        assert found.shape == (*picture.size[::-1], 3)
        assert mean is None or (found == mean).all()


def test_of_an_animation_the_first_frame_is_the_image() -> None:
    first = read_image(FILMS["WEBP"])
    assert np.abs(first.astype(int) - media.pixels(seed=0)).mean() < 12


@pytest.mark.parametrize("form", CLIPS)
def test_each_audio_format_is_read_as_mono(form: str) -> None:
    pcm, rate = read_audio(CLIPS[form])
    assert rate == (8000 if form == "GSM" else 16_000)
    assert pcm.ndim == 1 and pcm.dtype == np.float32
    assert abs(len(pcm) / rate - 0.5) < (0.1 if form == "MP3" else 0.03)
    assert abs(np.abs(pcm).max() - 0.5) < 0.1
    assert kind_of(CLIPS[form]) == "audio"


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG"])
def test_channels_are_averaged_at_any_rate(form: str) -> None:
    for rate, channels in [(44_100, 2), (11_025, 6), (48_000, 1)]:
        pcm, found = read_audio(media.audio(form, rate, 0.2, channels))
        assert found == rate and abs(len(pcm) - 0.2 * rate) <= 1
        assert abs(np.abs(pcm).max() - 0.5) < 0.1


@pytest.mark.parametrize(("rate", "to"), [(44_100, 8_000), (8_000, 16_000), (11_025, 8_000), (16_000, 16_000)])
def test_resampling_keeps_the_tone(rate: int, to: int) -> None:
    moved = resample(media.tone(rate, 0.5)[:, 0], rate, to)
    assert abs(len(moved) - 0.5 * to) <= 1 and moved.dtype == np.float32
    middle = slice(to // 10, -to // 10)
    assert np.abs(moved[middle] - media.tone(to, 0.5)[:, 0][: len(moved)][middle]).max() < 0.02


@pytest.mark.parametrize("form", FILMS)
def test_each_video_format_gives_frames_and_their_rate(form: str) -> None:
    frames, fps = read_video(FILMS[form])
    count, size, rate = (12, (48, 64), 6) if form in ("mp4", "webm") else (5, (24, 40), 5)
    assert frames.shape == (count, *size, 3) and frames.dtype == np.uint8
    assert abs(fps - rate) < 0.2
    expected = np.stack([media.pixels(*size, seed=n) for n in range(count)])
    assert np.abs(frames.astype(int) - expected).mean() < 30
    assert kind_of(FILMS[form]) == "video"


def test_frames_are_scaled_and_decoded_only_as_they_are_taken() -> None:
    frames = video_frames(FILMS["mp4"], short_side=24)
    assert next(frames).pixels.shape == (24, 32, 3)
    assert abs(next(frames).seconds - 1 / 6) < 0.01


def test_text_is_utf_8_or_utf_16_with_a_mark(tmp_path: Path) -> None:
    assert read_text("héllo".encode()) == read_text("héllo".encode("utf-8-sig")) == "héllo"
    assert read_text("héllo".encode("utf-16")) == "héllo"
    assert kind_of("привет, мир".encode()) == kind_of("日本語".encode("utf-16")) == "text"
    with pytest.raises(DataError, match=r"note\.txt: not UTF-8 at byte 3; save the text as UTF-8"):
        read_text(b"caf\xe9 noir", "note.txt")
    cut = ("é" * 40_000).encode()  # the bytes looked at end in the middle of a letter
    assert kind_of(b"x" + cut) == "text"


def test_text_that_could_pass_for_gsm_is_text() -> None:
    text = "Да, это текст, а не."  # the first byte is 0xD0, and 33 bytes would be one frame
    assert len(text.encode()) == 33 and kind_of(text.encode()) == "text"
    assert kind_of(CLIPS["GSM"][:33]) == "audio"


def bomb(width: int, height: int) -> bytes:
    """A small PNG file that unfolds to width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (100_000, 100_000), (7072, 7072)])
def test_a_100_megapixel_image_is_refused_before_it_is_decoded(width: int, height: int) -> None:
    with pytest.raises(DataError, match=r"^bomb\.png: .*50,000,000.* scale it down$|over 50,000,000 pixels"):
        read_image(bomb(width, height), "bomb.png")


@pytest.mark.parametrize("kind", READERS)
def test_missing_empty_and_unknown_files_are_errors(kind: str, tmp_path: Path) -> None:
    reader = READERS[kind]
    with pytest.raises(DataError, match=r"nowhere\.png: no such file"):
        reader(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match="cannot be read"):
        reader(tmp_path)
    with pytest.raises(DataError, match="x: the file is empty"):
        reader(b"", "x")
    with pytest.raises(DataError, match=r"x\.bin: unknown type of file; wants PNG"):
        reader(bytes(range(256)) * 4, "x.bin")
    with pytest.raises(DataError, match="unknown type"):
        kind_of(b"\0" * 100)
    with pytest.raises(DataError, match="x: a text file; wants"):
        reader(b"only words", "x")


@pytest.mark.parametrize(("kind", "wrong"), [("image", "WAV"), ("audio", "PNG"), ("video", "WAV"), ("video", "PNG")])
def test_another_kind_of_media_is_named(kind: str, wrong: str) -> None:
    data = {**IMAGES, **CLIPS}[wrong]
    with pytest.raises(DataError, match=f"x: a {wrong.lower()} file; wants"):
        READERS[kind](data, "x")


WHOLE = [("image", form, data) for form, data in IMAGES.items()]
WHOLE += [("audio", form, data) for form, data in CLIPS.items() if form != "MP3"]
WHOLE += [("video", form, data) for form, data in FILMS.items()]


@pytest.mark.parametrize(("kind", "form", "data"), WHOLE, ids=[f"{kind}-{form}" for kind, form, _ in WHOLE])
def test_a_file_cut_off_anywhere_is_one_error_that_names_it(kind: str, form: str, data: bytes) -> None:
    for length in sorted({*range(1, 24), *np.linspace(24, len(data) - 3, 40).astype(int).tolist()}):
        if form == "GSM" and length % 33 == 0:
            continue  # a shorter clip
        with pytest.raises(DataError, match=r"^cut: .*\S$"):
            READERS[kind](data[:length], "cut")


@pytest.mark.parametrize(("kind", "form", "data"), WHOLE, ids=[f"{kind}-{form}" for kind, form, _ in WHOLE])
def test_flipped_bytes_give_pixels_or_one_error(kind: str, form: str, data: bytes) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        broken = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            broken[place] = rng.integers(0, 256)
        try:
            READERS[kind](bytes(broken), "broken")
        except DataError as error:
            assert str(error).startswith("broken: ")


def test_a_png_with_a_wrong_checksum_is_refused() -> None:
    data = bytearray(IMAGES["PNG"])
    data[data.index(b"IDAT") - 5] ^= 1  # the checksum of the chunk before the pixels
    with pytest.raises(DataError, match="damaged PNG"):
        read_image(bytes(data))


def test_gsm_says_which_frame_is_corrupt() -> None:
    data = bytearray(CLIPS["GSM"])
    data[33 * 5] = 0
    with pytest.raises(DataError, match=r"a\.gsm: damaged GSM file \(corrupt GSM: frame 5 \(byte 165\)"):
        read_audio(bytes(data), "a.gsm")
    with pytest.raises(DataError, match="truncated GSM"):
        read_audio(bytes(data[:-10]), "a.gsm")


def test_audio_without_samples_too_long_or_with_nan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no samples"):
        read_audio(media.audio("WAV", seconds=0))
    monkeypatch.setattr(audio_module, "LONGEST_SECONDS", 0.25)
    with pytest.raises(DataError, match=r"longer than 0\.25 seconds; cut it"):
        read_audio(CLIPS["FLAC"])
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(100, np.nan, np.float32), 8000, format="WAV", subtype="FLOAT")
    monkeypatch.undo()
    with pytest.raises(DataError, match="no numbers"):
        read_audio(buffer.getvalue())


def test_video_over_its_limits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_module, "LARGEST_CLIP", 5 * 48 * 64)
    with pytest.raises(DataError, match=r"f\.mp4: more than 15,360 pixels in all"):
        read_video(FILMS["mp4"], "f.mp4")
    monkeypatch.setattr(video_module, "MOST_FRAMES", 4)
    with pytest.raises(DataError, match=r"f\.mp4: more than 4 frames"):
        read_video(FILMS["mp4"], "f.mp4")


def test_the_shipped_film_is_read() -> None:
    frames, fps = read_video(REPOSITORY / "data/sample/video/bigbuckbunny.mp4", short_side=64)
    assert len(frames) == 132 and min(frames.shape[1:3]) == 64 and fps > 20
