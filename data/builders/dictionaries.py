"""Bilingual word lists: FreeDict dictionaries in dictd format, cleaned to word and first translations."""

import gzip
import re
from pathlib import Path

from builders.packages import Package, Packages, check_count
from builders.tiers import Tier
from builders.write import Written, rank, write_gzip

CODES = {"fr": "fra", "es": "spa", "it": "ita", "nl": "nld", "pt": "por", "ru": "rus"}
HEADWORDS = {"fr": 8799, "es": 5907, "it": 4519, "nl": 7714, "pt": 15_859, "ru": 1693}
_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def packages_of(tier: Tier) -> list[Package]:
    """The packages of a tier's dictionaries."""
    return [("deb", f"dict-freedict-eng-{CODES[language]}") for language in tier.dictionaries]


def _number(text: str) -> int:
    value = 0
    for character in text:
        value = value * 64 + _DIGITS.index(character)
    return value


def entries(packages: Packages, language: str) -> list[tuple[str, str]]:
    """(English word, translation) of each clean entry; several translations of a word are several rows."""
    code = CODES[language]
    folder = packages.deb(f"dict-freedict-eng-{code}") / "usr/share/dictd"
    content = gzip.decompress((folder / f"freedict-eng-{code}.dict.dz").read_bytes())
    index = (folder / f"freedict-eng-{code}.index").read_text(encoding="utf-8").splitlines()
    index = [line for line in index if not line.startswith("00")]  # 00database…: about the dictionary itself
    check_count(f"dict-freedict-eng-{code}", "headwords", len(index), HEADWORDS[language], 0.05)
    pairs = []
    for line in index:
        _, offset, length = line.split("\t")[:3]
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


def build_dictionaries(packages: Packages, out: Path, tier: Tier) -> list[Written]:
    """`dictionaries/en-XX.tsv.gz`: word, tab, translation."""
    written = []
    for language in tier.dictionaries:
        pairs = clean(entries(packages, language), language)
        chosen = set(sorted({word for word, _ in pairs}, key=rank)[: tier.words])
        rows = sorted({pair for pair in pairs if pair[0] in chosen})
        file = f"dictionaries/en-{language}.tsv.gz"
        write_gzip(out / file, "".join(f"{a}\t{b}\n" for a, b in rows))
        written.append(
            Written(
                file=file,
                records=len(rows),
                unit="pairs of words",
                languages=("en", language),
                packages=(("deb", f"dict-freedict-eng-{CODES[language]}"),),
                licence="GPL-2.0-or-later",
                changes="words and translations; pronunciation, grammar and malformed rows left out",
            )
        )
    return written
