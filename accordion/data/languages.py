"""Languages of records: identified where none is declared, checked where one is.

py3langid (naive Bayes over byte n-grams; the model is in its wheel) is right for long texts and often wrong for a
few words, so short texts are judged together, some hundred characters of one declared language at a time.
"""

import re
from collections import Counter, defaultdict
from functools import cache
from typing import Any

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from accordion.config.data import LanguagesConfig

LOOKED_AT = 300  # characters
MOST_POOLS = 20  # groups of short texts of one language that are judged
UNKNOWN = "und"  # ISO 639-2: undetermined
WIDER = {"wuu": "zh", "yue": "zh", "nb": "no", "nn": "no"}  # what the identifier splits and declarations do not


@cache
def identifier() -> LanguageIdentifier:
    """The identifier with its model (0.7 s)."""
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def identify(text: str) -> tuple[str, float]:
    """Language (ISO 639 code) of the beginning of a text and its probability."""
    start = text[:LOOKED_AT]
    if not any(character.isalpha() for character in start):
        return UNKNOWN, 0.0
    found, probability = identifier().classify(start)
    return WIDER.get(found, found), float(probability)


def base(language: str) -> str:
    """`pt` of `pt_BR`, in the identifier's terms."""
    code = re.split("[-_]", language)[0].lower()
    return WIDER.get(code, code)


class Languages:
    """Compares declared languages with identified ones, and counts."""

    def __init__(self, config: LanguagesConfig) -> None:
        self.config = config
        self.checked: dict[str, Counter[str]] = defaultdict(Counter)
        self.other: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
        self.pools: dict[tuple[str, str], list[str]] = defaultdict(list)
        self.judged: Counter[tuple[str, str]] = Counter()

    def tag(self, row: dict[str, Any]) -> str | None:
        """Give a row of text its `identified` language, and its `language` where none is declared.

        Returns:
            what is wrong when the text is confidently in another language than declared, else None.
        """
        text = row["text"]
        declared = row["language"]
        if declared is not None and (len(text) < self.config.minimum_characters or not self._known(declared)):
            row["identified"] = declared
            return None
        found, probability = identify(text)
        row["identified"] = found
        if declared is None:
            row["language"] = found
            return None
        sure = probability >= self.config.confidence and found != base(declared)
        self._count("text", declared, found if sure else None)
        if not sure:
            row["identified"] = declared
            return None
        return f"declared {declared}, but identified as {found} ({probability:.2f})"

    def pool(self, kind: str, language: str | None, words: str) -> str:
        """Add a caption or transcript to the short texts of its language; returns that language."""
        if language is None:
            return identify(words)[0]
        held = self.pools[kind, language]
        if self.judged[kind, language] < MOST_POOLS and self._known(language):
            held.append(words)
            if sum(map(len, held)) >= LOOKED_AT:
                self._judge(kind, language)
        return language

    def report(self) -> dict[str, Any]:
        """kind -> language -> texts (or groups of short texts) checked, share of mismatches, what was found instead."""
        for (kind, language), held in sorted(self.pools.items()):
            if sum(map(len, held)) >= self.config.minimum_characters:
                self._judge(kind, language)
        return {
            kind: {
                language: {
                    "checked": count,
                    "mismatch_share": self.other[kind][language].total() / count,
                    "found": dict(sorted(self.other[kind][language].items())),
                }
                for language, count in sorted(counts.items())
            }
            for kind, counts in self.checked.items()
        }

    def _judge(self, kind: str, language: str) -> None:
        found, probability = identify("\n".join(self.pools.pop((kind, language))))
        self.judged[kind, language] += 1
        sure = probability >= self.config.confidence and found != base(language)
        self._count(kind, language, found if sure else None)

    def _count(self, kind: str, language: str, other: str | None) -> None:
        self.checked[kind][language] += 1
        if other is not None:
            self.other[kind][language][other] += 1

    def _known(self, language: str) -> bool:
        return base(language) in _labels()


@cache
def _labels() -> frozenset[str]:
    return frozenset(WIDER.get(label, label) for label in identifier().labels)
