"""Readers of two SWORD module formats: zText (verses of the KJV) and zLD (Nave's Topical Bible)."""

import re
import struct
import zlib

from builders.packages import Packages


def _clean(osis: str) -> str:
    osis = re.sub(r"<(note|title)\b.*?</\1>", "", osis, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", osis)).strip()


def verses(packages: Packages) -> dict[str, str]:
    """OSIS reference such as `Gen.1.1` -> text of every verse, in order.

    zText: `.bzv` holds (block, offset, length) of each entry, `.bzs` (offset, size, full size) of each
    zlib block of `.bzz`; entries are headings of testament, book and chapter, each followed by its verses.
    """
    folder = packages.deb("sword-text-kjv") / "usr/share/sword/modules/texts/ztext/engKJV2006eb"
    found: dict[str, str] = {}
    for testament in ("ot", "nt"):
        index, blocks, data = ((folder / f"{testament}.{end}").read_bytes() for end in ("bzv", "bzs", "bzz"))
        texts: dict[int, bytes] = {}
        chapter, verse = "", 0
        for block, offset, length in struct.iter_unpack("<IIH", index):
            if block not in texts and length:
                start, size, _ = struct.unpack_from("<III", blocks, 12 * block)
                texts[block] = zlib.decompress(data[start : start + size])
            entry = texts[block][offset : offset + length].decode("utf-8") if length else ""
            heading = re.search(r'<chapter [^>]*osisID="([^"]+)"', entry)
            if heading:
                chapter, verse = heading.group(1), 0
            elif re.search(r'<div [^>]* sID="[^>]*type="book"', entry):
                chapter = ""
            elif chapter:
                verse += 1
                found[f"{chapter}.{verse}"] = _clean(entry)
    if len(found) != 31_102:
        raise SystemExit(f"sword-text-kjv: {len(found)} verses, expected 31,102")
    return found


def topics(packages: Packages, order: list[str]) -> dict[str, list[str]]:
    """Topic -> verses a human editor listed below it; ranges are written out along `order`.

    zLD: `.idx` points into `.dat` at `KEY\\r\\n` + (block, entry); `.zdx` points at zlib blocks of `.zdt`,
    each a count and (offset, size) of its entries.
    """
    stem = packages.deb("sword-dict-naves") / "usr/share/sword/modules/lexdict/zld/nave"
    index, keys, blocks, data = ((stem / f"nave.{end}").read_bytes() for end in ("idx", "dat", "zdx", "zdt"))
    position = {reference: place for place, reference in enumerate(order)}
    texts: dict[int, bytes] = {}
    found: dict[str, list[str]] = {}
    for start, size in struct.iter_unpack("<II", index):
        key, _, address = keys[start : start + size].partition(b"\n")
        if len(address) != 8:
            continue  # a link to another topic
        block, entry = struct.unpack("<II", address)
        if block not in texts:
            offset, length = struct.unpack_from("<II", blocks, 8 * block)
            texts[block] = zlib.decompress(data[offset : offset + length])
        offset, length = struct.unpack_from("<II", texts[block], 4 + 8 * entry)
        article = texts[block][offset : offset + length].decode("utf-8")
        judged: dict[str, None] = {}
        for reference in re.findall(r'osisRef="([^"]+)"', article):
            first, _, last = reference.partition("-")
            if first in position and (last or first) in position:
                judged.update(dict.fromkeys(order[position[first] : position[last or first] + 1]))
        if judged:
            found[key.decode("utf-8").strip()] = list(judged)
    return found
