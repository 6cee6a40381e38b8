"""What a file is, by its first bytes; its name decides only where the content carries no signature."""

import codecs
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

from accordion.errors import DataError

Kind = Literal["text", "image", "audio", "video"]
Format = Literal["text", "png", "jpeg", "gif", "webp", "wav", "flac", "ogg", "mp3", "gsm", "mp4", "webm"]
Source = bytes | str | Path

KINDS: dict[Format, Kind] = {
    "text": "text",
    "png": "image", "jpeg": "image", "gif": "image", "webp": "image",
    "wav": "audio", "flac": "audio", "ogg": "audio", "mp3": "audio", "gsm": "audio",
    "mp4": "video", "webm": "video",
}  # fmt: skip
SUFFIXES: dict[str, Format] = {
    ".txt": "text", ".md": "text", ".json": "text", ".jsonl": "text", ".csv": "text", ".tsv": "text", ".html": "text",
    ".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif", ".webp": "webp",
    ".wav": "wav", ".flac": "flac", ".ogg": "ogg", ".oga": "ogg", ".opus": "ogg", ".mp3": "mp3", ".gsm": "gsm",
    ".mp4": "mp4", ".m4v": "mp4", ".mov": "mp4", ".webm": "webm", ".mkv": "webm",
}  # fmt: skip
READABLE = "PNG, JPEG, WebP or GIF; WAV, FLAC, OGG, MP3 or raw GSM; MP4 or WebM; or UTF-8 text"
HEAD = 65_536  # bytes looked at
GSM_FRAME = 33  # bytes of one GSM 06.10 frame: 160 samples, 20 ms at 8 kHz
GSM_SIGNATURE = 0xD  # upper four bits of each frame


@contextmanager
def opened(source: Source, name: str | None = None) -> Iterator[tuple[BinaryIO, str]]:
    """(seekable file, name for errors) of bytes or of a path.

    Raises:
        DataError: there is no such file, it cannot be read, or it is empty.
    """
    label = name or ("the given bytes" if isinstance(source, bytes) else str(source))
    try:
        file: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb")  # noqa: SIM115 (closed below)
    except FileNotFoundError:
        raise DataError(f"{label}: no such file; check the path") from None
    except OSError as error:
        raise DataError(f"{label}: cannot be read ({error.strerror}); wants a readable file") from None
    with file:
        if size_of(file) == 0:
            raise DataError(f"{label}: the file is empty; replace it or leave it out")
        yield file, label


def size_of(file: BinaryIO) -> int:
    """Bytes of a seekable file; its position goes to the beginning."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def kind_of(source: Source, name: str | None = None) -> Kind:
    """Whether a file is text, an image, audio or a video; an animated GIF or WebP is a video.

    Args:
        source: a path, or the bytes of a file.
        name: stands for the bytes in errors; its suffix counts where the content has no signature.

    Raises:
        DataError: no such file, an empty one, or none of the readable types.
    """
    with opened(source, name) as (file, label):
        found = format_of(file, label)
        return "video" if found in ("gif", "webp") and _animated(file, found) else KINDS[found]


def format_of(file: BinaryIO, label: str) -> Format:
    """The format of an opened file (its position goes back to the beginning).

    Raises:
        DataError: none of the readable formats; the text lists them.
    """
    size = size_of(file)
    head = file.read(HEAD)
    file.seek(0)
    suffix: Format | None = SUFFIXES.get(Path(label).suffix.lower())
    found = _signature(head)
    if found is None and suffix != "gsm" and _is_text(head, whole=size <= HEAD):
        found = "text"
    if found is None and gsm_fault(file.read() if size % GSM_FRAME == 0 else head) is None:
        found = "gsm"
    file.seek(0)
    found = found or suffix
    if found is None:
        raise DataError(f"{label}: unknown type of file; wants {READABLE}")
    return found


def gsm_fault(data: bytes) -> str | None:
    """What is wrong with raw GSM 06.10 (None: nothing): it has no checksum, but whole frames with a signature."""
    if len(data) % GSM_FRAME:
        return f"truncated GSM: {len(data)} bytes are no whole number of {GSM_FRAME}-byte frames"
    for frame, start in enumerate(range(0, len(data), GSM_FRAME)):
        if data[start] >> 4 != GSM_SIGNATURE:
            return f"corrupt GSM: frame {frame} (byte {start}) has no GSM 06.10 signature"
    return None


def damaged(label: str, found: str, error: object) -> DataError:
    """The one error of a file that cannot be decoded."""
    return DataError(f"{label}: damaged {found.upper()} file ({error}); replace it or leave it out")


def _signature(head: bytes) -> Format | None:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] in (b"WEBP", b"WAVE"):
        return "webp" if head[8:12] == b"WEBP" else "wav"
    if head.startswith(b"fLaC"):
        return "flac"
    if head.startswith(b"OggS"):
        return "ogg"
    if head[4:8] == b"ftyp" and head[8:11] != b"M4A":
        return "mp4"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "webm"
    if head.startswith(b"ID3") or _mp3_frame(head[:4]):
        return "mp3"
    return None


def _mp3_frame(header: bytes) -> bool:
    """Sync word, layer III, and a bit rate and sampling rate that exist."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return False
    return header[2] >> 4 != 0xF and header[2] >> 2 & 3 != 3


def _is_text(head: bytes, *, whole: bool) -> bool:
    """UTF-8 without NUL, or UTF-16 with a byte order mark; a character cut off at the end of `head` is no error."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, whole)
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def _animated(file: BinaryIO, found: Format) -> bool:
    head = file.read(21)
    if found == "webp":  # the animation flag of the VP8X chunk
        return head[12:16] == b"VP8X" and len(head) == 21 and bool(head[20] & 0x02)
    file.seek(0)
    return _gif_frames(file) > 1


def _gif_frames(file: BinaryIO) -> int:
    """Image descriptors of a GIF, at most two: enough to know whether it moves. A cut-off file ends the count."""
    head = file.read(13)
    if len(head) == 13 and head[10] & 0x80:
        file.seek(3 << ((head[10] & 7) + 1), os.SEEK_CUR)
    found = 0
    while found < 2 and (mark := file.read(1)) in (b"\x21", b"\x2c"):
        if mark == b"\x21":
            file.read(1)
        else:
            found += 1
            descriptor = file.read(9)
            if len(descriptor) == 9 and descriptor[8] & 0x80:
                file.seek(3 << ((descriptor[8] & 7) + 1), os.SEEK_CUR)
            file.read(1)
        while (length := file.read(1)) not in (b"", b"\0"):
            file.seek(length[0], os.SEEK_CUR)
    return found
