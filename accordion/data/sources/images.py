"""Images with captions: PNG files in a zip archive, captions in several languages beside it."""

import io
import json
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from accordion.data.sources.base import Quarantine, Row, ZipMembers, json_rows, require, require_rows

LARGEST_SIDE = 4096


def check_png(png: bytes) -> str | None:
    """What is wrong with a PNG for this pipeline (None: nothing): damaged, not RGB, or of an unusable size."""
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            if max(picture.size) > LARGEST_SIDE or min(picture.size) < 8:
                return f"{picture.width}x{picture.height} pixels; wants 8 to {LARGEST_SIDE} a side"
            picture.load()
            if picture.mode != "RGB":
                return f"mode {picture.mode}; wants RGB"
    except UnidentifiedImageError:
        return "not a PNG file"
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged chunks
        return f"damaged PNG: {error}"
    return None


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
        wrong = check_png(png)
        if wrong:
            quarantine.refuse(members.path, row["file"], wrong)
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
