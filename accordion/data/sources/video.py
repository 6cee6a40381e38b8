"""Video clips: short square windows, cut in space and time out of longer films as they are decoded.

A film is cut into blocks of time; whole blocks are held out, and a clip that straddles a border between
the two splits is dropped, so that no frame of `val` is ever seen in training. A film too short for that
is in one split as a whole.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path, PurePosixPath

import numpy as np

from accordion.config.data import IngestConfig, SourceConfig
from accordion.data import media
from accordion.data.sources.base import Quarantine, Row, Split, described, named
from accordion.data.sources.items import caption_of, items, suffixes_of
from accordion.errors import DataError

FRAME_STRIDE = 2  # film frames between two frames of a clip
TIME_STRIDE = 4  # film frames between the starts of clips in `train`

Clip = tuple[str, str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Window:
    """What is cut out of a film that is scaled to twice the window on its shorter side.

    Attributes:
        side: pixels; windows overlap by a half.
        frames: of a clip.
    """

    side: int = 32
    frames: int = 4

    @property
    def span(self) -> int:
        """Film frames from the first to the last of a clip."""
        return (self.frames - 1) * FRAME_STRIDE + 1

    @property
    def block(self) -> int:
        """Film frames of a block of time."""
        return self.span + 1


def held_out(frame: int, every: int, block: int) -> bool:
    """Whether a frame of a film belongs to `val`: one block of `block` frames out of `every`, evenly spread."""
    return frame // block % every == every // 2


def cut(film: Iterator[np.ndarray], every: int, window: Window, whole: str | None = None) -> Iterator[Clip]:
    """(name, split, clip) of every window in space and time; clips are (frames, side, side, 3) uint8.

    Args:
        film: frames (height, width, 3) uint8, of which the span of a clip is held at once.
        every: one block of time out of so many is held out.
        window: size of a clip.
        whole: put all of the film into this split instead.
    """
    open_frames: deque[np.ndarray] = deque(maxlen=window.span)
    for number, frame in enumerate(film):
        if open_frames and frame.shape != open_frames[-1].shape:  # a clip has one size
            open_frames.clear()
        open_frames.append(frame)
        start = number - window.span + 1
        if len(open_frames) < window.span:
            continue
        inside = [held_out(each, every, window.block) for each in range(start, number + 1)]
        split = whole or ("val" if all(inside) else "train")
        if (not whole and any(inside) != all(inside)) or ((whole or split == "train") and start % TIME_STRIDE):
            continue
        clip = np.stack(list(open_frames)[::FRAME_STRIDE])
        height, width = clip.shape[1:3]
        side = window.side
        for top in range(0, height - side + 1, side // 2):
            for left in range(0, width - side + 1, side // 2):
                yield f"{start}-{top}-{left}", split, clip[:, top : top + side, left : left + side]


def video_rows(source: SourceConfig, quarantine: Quarantine, config: IngestConfig) -> Iterator[tuple[Path, str, Row]]:
    """(file, record, row) of each clip: id, group, frames (bytes uint8), n, height, width, caption, split, source, ...

    A film may have no caption. At most ingest.clips are cut out of one.
    """
    every = max(2, round(1 / config.validation_share))
    split = Split(config.seed, config.validation_share)
    window = Window(side=config.clip_side, frames=config.clip_frames)
    for item in items(source, suffixes_of("video"), quarantine):
        known = described(source, item.fields)
        if not known["source"] or not known["licence"]:
            quarantine.refuse(*item.said, "no source or licence, in the record or in ingest.sources")
            continue
        name = named(source, str(PurePosixPath(item.name).with_suffix("")))
        group = str(item.fields.get("group") or name)
        count = 0
        try:
            found = _clips(item.data, item.name, group, every, split, window)
            for clip_name, part, clip in islice(found, config.clips):
                count += 1
                yield (
                    item.file,
                    item.record,
                    {
                        "id": f"video/{name}/{clip_name}",
                        "group": group,
                        "frames": np.ascontiguousarray(clip).tobytes(),
                        "n": window.frames,
                        "height": window.side,
                        "width": window.side,
                        "caption": caption_of(item.fields),
                        "split": part,
                        **known,
                    },
                )
            if not count:
                raise DataError(f"{item.name}: too short; a clip needs {window.span} frames")
        except DataError as error:
            quarantine.refuse(
                item.file, item.record, f"{error}{f' ({count} clips before it are kept)' if count else ''}"
            )


def _clips(
    data: bytes | Path, name: str, group: str, every: int, split: Split, window: Window
) -> Iterator[Clip]:  # fmt: skip
    frames = media.video_frames(data, name if isinstance(data, bytes) else None, short_side=2 * window.side)
    pixels = (frame.pixels for frame in frames)
    first = list(islice(pixels, window.block * every))  # the least that holds a whole held-out block
    whole = None if len(first) == window.block * every else split.of(f"video/{group}")
    return cut(chain(first, pixels), every, window, whole)
