"""Images with captions, as RGB PNG."""

import io
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from accordion.config.data import IngestConfig, SourceConfig
from accordion.data import media
from accordion.data.sources.base import Quarantine, Row, described, named
from accordion.data.sources.items import caption_of, items, suffixes_of
from accordion.errors import DataError

SMALLEST_SIDE = 8  # pixels


def image_rows(source: SourceConfig, quarantine: Quarantine, config: IngestConfig) -> Iterator[tuple[Path, str, Row]]:
    """(file, record, row) of each image: id, group, png, caption, captions (JSON: language -> caption), source, ...

    The caption is the English one where there are several. Images are scaled to ingest.image_side at most.
    """
    for item in items(source, suffixes_of("image"), quarantine):
        known = described(source, item.fields)
        captions = _captions(item.fields, known["language"] or "und")
        if isinstance(captions, str):
            quarantine.refuse(*item.said, captions)
            continue
        if not known["source"] or not known["licence"]:
            quarantine.refuse(*item.said, "no source or licence, in the record or in ingest.sources")
            continue
        try:
            png = _png(item.data, item.name, config.image_side)
        except DataError as error:
            quarantine.refuse(item.file, item.record, str(error))
            continue
        name = named(source, str(PurePosixPath(item.name).with_suffix("")))
        yield (
            item.file,
            item.record,
            {
                "id": f"image/{name}",
                "group": str(item.fields.get("group") or f"image/{name}"),
                "png": png,
                "caption": captions.get("en") or next(iter(captions.values())),
                "captions": json.dumps(captions, ensure_ascii=False, sort_keys=True),
                **known,
            },
        )


def _captions(fields: Row, language: str) -> dict[str, str] | str:
    """Language -> caption, or what is wrong."""
    names = fields.get("captions")
    if names is None:
        caption = caption_of(fields)
        return {language: caption} if caption else "no caption"
    if not isinstance(names, dict) or not names:
        return "captions is no object of language -> caption"
    if not all(isinstance(name, str) and name.strip() for name in names.values()):
        return "an empty caption"
    return {key: name.strip() for key, name in names.items()}


def _png(data: bytes | Path, name: str, side: int) -> bytes:
    """The image as an RGB PNG of 8 bits; one that is such a PNG and not too large stays as it is.

    Raises:
        DataError: not a readable image, or too small.
    """
    pixels = media.read_image(data, name if isinstance(data, bytes) else None)
    height, width, _ = pixels.shape
    if min(height, width) < SMALLEST_SIDE:
        raise DataError(f"{name}: {width}x{height} pixels; wants at least {SMALLEST_SIDE} a side")
    raw = data if isinstance(data, bytes) else data.read_bytes()
    plain = raw.startswith(b"\x89PNG") and raw[24:26] == b"\x08\x02" and b"tRNS" not in raw  # 8 bits, RGB
    if plain and max(height, width) <= side:
        return raw
    return as_png(pixels, side, name)


def as_png(pixels: np.ndarray, side: int, name: str) -> bytes:
    """Pixels (height, width, 3) as a PNG whose longer side has at most `side` pixels.

    Raises:
        DataError: so long and narrow that the shorter side would vanish.
    """
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    if min(picture.size) < SMALLEST_SIDE:
        raise DataError(f"{name}: too long and narrow ({pixels.shape[1]}x{pixels.shape[0]}); cut it")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
