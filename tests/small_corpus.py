"""A small good corpus in the layout that ingest writes; tests damage single cells of its tables."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from accordion.config.data import ValidateConfig

CONFIG = ValidateConfig(
    minimum_rows={"text": 4, "images": 4, "audio": 4, "video": 4},
    text_languages=("en", "de"),
    audio_languages=("en", "es"),
)
RIGHTS = {"source": "here", "licence": "CC0-1.0"}
SPLITS = ["train", "train", "train", "val"]


def png(value: int) -> bytes:
    """A picture of two halves."""
    buffer = io.BytesIO()
    picture = Image.new("RGB", (32, 32), (value, 10, 20))
    picture.paste((250, 240, value), (0, 0, 16, 32))
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def clip(value: int, frames: int = 4) -> bytes:
    """Frames of two halves, each a little brighter than the one before."""
    half = 16 * 32 * 3
    return b"".join(bytes([value + n]) * half + bytes([200]) * half for n in range(frames))


def tables() -> dict[str, pd.DataFrame]:
    """A small good corpus; tests damage single cells."""
    text, images, audio, video = [], [], [], []
    for n, split in enumerate(SPLITS):
        for language in ("en", "de"):
            text.append({"id": f"page{n}/{language}", "text": f"text {n} {language}", "language": language, **RIGHTS,
                         "split": split})  # fmt: skip
        for language in ("en", "es"):
            pcm = (np.sin(np.arange(4000) / (5 + n + len(audio))) * 9000).astype("<i2").tobytes()
            audio.append({"id": f"key{n}/{language}", "pcm": pcm, "rate": 8000, "transcript": f"say {n}", **RIGHTS,
                          "language": language, "key": f"key{n}", "speaker": "", "split": split})  # fmt: skip
        images.append({"id": f"image{n}", "png": png(n), "caption": "dot", "captions": '{"en": "dot"}', **RIGHTS,
                       "split": split})  # fmt: skip
        video.append({"id": f"clip{n}", "frames": clip(n * 10), "n": 4, "height": 32, "width": 32,
                      "caption": "", **RIGHTS, "split": split})  # fmt: skip
    faq = [{"section": "a", "language": "en", "question": "why?", "answer": "because"}]
    return {name: pd.DataFrame(rows) for name, rows in
            {"text": text, "images": images, "audio": audio, "video": video, "faq": faq}.items()}  # fmt: skip


def write_corpus(folder: Path, content: dict[str, pd.DataFrame]) -> Path:
    folder.mkdir()
    for name, table in content.items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
    (folder / "dictionaries").mkdir()
    (folder / "dictionaries/en-fr.tsv").write_text("dog\tchien\n")
    domain = folder / "retrieval/manual"
    (domain / "qrels").mkdir(parents=True)
    (domain / "corpus.jsonl").write_text('{"_id": "d1", "title": "", "text": "a passage"}\n')
    (domain / "queries.jsonl").write_text('{"_id": "q1", "text": "a question"}\n')
    (domain / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    return folder
