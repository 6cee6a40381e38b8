"""Decontamination: passages of the training text that share an n-gram with evaluation text are cut out.

After GPT-3 (arXiv 2005.14165, appendix C): 13-grams of words without case and punctuation; here the passage around
a match goes, not 200 characters. Where more than half of the tokens are characters of scripts without spaces, an
n-gram has 26 of them. A line of 60 characters or more that is too short for an n-gram matches as a whole.
"""

import re
from collections import Counter, defaultdict
from typing import Any

import numpy as np

from accordion.config.data import DecontaminationConfig
from accordion.data.ngrams import content_hash, tokens, windows
from accordion.errors import DataError

PASSAGE_CHARACTERS = 60  # shorter lines (headings, menu paths) are too common to count as leaked
LONG_LINE = 1000  # characters; a longer line is cut sentence by sentence
SENTENCE = re.compile(r"(?<=[.!?])(?=\s)|(?<=[。！？])")
FILTER = np.uint64(2**23 - 1)  # bits by which an n-gram that is not held is told from most that are, in 8 MB
PENDING = 2_000_000  # n-grams gathered before they are sorted into the others


class Decontamination:
    """Gathers the n-grams of evaluation text, then cuts training text; memory is 8 bytes an n-gram."""

    def __init__(self, config: DecontaminationConfig) -> None:
        self.config = config
        self.known = np.empty(0, np.uint64)
        self.maybe = np.zeros(int(FILTER) + 1, bool)
        self.pending: list[np.ndarray] = []
        self.size = 0
        self.hits: np.ndarray | None = None
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)

    def hold(self, text: str, hashes: np.ndarray | None = None) -> None:
        """Add a text (and its `ngrams.tokens`, where they are at hand) that training must not have seen.

        Raises:
            DataError: more than `most_ngrams` in all.
        """
        _, grams = self._ngrams(tokens(text) if hashes is None else hashes)
        self.pending += [grams, _wholes(_passages(text))]
        self.size += len(grams)
        if self.size >= PENDING:
            self._sort()

    def clean(self, text: str, hashes: np.ndarray, source: str) -> str:
        """A training text (with its tokens) without the passages that share an n-gram with what is held.

        It may come back empty.
        """
        if self.hits is None or self.pending:
            self._sort()
            self.hits = np.zeros(len(self.known), bool)
        counts = self.counts[source]
        counts["documents"] += 1
        passages = _passages(text)
        if not self._held(self._ngrams(hashes)[1]).any() and not self._held(_wholes(passages)).any():
            return text
        kept = passages
        while leaked := self._leaked(kept):
            kept = [passage for place, passage in enumerate(kept) if place not in leaked]
        cleaned = "".join(kept).strip()
        counts["passages"] += len(passages) - len(kept)
        counts["characters"] += len(text) - len(cleaned)
        counts["cut" if cleaned else "dropped"] += 1
        return cleaned

    def report(self) -> dict[str, Any]:
        """n-grams held and found; by source: documents seen, cut, dropped, passages and characters removed."""
        wanted = ("documents", "cut", "dropped", "passages", "characters")
        return {
            "words": self.config.words,
            "characters": self.config.characters,
            "ngrams_held": len(self.known),
            "ngrams_found": 0 if self.hits is None else int(self.hits.sum()),
            "removed": {name: sum(counts[name] for counts in self.counts.values()) for name in wanted},
            "sources": {
                source: {name: counts[name] for name in wanted} for source, counts in sorted(self.counts.items())
            },
        }

    def _ngrams(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Index of the middle token, and hash, of each n-gram."""
        unspaced = np.concatenate([[0], np.cumsum(hashes & np.uint64(1))]).astype(np.int64)
        middles, found = [], []
        for length, wide in ((self.config.words, False), (self.config.characters, True)):
            if wide and not unspaced[-1]:
                continue
            grams = windows(hashes, length)
            share = (unspaced[length:] - unspaced[: len(grams)]) * 2 if len(grams) else np.empty(0)
            chosen = np.flatnonzero((share > length) == wide)
            middles.append(chosen + length // 2)
            found.append(grams[chosen])
        return np.concatenate(middles), np.concatenate(found)

    def _leaked(self, passages: list[str]) -> set[int]:
        """Which passages to cut: those with the middle of an n-gram that is held, or held as a whole."""
        parts = [tokens(passage) for passage in passages]
        owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        middles, grams = self._ngrams(np.concatenate([np.empty(0, np.uint64), *parts]))
        leaked = set(owner[middles[self._held(grams)]].tolist())
        long = [place for place, passage in enumerate(passages) if len(passage.strip()) >= PASSAGE_CHARACTERS]
        return leaked | {long[place] for place in np.flatnonzero(self._held(_wholes(passages)))}

    def _held(self, grams: np.ndarray) -> np.ndarray:
        found = self.maybe[grams & FILTER]  # most n-grams end here
        likely = np.flatnonzero(found)
        places = np.searchsorted(self.known, grams[likely]).clip(max=max(len(self.known) - 1, 0))
        if len(likely):
            found[likely] = self.known[places] == grams[likely]
            assert self.hits is not None
            self.hits[places[found[likely]]] = True
        return found

    def _sort(self) -> None:
        self.known = np.unique(np.concatenate([self.known, *self.pending]))
        self.maybe[self.known & FILTER] = True
        self.pending, self.size = [], 0
        if len(self.known) > self.config.most_ngrams:
            raise DataError(
                f"the evaluation text has {len(self.known):,} n-grams, over {self.config.most_ngrams:,}; "
                "raise ingest.decontamination.most_ngrams (8 bytes each) or hold out less"
            )


def _wholes(passages: list[str]) -> np.ndarray:
    """Hashes of the passages that are no headings, each as a whole."""
    long = [content_hash(passage) for passage in passages if len(passage.strip()) >= PASSAGE_CHARACTERS]
    return np.array(long, np.uint64)


def _passages(text: str) -> list[str]:
    """Lines, and sentences of long lines; together they are the text."""
    found: list[str] = []
    for line in text.splitlines(keepends=True):
        found += SENTENCE.split(line) if len(line) > LONG_LINE else [line]
    return found
