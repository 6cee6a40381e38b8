"""What the data and the tokenizers look and sound like: counts, contact sheets, sounds."""

import io
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
from markupsafe import Markup, escape
from PIL import Image, ImageDraw, ImageFont

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


def contact_sheet(columns: Sequence[str], pictures: np.ndarray, zoom: int = 2, rows: int = 7) -> bytes:
    """PNG of pictures beside their reconstructions, uint8 (picture, column, height, width, 3), names above.

    Args:
        rows: pictures below each other; further ones start a block beside them.
    """
    wide, gap, top = 32 * zoom + 12, 4, 16
    height, width = pictures.shape[2] * zoom, max(pictures.shape[3] * zoom, wide)
    blocks = -(-len(pictures) // rows)
    block = len(columns) * (width + gap) + 4 * gap
    sheet = Image.new("RGB", (blocks * block - 5 * gap, top + min(rows, len(pictures)) * (height + gap) - gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for number, versions in enumerate(pictures):
        left, upper = number // rows * block, top + number % rows * (height + gap)
        for column, picture_ in enumerate(versions):
            at = left + column * (width + gap)
            if number % rows == 0:
                draw.text((at + width / 2, 0), columns[column], fill="black", font=font, anchor="ma")
            enlarged = Image.fromarray(picture_).resize((pictures.shape[3] * zoom, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (at + (width - enlarged.width) // 2, upper))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
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
    """A figure with players for each clip: the original, then what each number of codes gives back."""
    items = []
    for sound in sounds:
        versions = {"original": sound.original} | {
            f"{used} code{'s' if used > 1 else ''}": pcm for used, pcm in sound.decoded.items()
        }
        items.append(player(sound.transcript, sound.language, sound.rate, versions))
    return heard(items, caption)


def player(transcript: str, language: str, rate: int, versions: Mapping[str, np.ndarray]) -> Markup:
    """A transcript and a player for each version of it, int16 samples by name."""
    tags = "".join(
        f'<div>{name} <audio controls preload="none" aria-label="{name} of: {escape(transcript)}" '
        f'src="{data_uri(wav(pcm, rate), "audio/wav")}"></audio></div>'
        for name, pcm in versions.items()
    )
    return Markup(f'<div><p lang="{escape(language)}">“{escape(transcript)}” ({escape(language)})</p>{tags}</div>')


def heard(items: Sequence[Markup], caption: str) -> Markup:
    """A figure of players."""
    return Markup(
        f'<figure><div class="sounds">{"".join(items)}</div><figcaption>{escape(caption)}</figcaption></figure>'
    )


def spectrogram_sheet(spectrograms: "Sequence[np.ndarray]") -> bytes:
    """PNG of spectrograms of one clip below each other; uint8 (bins, spectra) each, dark is loud."""
    gap = np.full((6, spectrograms[0].shape[1]), 0, np.uint8)
    rows = [part for picture_ in spectrograms for part in (picture_, gap)][:-1]
    image = Image.fromarray(255 - np.concatenate(rows, axis=0))
    buffer = io.BytesIO()
    image.resize((image.width * 2, image.height), Image.Resampling.BILINEAR).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def reconstructions(run: RunFigures) -> list[Markup]:
    """Validation images and clips beside what the trained tokenizers give back, where their artifacts are there."""
    from accordion.report.reconstruct import picture_grids, sounds_by_codes, spectrogram  # torch: only for this

    corpus = run.folders.get("ingest")
    if corpus is None or not corpus.is_dir():
        return []
    media = []
    vision, audio = run.folders.get("vision_tokenizer"), run.folders.get("audio_tokenizer")
    if vision is not None and vision.is_dir():
        words = {"image": "Validation images", "video": "Frames of validation clips, one below the other"}
        for name, grid in picture_grids(vision, corpus, images=14, clips=2).items():
            caption = f"{words[name]}: the original, and what so many bits a frame give back."
            shown = f"{len(grid.pictures)} small pictures, each beside {len(grid.columns) - 1} reconstructions"
            rows = -(-len(grid.pictures) // 2)
            media.append(picture(contact_sheet(grid.columns, grid.pictures, rows=rows), caption, shown))
    if audio is not None and audio.is_dir():
        sounds = sounds_by_codes(audio, corpus, count=3)
        if sounds:
            media.append(players(sounds, "Validation speech: the original, and what so many codes a frame give back."))
            first = sounds[0]
            versions = [first.original, *first.decoded.values()]
            names = ", ".join(f"{used}" for used in first.decoded)
            media.append(
                picture(
                    spectrogram_sheet([spectrogram(samples) for samples in versions]),
                    f"Spectrograms of “{first.transcript}” up to 4 kHz: the original, then from {names} codes a frame.",
                    f"{len(versions)} spectrograms below each other, the original on top, sharper with more codes",
                )
            )
    return media


def generated(run: RunFigures) -> "tuple[list[Markup], list[tuple[str, str, str]]]":
    """What the pre-trained model makes of validation records, and what it says of them, where the artifacts are there.

    Returns:
        figures, and rows (what was asked, in truth, the model).
    """
    needed = ("pretrain", "ingest", "text_tokenizer", "vision_tokenizer", "audio_tokenizer")
    folders = [run.folders.get(stage) for stage in needed]
    if any(folder is None or not folder.is_dir() for folder in folders):
        return [], []
    from accordion.report.generated import generate  # torch: only for this
    from accordion.report.reconstruct import spectrogram

    checkpoint, corpus, *tokenizers = (folder for folder in folders if folder is not None)
    made, media = generate(checkpoint, tokenizers, corpus), []
    if made.drawn is not None:
        listed = "; ".join(f"“{caption}”" for caption in made.captions)
        caption = (
            f"Images for the captions of validation images, drawn once each, nothing picked: {listed}. The real image, "
            "what its codes give back (the best the model could do), one drawn from the caption, one with guidance 2."
        )
        told = f"{len(made.captions)} real images, each beside its reconstruction and two that the model drew"
        media.append(picture(contact_sheet(made.drawn.columns, made.drawn.pictures), caption, told))
    if made.films is not None:
        caption = "Validation clips (above) and films that the model made from their caption and first frame (below)."
        media.append(picture(contact_sheet(made.films.columns, made.films.pictures), caption, caption))
    if made.voices:
        items = [player(each.transcript, each.language, each.rate, each.versions) for each in made.voices]
        media.append(
            heard(
                items,
                "Validation speech: real, from its codes, and the same words spoken by the model; where it takes "
                "voices, also in the voice of another clip of the speaker.",
            )
        )
        first = made.voices[0].versions
        sheet = spectrogram_sheet([spectrogram(pcm) for pcm in _of_one_length(list(first.values()))])
        caption = f"Spectrograms of “{made.voices[0].transcript}” up to 4 kHz: {', '.join(first)}."
        media.append(picture(sheet, caption, f"{len(first)} spectrograms below each other"))
    return media, list(made.said)


def _of_one_length(clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Clips (n,) with silence behind the shorter ones."""
    longest = max(map(len, clips))
    return [np.pad(clip, (0, longest - len(clip))) for clip in clips]
