"""Video clips: short 32x32 windows, cut in space and time out of longer films.

A film is cut into blocks of time; whole blocks are held out, and a clip that straddles a border between
the two splits is dropped, so that no frame of `val` is ever seen in training.
"""

from pathlib import Path

import numpy as np

from accordion.data import media
from accordion.data.sources.base import Quarantine, Row, json_rows, require, require_rows
from accordion.errors import DataError

SIDE = 32  # pixels of a clip
SHORT_SIDE = 64  # pixels of the downscaled film
SPACE_STRIDE = 16  # pixels between windows
FRAMES = 4  # frames of a clip
FRAME_STRIDE = 2  # film frames between two frames of a clip
TIME_STRIDE = 4  # film frames between the starts of clips in `train`
BLOCK = 8  # film frames of a block of time


def held_out(frames: int, validation_share: float) -> np.ndarray:
    """(frames,) bool: which frames of a film belong to `val`, evenly spread blocks of BLOCK frames."""
    blocks = np.arange(frames) // BLOCK
    every = max(2, round(1 / validation_share))
    return blocks % every == every // 2


def cut(film: np.ndarray, validation_share: float) -> list[tuple[str, str, np.ndarray]]:
    """(name, split, clip) of every window in space and time; clips are (FRAMES, SIDE, SIDE, 3) uint8."""
    count, height, width = film.shape[:3]
    val = held_out(count, validation_share)
    span = (FRAMES - 1) * FRAME_STRIDE + 1
    clips = []
    for start in range(count - span + 1):
        inside = val[start : start + span]
        if inside.any() != inside.all() or (not inside.all() and start % TIME_STRIDE):
            continue
        split = "val" if inside.all() else "train"
        for top in range(0, height - SIDE + 1, SPACE_STRIDE):
            for left in range(0, width - SIDE + 1, SPACE_STRIDE):
                clip = film[start : start + span : FRAME_STRIDE, top : top + SIDE, left : left + SIDE]
                clips.append((f"{start}-{top}-{left}", split, clip))
    return clips


def read_video(folder: Path, quarantine: Quarantine, validation_share: float) -> list[Row]:
    """Rows of `video/`: id, frames (bytes uint8), n, height, width, caption, source, licence, split."""
    part = require(folder / "video", "films and their list")
    listing = require(part / "clips.jsonl", "list of the films")
    rows: list[Row] = []
    for _, row in json_rows(listing, quarantine, ("file", "source", "licence")):
        path = part / row["file"]
        if not path.is_file():
            quarantine.refuse(path, row["file"], "no such file")
            continue
        try:
            film, _ = media.read_video(path, row["file"], short_side=SHORT_SIDE)
        except DataError as error:
            quarantine.refuse(path, row["file"], str(error))
            continue
        for name, split, clip in cut(film, validation_share):
            rows.append(
                {
                    "id": f"video/{path.stem}/{name}",
                    "frames": np.ascontiguousarray(clip).tobytes(),
                    "n": FRAMES,
                    "height": SIDE,
                    "width": SIDE,
                    "caption": row.get("caption") or "",
                    "source": row["source"],
                    "licence": row["licence"],
                    "split": split,
                }
            )
    return require_rows(rows, part, quarantine)
