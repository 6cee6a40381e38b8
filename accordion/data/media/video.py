"""Video: frames of MP4 and WebM (PyAV), animated GIF and WebP (Pillow), one at a time."""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import av
import numpy as np
from PIL import Image

from accordion.data.media.image import UNREADABLE, check_pixels, on_white, open_picture
from accordion.data.media.kinds import Format, Source, damaged, format_of, opened
from accordion.data.media.whole import fault_of
from accordion.errors import DataError

MOST_FRAMES = 36_000  # 20 minutes at 30 frames a second
LARGEST_CLIP = 250_000_000  # pixels of all frames that `read_video` holds at once; 750 MB as RGB
DEFAULT_SECONDS = 0.1  # of an animation's frame whose duration is 0, as browsers show it
DEMUXERS: dict[Format, str] = {
    "mp4": "mp4",
    "webm": "matroska",
}  # named, so that no other demuxer (playlists, ...) is ever tried


class Frame(NamedTuple):
    """One frame: seconds since the first, and uint8 RGB pixels (height, width, 3)."""

    seconds: float
    pixels: np.ndarray


def video_frames(source: Source, name: str | None = None, *, short_side: int | None = None) -> Iterator[Frame]:
    """The frames of a video, decoded as they are taken; memory does not grow with its length.

    Args:
        short_side: scale each frame so that its shorter side has this many pixels; None: as it is.

    Raises:
        DataError: no such file, empty, no video, damaged or truncated, over LARGEST_PIXELS a frame or
            MOST_FRAMES; the text names the file.
    """
    with opened(source, name) as (file, label):
        found = format_of(file, label)
        if found in DEMUXERS:
            frames = _film(file, label, found)
        elif found in ("gif", "webp"):
            frames = _animation(file, label, found)
        else:
            raise DataError(f"{label}: a {found} file; wants MP4, WebM, or an animated GIF or WebP")
        for number, (seconds, picture) in enumerate(frames):
            if number >= MOST_FRAMES:
                raise DataError(f"{label}: more than {MOST_FRAMES:,} frames; cut it into pieces")
            yield Frame(seconds, _scaled(picture, short_side))


def read_video(source: Source, name: str | None = None, *, short_side: int | None = None) -> tuple[np.ndarray, float]:
    """All frames (frames, height, width, 3) uint8 RGB and the mean frames a second (1.0 for a single frame).

    Raises:
        DataError: as `video_frames`; or more than LARGEST_CLIP pixels in all.
    """
    times: list[float] = []
    frames: list[np.ndarray] = []
    for seconds, pixels in video_frames(source, name, short_side=short_side):
        if frames and pixels.shape != frames[0].shape:
            raise DataError(f"{name or _label(source)}: frame {len(frames)} has another size than the first; recode it")
        times.append(seconds)
        frames.append(pixels)
        if len(frames) * pixels.shape[0] * pixels.shape[1] > LARGEST_CLIP:
            raise DataError(f"{name or _label(source)}: more than {LARGEST_CLIP:,} pixels in all; cut or scale it down")
    span = times[-1] - times[0]
    return np.stack(frames), (len(times) - 1) / span if span > 0 else 1.0


def _label(source: Source) -> str:
    return "the given bytes" if isinstance(source, bytes) else str(source)


def _scaled(picture: Image.Image, short_side: int | None) -> np.ndarray:
    if short_side is not None:
        scale = short_side / min(picture.size)
        size = (round(picture.width * scale), round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _film(file: BinaryIO, label: str, found: Format) -> Iterator[tuple[float, Image.Image]]:
    fault = fault_of(file, found)
    if fault:
        raise damaged(label, found, fault)
    start = None
    try:
        with av.open(file, "r", format=DEMUXERS[found], metadata_errors="replace") as film:
            if not film.streams.video:
                raise DataError(f"{label}: no video stream; wants a file with moving pictures")
            stream = film.streams.video[0]
            check_pixels(label, stream.codec_context.width, stream.codec_context.height)
            for frame in film.decode(stream):
                if frame.is_corrupt:
                    raise damaged(label, found, f"the frame at {frame.time or 0:.2f} s is corrupt")
                time = float(frame.time or 0.0)
                start = time if start is None else start
                picture = frame.to_image()
                yield time - start, picture.rotate(frame.rotation, expand=True) if frame.rotation else picture
    except av.FFmpegError as error:
        raise damaged(label, found, error.strerror) from None
    if start is None:
        raise damaged(label, found, "no frame can be read")


def _animation(file: BinaryIO, label: str, found: Format) -> Iterator[tuple[float, Image.Image]]:
    picture = open_picture(file, label, found)
    seconds = 0.0
    number = 0
    try:
        while True:
            pixels = on_white(picture)
            yield seconds, Image.fromarray(pixels)
            seconds += picture.info.get("duration", 0) / 1000 or DEFAULT_SECONDS
            number += 1
            try:
                picture.seek(number)
            except EOFError:  # Pillow's way to say that there is no further frame
                return
    except UNREADABLE as error:
        raise damaged(label, found, error) from None
