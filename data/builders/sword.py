"""Readers of two SWORD module formats: zText (verses of three Bibles) and zLD (Nave's Topical Bible)."""

import re
import struct
import zlib
from html import unescape

from builders.packages import Packages, check_count

BIBLES = {  # package -> (folder of the module, verses that are not empty)
    "sword-text-kjv": ("engKJV2006eb", 31_102),
    "sword-text-sparv": ("spaRV1909eb", 31_084),
    "sword-text-web": ("engWEB2015eb", 37_458),
}
TOPICS = {False: (4649, 138_528), True: (13_262, 153_028)}  # by heading -> (topics, judgements)


def _clean(osis: str) -> str:
    osis = re.sub(r"<(note|title)\b.*?</\1>", "", osis, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", osis)).strip()


def verses(packages: Packages, package: str) -> dict[str, str]:
    """OSIS reference such as `Gen.1.1` -> text of every verse that is not empty, in order.

    zText: `.bzv` holds (block, offset, length) of each entry, `.bzs` (offset, size, full size) of each
    zlib block of `.bzz`; entries are headings of testament, book and chapter, each followed by its verses.
    """
    module, expected = BIBLES[package]
    folder = packages.deb(package) / "usr/share/sword/modules/texts/ztext" / module
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
    found = {reference: text for reference, text in found.items() if text}
    check_count(package, "verses", len(found), expected, 0)
    return found


def _heading(piece: str) -> str:
    """What a line of an article says before its references, without its arrow or number."""
    return re.sub(r"^(?:→|\d+\.|[\s.])+", "", unescape(_clean(piece.partition("<ref")[0]))).rstrip(" ,;:")


def topics(packages: Packages, order: list[str], *, by_heading: bool) -> dict[str, list[str]]:
    """Topic -> verses a human editor listed below it; ranges are written out along `order`.

    by_heading: `Aaron: Lineage of` and every other heading of an article is a topic of its own; `1.`, `2.` before
    headings part the persons and places of one name.

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
        topic = key.decode("utf-8").strip()
        for piece in article.split("<lb/>") if by_heading else [article]:
            judged: dict[str, None] = {}
            for reference in re.findall(r'osisRef="([^"]+)"', piece):
                first, _, last = reference.partition("-")
                if first in position and (last or first) in position:
                    judged.update(dict.fromkeys(order[position[first] : position[last or first] + 1]))
            heading = _heading(piece) if by_heading else ""
            if judged:
                name = f"{topic}: {heading}" if heading else topic
                found[name] = list(dict.fromkeys([*(found.get(name, []) if by_heading else []), *judged]))
    return found
