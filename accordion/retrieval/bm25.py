"""The lexical baseline: BM25 as Lucene computes it, by `bm25s`."""

from collections.abc import Mapping

import bm25s
import numpy as np

from accordion.errors import DataError
from accordion.retrieval.beir import Ranking


class Bm25:
    """An index over documents; English stop words are dropped, words are lower-cased."""

    def __init__(self, documents: Mapping[str, str], *, k1: float = 0.9, b: float = 0.4) -> None:
        """Index `documents` (id -> text).

        Raises:
            DataError: there are none, or none has a word.
        """
        self.ids = np.array(list(documents), dtype=object)
        tokens = bm25s.tokenize(list(documents.values()), show_progress=False)
        if not tokens.vocab or not any(len(row) for row in tokens.ids):
            raise DataError(f"BM25: none of {len(documents)} documents has a word to index")
        self.index = bm25s.BM25(method="lucene", k1=k1, b=b)
        self.index.index(tokens, show_progress=False)

    def search(self, queries: Mapping[str, str], depth: int) -> dict[str, Ranking]:
        """Query id -> at most `depth` documents that share a word with the query, best first; ties by index order."""
        words = bm25s.tokenize(list(queries.values()), return_ids=False, show_progress=False)
        return {query: self._search(tokens, depth) for query, tokens in zip(queries, words, strict=True)}

    def _search(self, tokens: list[str], depth: int) -> Ranking:
        known = [token for token in tokens if token in self.index.vocab_dict]
        if not known:
            return []
        scores = self.index.get_scores(known)  # (documents,)
        best = np.argsort(-scores, kind="stable")[:depth]
        return [(str(self.ids[index]), float(scores[index])) for index in best if scores[index] > 0]
