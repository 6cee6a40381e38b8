"""What the data and the tokenizers look and sound like: counts, contact sheets, sounds."""

import io
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
from markupsafe import Markup, escape
from PIL import Image

from accordion.report.run import RunFigures
from accordion.report.style import data_uri
from accordion.report.words import count

if TYPE_CHECKING:
    from accordion.report.reconstruct import Sound

_PARTS = ("text", "images", "audio", "video")


@dataclass(frozen=True, kw_only=True)
class Overview:
    """The corpus in rows for a table, in a sentence, and how many records were refused."""

    rows: Sequence[tuple[str, ...]]
    sentence: str
    refused: int


def overview(corpus: Path) -> Overview:
    """Count what each part of a corpus holds."""
    rows, amounts = [], []
    for part in _PARTS:
        path = corpus / f"{part}.parquet"
        if not path.is_file():
            rows.append((part, "0", "0", "none", "", "", ""))
            continue
        schema = pq.read_schema(path).names
        amount = _amount(part, path)
        amounts.append(amount)
        columns = pq.read_table(path, columns=[c for c in ("split", "language", "source", "licence") if c in schema])
        values = {name: columns.column(name).to_pylist() for name in columns.column_names}
        train = sum(split == "train" for split in values["split"])
        rows.append(
            (
                part,
                f"{train:,}",
                f"{len(values['split']) - train:,}",
                amount,
                _distinct(values.get("language", [])),
                _distinct(values.get("source", [])),
                _distinct(values.get("licence", [])),
            )
        )
    quarantine = corpus / "quarantine.jsonl"
    refused = sum(1 for line in quarantine.open() if line.strip()) if quarantine.is_file() else 0
    return Overview(rows=rows, sentence=f"The corpus holds {', '.join(amounts)}.", refused=refused)


def _amount(part: str, path: Path) -> str:
    if part == "text":
        table = pq.read_table(path, columns=["text"])
        return f"{count(sum(len(text) for text in table['text'].to_pylist()))} characters of text"
    if part == "images":
        return f"{pq.read_metadata(path).num_rows:,} images"
    if part == "audio":
        table = pq.read_table(path, columns=["pcm", "rate"])
        pairs = zip(table["pcm"], table["rate"].to_pylist(), strict=True)
        return f"{sum(pcm.as_buffer().size / 2 / rate for pcm, rate in pairs) / 60:.1f} minutes of speech"
    frames = sum(pq.read_table(path, columns=["n"])["n"].to_pylist())
    return f"{frames:,} video frames"


def _distinct(values: Sequence[str], most: int = 12) -> str:
    names = sorted({value for value in values if value})
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def contact_sheet(originals: np.ndarray, reconstructions: np.ndarray, zoom: int = 2) -> bytes:
    """PNG of two rows: above the originals, below their reconstructions; uint8 (n, height, width, 3) each."""
    gap = 4
    rows = []
    for images in (originals, reconstructions):
        padded = np.pad(images, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
        rows.append(np.concatenate(list(padded), axis=1))
    sheet = np.concatenate(rows, axis=0)[:-gap, :-gap]
    image = Image.fromarray(sheet).resize((sheet.shape[1] * zoom, sheet.shape[0] * zoom), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def wav(pcm: np.ndarray, rate: int) -> bytes:
    """int16 mono samples as a WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm.astype("<i2").tobytes())
    return buffer.getvalue()


def picture(png: bytes, caption: str, alt: str) -> Markup:
    """A figure with one PNG inside the page."""
    return Markup(
        f'<figure><img src="{data_uri(png, "image/png")}" alt="{escape(alt)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def players(sounds: "Sequence[Sound]", caption: str) -> Markup:
    """A figure with two players a clip: the original and its reconstruction."""
    items = []
    for sound in sounds:
        tags = "".join(
            f'<audio controls preload="none" aria-label="{name} of: {escape(sound.transcript)}" '
            f'src="{data_uri(wav(pcm, sound.rate), "audio/wav")}"></audio>'
            for name, pcm in (("original", sound.original), ("reconstruction", sound.reconstruction))
        )
        items.append(
            f'<div><p lang="{escape(sound.language)}">“{escape(sound.transcript)}” ({escape(sound.language)})</p>'
            f"{tags}</div>"
        )
    return Markup(
        f'<figure><div class="sounds">{"".join(items)}</div><figcaption>{escape(caption)}</figcaption></figure>'
    )


def reconstructions(run: RunFigures) -> list[Markup]:
    """Validation images and clips beside what the trained tokenizers give back, where their artifacts are there."""
    from accordion.report.reconstruct import image_pairs, sound_pairs  # torch is loaded only for this

    corpus = run.folders.get("ingest")
    if corpus is None or not corpus.is_dir():
        return []
    media = []
    vision, audio = run.folders.get("vision_tokenizer"), run.folders.get("audio_tokenizer")
    if vision is not None and vision.is_dir():
        originals, decoded = image_pairs(vision, corpus, count=14)
        if len(originals):
            media.append(
                picture(
                    contact_sheet(originals, decoded),
                    "Validation images (above) and their reconstructions from bits (below).",
                    f"{len(originals)} small pictures in two rows: originals above, blurrier reconstructions below",
                )
            )
    if audio is not None and audio.is_dir():
        sounds = sound_pairs(audio, corpus, count=3)
        if sounds:
            media.append(
                players(sounds, "Validation speech: first player the original, second what its codes give back.")
            )
    return media
