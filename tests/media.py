"""Small media files of every readable format, made in memory."""

import io

import av
import numpy as np
import soundfile
from PIL import Image


def pixels(height: int = 24, width: int = 40, seed: int = 0) -> np.ndarray:
    """A picture that compresses: two gradients and a square at a place drawn from the seed."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = np.linspace(0, 255, width).astype(np.uint8)
    picture[..., 1] = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    picture[top : top + height // 3, left : left + width // 3] = rng.integers(0, 255, 3)
    return picture


def image(form: str = "PNG", picture: np.ndarray | None = None) -> bytes:
    """One image, encoded."""
    buffer = io.BytesIO()
    Image.fromarray(pixels() if picture is None else picture).save(buffer, form)
    return buffer.getvalue()


def animation(form: str = "GIF", frames: int = 5, milliseconds: int = 200) -> bytes:
    """An animated GIF or WebP."""
    buffer = io.BytesIO()
    first, *rest = [Image.fromarray(pixels(seed=n)) for n in range(frames)]
    first.save(buffer, form, save_all=True, append_images=rest, duration=milliseconds, loop=0)
    return buffer.getvalue()


def tone(rate: int = 16_000, seconds: float = 0.5, channels: int = 1, hertz: float = 440.0) -> np.ndarray:
    """A sine of half the full scale, (samples, channels) float32."""
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def audio(
    form: str = "WAV", rate: int = 16_000, seconds: float = 0.5, channels: int = 1, hertz: float = 440.0
) -> bytes:
    """One clip, encoded: WAV, FLAC, OGG, MP3, or GSM (raw, 8 kHz mono)."""
    buffer = io.BytesIO()
    if form == "GSM":
        count = round(8000 * seconds) // 160 * 160
        soundfile.write(buffer, tone(8000, seconds, 1, hertz)[:count], 8000, format="RAW", subtype="GSM610")
    else:
        soundfile.write(buffer, tone(rate, seconds, channels, hertz), rate, format=form)
    return buffer.getvalue()


def video(
    form: str = "mp4", frames: int = 12, fps: int = 6, height: int = 48, width: int = 64, rotation: int = 0
) -> bytes:
    """One film: a square on a gradient, another place in each frame."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as film:
        stream = film.add_stream("libx264" if form == "mp4" else "libvpx", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(pixels(height, width, seed=number), format="rgb24")))
        film.mux(stream.encode())
    return buffer.getvalue()
