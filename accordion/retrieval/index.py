"""Exact dense search over embeddings with faiss, and fusion of rankings."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from accordion.errors import ArtifactError, DataError
from accordion.retrieval.beir import Ranking

RRF_K = 60  # Cormack, Clarke & Buettcher 2009, section 2
_VECTORS, _IDS = "vectors.faiss", "ids.txt"


class FlatIndex:
    """Inner-product search over all vectors; on unit vectors that is cosine."""

    def __init__(self, ids: Sequence[str], index: faiss.Index) -> None:
        if index.ntotal != len(ids):
            raise ArtifactError(f"index holds {index.ntotal} vectors for {len(ids)} ids; build it again")
        self.ids = list(ids)
        self.index = index

    @classmethod
    def build(cls, ids: Sequence[str], embeddings: NDArray[np.float32]) -> "FlatIndex":
        """Index embeddings (documents, dimension).

        Raises:
            DataError: no vectors, or a vector is not finite.
        """
        if embeddings.ndim != 2 or not len(embeddings):
            raise DataError(f"index: got embeddings of shape {embeddings.shape}; wants (documents, dimension)")
        broken = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        if len(broken):
            raise DataError(f"index: the embedding of document {ids[int(broken[0])]!r} is NaN or infinite")
        index = faiss.IndexFlatIP(embeddings.shape[1])
        index.add(np.ascontiguousarray(embeddings, dtype=np.float32))
        return cls(ids, index)

    def search(self, embeddings: NDArray[np.float32], k: int) -> list[Ranking]:
        """The k nearest documents (or all, if fewer) of each query embedding (queries, dimension)."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.index.d:
            raise DataError(f"search: got embeddings of shape {embeddings.shape}; wants (queries, {self.index.d})")
        if k < 1:
            raise DataError(f"search: k is {k}; wants at least 1")
        scores, places = self.index.search(
            np.ascontiguousarray(embeddings, dtype=np.float32), min(k, self.index.ntotal)
        )
        return [
            [(self.ids[place], float(score)) for place, score in zip(row, values, strict=True)]
            for row, values in zip(places, scores, strict=True)
        ]

    def save(self, folder: Path) -> None:
        """Write the vectors and ids into an existing folder."""
        faiss.write_index(self.index, str(folder / _VECTORS))
        (folder / _IDS).write_text("\n".join(self.ids), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "FlatIndex":
        """Read what `save` wrote."""
        if not (folder / _VECTORS).is_file() or not (folder / _IDS).is_file():
            raise ArtifactError(f"{folder}: no index ({_VECTORS}, {_IDS}); build it again")
        return cls((folder / _IDS).read_text(encoding="utf-8").split("\n"), faiss.read_index(str(folder / _VECTORS)))


def fuse(runs: Sequence[Mapping[str, Ranking]], depth: int) -> dict[str, Ranking]:
    """Reciprocal rank fusion: score(d) = sum over runs of 1 / (60 + rank), rank from 1; ties by first appearance."""
    fused: dict[str, Ranking] = {}
    for query in dict.fromkeys(query for run in runs for query in run):
        scores: dict[str, float] = {}
        for run in runs:
            for rank, (document, _) in enumerate(run.get(query, []), 1):
                scores[document] = scores.get(document, 0.0) + 1 / (RRF_K + rank)
        fused[query] = sorted(scores.items(), key=lambda item: -item[1])[:depth]
    return fused
