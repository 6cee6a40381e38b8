"""BM25, exact dense search, fusion, and the query function."""

import math

import numpy as np
import pytest

from accordion.errors import ArtifactError, DataError
from accordion.retrieval.bm25 import Bm25
from accordion.retrieval.index import FlatIndex, fuse
from accordion.retrieval.query import query


def test_bm25_is_lucenes_formula():
    documents = {"a": "red apple tree", "b": "green apple", "c": "stone wall garden path"}
    ranking = Bm25(documents, k1=0.9, b=0.4).search({"q": "Apple"}, 10)["q"]
    assert [document for document, _ in ranking] == ["b", "a"]
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    average = (3 + 2 + 4) / 3
    expected = idf / (1 + 0.9 * (1 - 0.4 + 0.4 * 2 / average))
    assert ranking[0][1] == pytest.approx(expected, rel=1e-5)


def test_bm25_finds_nothing_for_unknown_or_no_words():
    index = Bm25({"a": "red apple"})
    assert index.search({"x": "zebra", "y": "", "z": "the of"}, 10) == {"x": [], "y": [], "z": []}
    with pytest.raises(DataError, match="word"):
        Bm25({"a": "", "b": "?"})


def test_flat_search_is_exact_and_bounded(unit_vectors, tmp_path):
    documents, queries = unit_vectors(50, 8), unit_vectors(5, 8, seed=1)
    ids = [f"d{n}" for n in range(50)]
    index = FlatIndex.build(ids, documents)
    found = index.search(queries, 7)
    for row, scores in zip(found, queries @ documents.T, strict=True):
        assert [name for name, _ in row] == [ids[n] for n in np.argsort(-scores)[:7]]
        assert [score for _, score in row] == pytest.approx(sorted(scores, reverse=True)[:7], abs=1e-6)
    assert len(index.search(queries, 1000)[0]) == 50
    index.save(tmp_path)
    assert FlatIndex.load(tmp_path).search(queries, 7) == found


def test_flat_search_refuses_bad_vectors(unit_vectors, tmp_path):
    broken = unit_vectors(3, 4)
    broken[1, 2] = np.nan
    with pytest.raises(DataError, match="'b'"):
        FlatIndex.build(["a", "b", "c"], broken)
    with pytest.raises(DataError, match="wants"):
        FlatIndex.build(["a"], unit_vectors(1, 4)).search(unit_vectors(1, 5), 3)
    with pytest.raises(ArtifactError, match="no index"):
        FlatIndex.load(tmp_path)


def test_fusion_sums_reciprocal_ranks():
    fused = fuse([{"q": [("a", 9.0), ("b", 8.0)]}, {"q": [("b", 0.5), ("c", 0.1)], "r": [("d", 1.0)]}], 2)
    assert fused["q"] == [("b", pytest.approx(1 / 62 + 1 / 61)), ("a", pytest.approx(1 / 61))]
    assert fused["r"] == [("d", pytest.approx(1 / 61))]


def test_query_ranks_documents_and_keeps_its_index(trained, corpus, tmp_path):
    domain = corpus / "retrieval/source"
    first = query(trained[0], domain, "paint the bridge", k=5, cache=tmp_path)
    assert [hit.rank for hit in first] == [1, 2, 3, 4, 5]
    assert first[0].score >= first[-1].score
    assert any("bridge" in hit.text or "paint" in hit.text for hit in first)
    (kept,) = tmp_path.iterdir()
    stamp = (kept / "vectors.faiss").stat().st_mtime_ns
    assert query(trained[0], domain / "corpus.jsonl", "paint the bridge", k=5, cache=tmp_path) == first
    assert (kept / "vectors.faiss").stat().st_mtime_ns == stamp


def test_hard_queries_get_an_answer_or_a_clear_error(trained, corpus):
    domain = corpus / "retrieval/source"
    assert len(query(trained[0], domain, "kettle " * 15_000, k=3)) == 3  # 105 KB
    assert len(query(trained[0], domain, "\ud800 \x00 漢字", k=1000)) == 70
    for text, k, words in (("  ", 3, "empty"), ("kettle", 0, "k is 0"), ("x" * 1_000_001, 3, "at most")):
        with pytest.raises(DataError, match=words):
            query(trained[0], domain, text, k=k)
