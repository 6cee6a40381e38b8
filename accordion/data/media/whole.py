"""Whether a file is whole, by its own structure: decoders end early in silence when the end of a file is missing."""

from typing import BinaryIO

from accordion.data.media.kinds import Format, gsm_fault, size_of

TAIL = 4096  # bytes in which an end mark may be followed by other data
OGG_PAGE = 65_307  # bytes of the largest page


def fault_of(file: BinaryIO, found: Format) -> str | None:
    """What is missing from a file of a known format (None: nothing); its position goes back to the beginning.

    FLAC, MP3 and JPEG are not looked at: their decoders say it, or count their samples.
    """
    size = size_of(file)
    fault = None
    if found in ("wav", "webp"):
        fault = _missing(_riff_size(file) - size)
    elif found == "mp4":
        fault = _missing(_boxes_size(file, size) - size)
    elif found == "webm":
        fault = _missing(_segment_size(file) - size)
    elif found == "gsm":
        fault = gsm_fault(file.read())
    elif found == "ogg":
        fault = None if _ogg_ends(file, size) else "its last page is missing"
    elif found in ("gif", "png"):
        file.seek(max(0, size - TAIL))
        tail = file.read().rstrip(b"\0")
        ends = tail.endswith(b"\x3b") if found == "gif" else b"IEND\xaeB`\x82" in tail
        fault = None if ends else "its end mark is missing"
    file.seek(0)
    return fault


def _missing(count: int) -> str | None:
    return f"{count} bytes are missing at its end" if count > 0 else None


def _riff_size(file: BinaryIO) -> int:
    """Bytes that the header of a RIFF file states; 0 where it leaves them open."""
    head = file.read(8)
    declared = int.from_bytes(head[4:8], "little")
    return 0 if head[:4] != b"RIFF" or declared in (0, 0xFFFFFFFF) else declared + 8


def _boxes_size(file: BinaryIO, size: int) -> int:
    """Where the last top-level box of an MP4 file ends (ISO 14496-12, section 4.2)."""
    end = 0
    while end + 8 <= size:
        file.seek(end)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:  # a 64-bit length follows
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: to the end of the file
            break
        end += length
    return end


def _segment_size(file: BinaryIO) -> int:
    """Where the segment of a WebM or Matroska file ends (RFC 8794, section 4); 0 where it is left open."""
    end = 0
    for element in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):  # EBML header, segment
        file.seek(end)
        head = file.read(12)
        if head[:4] != element or len(head) < 5 or not head[4]:
            return 0
        width = 9 - head[4].bit_length()
        value = int.from_bytes(head[4 : 4 + width], "big") & ((1 << 7 * width) - 1)
        if value == (1 << 7 * width) - 1:  # of unknown size
            return 0
        end += 4 + width + value
    return end


def _ogg_ends(file: BinaryIO, size: int) -> bool:
    """Whether the last page of an Ogg file (RFC 3533, section 6) is whole and marked as the end of a stream."""
    file.seek(max(0, size - OGG_PAGE))
    tail = file.read()
    start = tail.rfind(b"OggS")
    if start < 0 or len(tail) < start + 27:
        return False
    segments = tail[start + 27 : start + 27 + tail[start + 26]]
    return bool(tail[start + 5] & 4) and len(tail) >= start + 27 + len(segments) + sum(segments)
