"""Text files: UTF-8, or UTF-16 with a byte order mark."""

import codecs

from accordion.data.media.kinds import Source, opened
from accordion.errors import DataError

LARGEST_BYTES = 256 * 2**20


def read_text(source: Source, name: str | None = None) -> str:
    """The text of a file, without its byte order mark.

    Raises:
        DataError: no such file, an empty one, over LARGEST_BYTES, or not UTF-8 (the text names the byte).
    """
    with opened(source, name) as (file, label):
        data = file.read(LARGEST_BYTES + 1)
    if len(data) > LARGEST_BYTES:
        raise DataError(f"{label}: over {LARGEST_BYTES >> 20} MiB of text; split it, or ingest it as JSON lines")
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if wide else "UTF-8"
        raise DataError(f"{label}: not {encoding} at byte {error.start}; save the text as UTF-8") from None
