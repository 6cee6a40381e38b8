"""Ranking measures against numbers worked out by hand."""

import math

import pytest

from accordion.errors import DataError
from accordion.evaluate.metrics import per_query


def test_measures_of_a_small_ranking():
    qrels = {"q1": {"a": 1, "b": 1}, "q2": {"z": 1}}
    run = {"q1": [("x", 3.0), ("a", 2.0), ("b", 1.0)], "q2": [(f"n{i}", -i) for i in range(10)] + [("z", -99.0)]}
    values = per_query(qrels, run)
    ideal = 1 + 1 / math.log2(3)
    assert values["ndcg10"].tolist() == pytest.approx([(1 / math.log2(3) + 1 / 2) / ideal, 0])
    assert values["mrr10"].tolist() == pytest.approx([0.5, 0])
    assert values["recall100"].tolist() == [1, 1]


def test_a_query_the_run_lost_counts_as_zero():
    values = per_query({"lost": {"a": 1}, "found": {"a": 1}}, {"found": [("a", 1.0)]})
    assert values["ndcg10"].tolist() == [0, 1]


def test_ties_keep_the_order_of_the_run():
    assert per_query({"q": {"a": 1}}, {"q": [("a", 0.5), ("b", 0.5)]})["mrr10"].tolist() == [1]
    assert per_query({"q": {"a": 1}}, {"q": [("b", 0.5), ("a", 0.5)]})["mrr10"].tolist() == [0.5]


def test_an_unjudged_query_is_refused():
    with pytest.raises(DataError, match="'stray'"):
        per_query({"q": {"a": 1}}, {"stray": [("a", 1.0)]})
