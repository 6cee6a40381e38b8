"""Writing films: an MP4 file from frames, each shown from a time of its own."""

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np

MILLISECOND = Fraction(1, 1000)


class Film:
    """An MP4 file made frame by frame, each at its own time.

    Args:
        side: of the square frames, in pixels.
    """

    def __init__(self, side: int) -> None:
        self._file = io.BytesIO()
        self._box = av.open(self._file, "w", format="mp4")
        self._stream = self._box.add_stream("libx264", rate=1000, options={"crf": "10"})
        self._stream.width = self._stream.height = side
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = MILLISECOND
        self._next = 0

    def add(self, seconds: Sequence[float], frames: np.ndarray) -> None:
        """Frames (T, side, side, 3) uint8, shown from their `seconds` on."""
        for start, pixels in zip(seconds, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = max(round(start / MILLISECOND), self._next)
            frame.time_base = MILLISECOND
            self._next = frame.pts + 1
            self._box.mux(self._stream.encode(frame))

    def finish(self) -> bytes:
        """The whole file."""
        self._box.mux(self._stream.encode())
        self._box.close()
        return self._file.getvalue()
