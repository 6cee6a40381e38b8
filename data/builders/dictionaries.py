"""Bilingual word lists: FreeDict dictionaries in dictd format, cleaned to word and first translations."""

import gzip
import re
from pathlib import Path

from builders.packages import Packages
from builders.write import rank, write_gzip

LANGUAGES = {"fr": "fra", "es": "spa", "it": "ita", "nl": "nld"}
WORDS = 2500
_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def _number(text: str) -> int:
    value = 0
    for character in text:
        value = value * 64 + _DIGITS.index(character)
    return value


def entries(packages: Packages, code: str) -> list[tuple[str, str]]:
    """(English word, translation) of each clean entry; several translations of a word are several rows."""
    folder = packages.deb(f"dict-freedict-eng-{code}") / "usr/share/dictd"
    content = gzip.decompress((folder / f"freedict-eng-{code}.dict.dz").read_bytes())
    pairs = []
    for line in (folder / f"freedict-eng-{code}.index").read_text(encoding="utf-8").splitlines():
        word, offset, length = line.split("\t")[:3]
        if word.startswith("00database"):
            continue
        start = _number(offset)
        body = content[start : start + _number(length)].decode("utf-8").splitlines()
        head = re.sub(r"\s*[/<].*$", "", body[0]).strip() if body else ""
        if not re.fullmatch(r"[A-Za-z][A-Za-z' -]{1,30}", head):
            continue
        for meaning in body[1:]:
            for translation in re.split(r"[,;]", re.sub(r"^\d+\.|<[^>]*>|\([^)]*\)|\[[^\]]*\]", "", meaning.strip())):
                translation = translation.strip()
                if re.fullmatch(r"[^\W\d_][\w' ’‐-]{0,30}", translation) and not re.search(r"\d", translation):
                    pairs.append((head, translation))
    return list(dict.fromkeys(pairs))


def _run_together(word: str, known: set[str]) -> bool:
    """Whether a word is two known words, perhaps with `de` between them: `ruedaposterior`, `camitadeniño`."""
    return any(
        word[:cut] in known and (word[cut:] in known or (word[cut : cut + 2] == "de" and word[cut + 2 :] in known))
        for cut in range(4, len(word) - 3)
    )


def clean(pairs: list[tuple[str, str]], language: str) -> list[tuple[str, str]]:
    """Pairs without words that stand for themselves and, in eng-spa, without rows that lost their spaces."""
    pairs = [(word, translation) for word, translation in pairs if word.lower() != translation.lower()]
    if language != "es":
        return pairs
    known = {translation for _, translation in pairs if 4 <= len(translation) <= 12}
    return [pair for pair in pairs if " " in pair[1] or not (len(pair[1]) > 14 or _run_together(pair[1], known))]


def build_dictionaries(packages: Packages, out: Path) -> None:
    """`dictionaries/en-XX.tsv.gz`: word, tab, translation."""
    for language, code in LANGUAGES.items():
        pairs = clean(entries(packages, code), language)
        words = sorted({word for word, _ in pairs}, key=rank)[:WORDS]
        if len(words) < 1500:
            raise SystemExit(f"dict-freedict-eng-{code}: {len(words)} usable words, expected over 1,500")
        chosen = set(words)
        rows = sorted({pair for pair in pairs if pair[0] in chosen})
        write_gzip(out / f"dictionaries/en-{language}.tsv.gz", "".join(f"{a}\t{b}\n" for a, b in rows))
