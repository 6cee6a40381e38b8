"""Images with captions: PNG files in a zip archive, captions in several languages beside it."""

import json
from pathlib import Path

from accordion.data.media import read_image
from accordion.data.sources.base import Quarantine, Row, ZipMembers, json_rows, require, require_rows
from accordion.errors import DataError

SIDES = (8, 4096)  # pixels


def check_png(png: bytes, name: str) -> None:
    """Refuse what this pipeline cannot use.

    Raises:
        DataError: damaged, no image, not an RGB PNG of 8 bits, or of an unusable size; the text starts with `name`.
    """
    height, width, _ = read_image(png, name).shape
    if not png.startswith(b"\x89PNG") or png[24:26] != b"\x08\x02":  # bit depth, colour type
        raise DataError(f"{name}: wants an RGB PNG of 8 bits; convert it")
    if max(height, width) > SIDES[1] or min(height, width) < SIDES[0]:
        raise DataError(f"{name}: {width}x{height} pixels; wants {SIDES[0]} to {SIDES[1]} a side")


def read_images(folder: Path, quarantine: Quarantine) -> list[Row]:
    """Rows of `images/`: id, png, caption (English), captions (JSON: language -> caption), source, licence."""
    part = require(folder / "images", "pictures and their captions")
    members = ZipMembers(part / "emoji.zip", quarantine)
    captions = require(part / "captions.jsonl", "captions of the pictures")
    rows: list[Row] = []
    for record, row in json_rows(captions, quarantine, ("file", "source", "licence")):
        names = row.get("captions")
        if not isinstance(names, dict) or not all(isinstance(v, str) and v.strip() for v in names.values()):
            quarantine.refuse(captions, record, f"{row['file']}: an empty caption, or none")
            continue
        if "en" not in names:
            quarantine.refuse(captions, record, f"{row['file']}: no English caption")
            continue
        png = members.read(row["file"])
        if png is None:
            continue
        try:
            check_png(png, row["file"])
        except DataError as error:
            quarantine.refuse(members.path, row["file"], str(error))
            continue
        rows.append(
            {
                "id": f"image/{row['file'].removesuffix('.png')}",
                "png": png,
                "caption": names["en"].strip(),
                "captions": json.dumps(names, ensure_ascii=False, sort_keys=True),
                "source": row["source"],
                "licence": row["licence"],
            }
        )
    return require_rows(rows, part, quarantine)
