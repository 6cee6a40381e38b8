"""Video clips: short 32x32 windows, cut in space and time out of longer films as they are decoded.

A film is cut into blocks of time; whole blocks are held out, and a clip that straddles a border between
the two splits is dropped, so that no frame of `val` is ever seen in training. A film too short for that
is in one split as a whole.
"""

from collections import deque
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path, PurePosixPath

import numpy as np

from accordion.config.data import IngestConfig, SourceConfig
from accordion.data import media
from accordion.data.sources.base import Quarantine, Row, Split, described, named
from accordion.data.sources.items import caption_of, items, suffixes_of
from accordion.errors import DataError

SIDE = 32  # pixels of a clip
SHORT_SIDE = 64  # pixels of the downscaled film
SPACE_STRIDE = 16  # pixels between windows
FRAMES = 4  # frames of a clip
FRAME_STRIDE = 2  # film frames between two frames of a clip
TIME_STRIDE = 4  # film frames between the starts of clips in `train`
BLOCK = 8  # film frames of a block of time
SPAN = (FRAMES - 1) * FRAME_STRIDE + 1  # film frames from the first to the last of a clip

Clip = tuple[str, str, np.ndarray]


def held_out(frame: int, every: int) -> bool:
    """Whether a frame of a film belongs to `val`: one block of BLOCK frames out of `every`, evenly spread."""
    return frame // BLOCK % every == every // 2


def cut(film: Iterator[np.ndarray], every: int, whole: str | None = None) -> Iterator[Clip]:
    """(name, split, clip) of every window in space and time; clips are (FRAMES, SIDE, SIDE, 3) uint8.

    Args:
        film: frames (height, width, 3) uint8, of which SPAN are held at once.
        every: one block of time out of so many is held out.
        whole: put all of the film into this split instead.
    """
    open_frames: deque[np.ndarray] = deque(maxlen=SPAN)
    for number, frame in enumerate(film):
        if open_frames and frame.shape != open_frames[-1].shape:  # a clip has one size
            open_frames.clear()
        open_frames.append(frame)
        start = number - SPAN + 1
        if len(open_frames) < SPAN:
            continue
        inside = [held_out(each, every) for each in range(start, number + 1)]
        split = whole or ("val" if all(inside) else "train")
        if (not whole and any(inside) != all(inside)) or ((whole or split == "train") and start % TIME_STRIDE):
            continue
        clip = np.stack(list(open_frames)[::FRAME_STRIDE])
        height, width = clip.shape[1:3]
        for top in range(0, height - SIDE + 1, SPACE_STRIDE):
            for left in range(0, width - SIDE + 1, SPACE_STRIDE):
                yield f"{start}-{top}-{left}", split, clip[:, top : top + SIDE, left : left + SIDE]


def video_rows(source: SourceConfig, quarantine: Quarantine, config: IngestConfig) -> Iterator[tuple[Path, str, Row]]:
    """(file, record, row) of each clip: id, group, frames (bytes uint8), n, height, width, caption, split, source, ...

    A film may have no caption. At most ingest.clips are cut out of one.
    """
    every = max(2, round(1 / config.validation_share))
    split = Split(config.seed, config.validation_share)
    for item in items(source, suffixes_of("video"), quarantine):
        known = described(source, item.fields)
        if not known["source"] or not known["licence"]:
            quarantine.refuse(*item.said, "no source or licence, in the record or in ingest.sources")
            continue
        name = named(source, str(PurePosixPath(item.name).with_suffix("")))
        group = str(item.fields.get("group") or name)
        count = 0
        try:
            for clip_name, part, clip in islice(_clips(item.data, item.name, group, every, split), config.clips):
                count += 1
                yield (
                    item.file,
                    item.record,
                    {
                        "id": f"video/{name}/{clip_name}",
                        "group": group,
                        "frames": np.ascontiguousarray(clip).tobytes(),
                        "n": FRAMES,
                        "height": SIDE,
                        "width": SIDE,
                        "caption": caption_of(item.fields),
                        "split": part,
                        **known,
                    },
                )
            if not count:
                raise DataError(f"{item.name}: too short; a clip needs {SPAN} frames")
        except DataError as error:
            quarantine.refuse(
                item.file, item.record, f"{error}{f' ({count} clips before it are kept)' if count else ''}"
            )


def _clips(data: bytes | Path, name: str, group: str, every: int, split: Split) -> Iterator[Clip]:
    frames = media.video_frames(data, name if isinstance(data, bytes) else None, short_side=SHORT_SIDE)
    pixels = (frame.pixels for frame in frames)
    first = list(islice(pixels, BLOCK * every))  # the least that holds a whole held-out block
    whole = None if len(first) == BLOCK * every else split.of(f"video/{group}")
    return cut(chain(first, pixels), every, whole)
