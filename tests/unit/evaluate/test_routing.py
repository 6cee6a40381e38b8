"""Routing figures against cases whose answer is known."""

import numpy as np
import pytest

from accordion.evaluate.routing import chance_iou, describe, entropy, mutual_information


def test_two_modalities_with_experts_of_their_own():
    choice = np.array([[0, 1]] * 50 + [[2, 3]] * 50)
    labels = np.array([1] * 50 + [4] * 50)
    figures = describe(choice, labels, 8, np.random.default_rng(0))
    assert figures["iou"] == {"text-audio": 0.0}
    assert figures["dead"] == 4
    assert figures["max_over_mean_load"] == pytest.approx(2.0)
    assert figures["mutual_information"] == pytest.approx(np.log(2))
    assert figures["mutual_information_null"] < 0.05
    assert figures["entropy"]["text"] == pytest.approx(np.log(2) / np.log(8))


def test_the_same_experts_for_both_share_everything_and_tell_nothing():
    figures = describe(np.array([[0, 1]] * 40), np.array([1, 4] * 20), 8, np.random.default_rng(0))
    assert figures["iou"] == {"text-audio": 1.0}
    assert figures["mutual_information"] == pytest.approx(0.0, abs=1e-12)


def test_chance_level_agrees_with_drawing():
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(20_000):
        a, b = (set(generator.permutation(16)[:4]) for _ in range(2))
        drawn.append(len(a & b) / len(a | b))
    assert chance_iou(16, 4) == pytest.approx(np.mean(drawn), abs=0.005)


def test_chance_level_tends_to_the_published_one_with_many_experts():
    assert chance_iou(4096, 1024) == pytest.approx(0.143, abs=0.001)


def test_entropy_of_even_and_single_use():
    assert entropy(np.full(16, 1 / 16)) == pytest.approx(1.0)
    assert entropy(np.eye(16)[3]) == 0.0


def test_mutual_information_of_independent_counts_is_zero():
    assert mutual_information(np.outer([10, 30], [1, 2, 3])) == pytest.approx(0.0, abs=1e-12)
