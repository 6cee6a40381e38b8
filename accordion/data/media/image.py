"""Images: PNG, JPEG, WebP and GIF as RGB pixels."""

import struct
import warnings
import zlib
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from accordion.data.media.kinds import KINDS, Format, Source, damaged, format_of, opened
from accordion.data.media.whole import fault_of
from accordion.errors import DataError

LARGEST_PIXELS = 50_000_000  # width x height; 150 MB as RGB
UNREADABLE = (OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError)


def read_image(source: Source, name: str | None = None) -> np.ndarray:
    """An image as uint8 RGB of (height, width, 3); of an animation, the first frame.

    Transparent parts become white, a stated rotation (EXIF) is applied, 16-bit grey becomes 8-bit.

    Raises:
        DataError: no such file, empty, no image, damaged or truncated, or over LARGEST_PIXELS (found before
            anything is decoded); the text names the file.
    """
    with opened(source, name) as (file, label):
        found = format_of(file, label)
        if KINDS[found] != "image":
            raise DataError(f"{label}: a {found} file; wants a PNG, JPEG, WebP or GIF image")
        picture = open_picture(file, label, found)
        try:
            return on_white(ImageOps.exif_transpose(picture))
        except UNREADABLE as error:
            raise damaged(label, found, error) from None


def open_picture(file: BinaryIO, label: str, found: Format) -> Image.Image:
    """The picture with its header read and its size checked, nothing decoded yet.

    Raises:
        DataError: not readable as `found`, cut off, or over LARGEST_PIXELS.
    """
    fault = fault_of(file, found)
    if fault:
        raise damaged(label, found, fault)
    try:
        with warnings.catch_warnings():  # our own limit below is stricter than the one Pillow warns of
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(file, formats=[found.upper()])
            check_pixels(label, *picture.size)
            if found == "png":
                picture.verify()  # checksums, which decoding does not look at
                file.seek(0)
                picture = Image.open(file, formats=["PNG"])
            return picture
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"{label}: over {LARGEST_PIXELS:,} pixels; scale it down") from None
    except UNREADABLE as error:
        raise damaged(label, found, error) from None


def on_white(picture: Image.Image) -> np.ndarray:
    """Decode a picture to uint8 RGB of (height, width, 3), laid on white where it is transparent."""
    if picture.mode.startswith("I"):  # 16 bits a pixel
        return np.repeat((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if not picture.has_transparency_data:
        return np.array(picture.convert("RGB"))
    layer = picture.convert("RGBA")
    canvas = Image.new("RGBA", layer.size, "white")
    canvas.alpha_composite(layer)
    return np.array(canvas.convert("RGB"))


def on_square(pixels: np.ndarray, side: int) -> np.ndarray:
    """Pixels (height, width, 3) uint8 scaled down to fit a white (side, side, 3); smaller ones keep their size."""
    picture = Image.fromarray(pixels)
    if picture.size != (side, side):
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (side, side), "white")
    canvas.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.array(canvas)


def check_pixels(label: str, width: int, height: int) -> None:
    """Refuse pictures that would fill the memory.

    Raises:
        DataError: over LARGEST_PIXELS, or no pixels at all.
    """
    if width * height > LARGEST_PIXELS:
        raise DataError(f"{label}: {width}x{height} pixels; at most {LARGEST_PIXELS:,} are read, scale it down")
    if width < 1 or height < 1:
        raise DataError(f"{label}: {width}x{height} pixels; replace it or leave it out")
