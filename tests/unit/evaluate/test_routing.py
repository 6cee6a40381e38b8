"""Routing figures against cases whose answer is known."""

import numpy as np
import pytest
import torch

from accordion.data.batch import Batch
from accordion.evaluate.routing import (
    GROUPS,
    chance_iou,
    describe,
    drift,
    entropy,
    group_labels,
    mutual_information,
    route,
)
from accordion.model import Model, SubmodelSpec
from tests.unit.model.synthetic import small_batch, small_config


def test_two_modalities_with_experts_of_their_own():
    choice = np.array([[0, 1]] * 50 + [[2, 3]] * 50)
    labels = np.array([0] * 50 + [5] * 50)
    figures = describe(choice, labels, 8, np.random.default_rng(0))
    assert figures["iou"] == {"text-audio": 0.0}
    assert figures["dead"] == 4
    assert figures["max_over_mean_load"] == pytest.approx(2.0)
    assert figures["mutual_information"] == pytest.approx(np.log(2))
    assert figures["mutual_information_null"] < 0.05
    assert figures["entropy"]["text"] == pytest.approx(np.log(2) / np.log(8))


def test_the_same_experts_for_both_share_everything_and_tell_nothing():
    figures = describe(np.array([[0, 1]] * 40), np.array([0, 5] * 20), 8, np.random.default_rng(0))
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
    assert entropy(np.ones(1)) == 1.0  # a member's only expert is used as evenly as it can be


def test_mutual_information_of_independent_counts_is_zero():
    assert mutual_information(np.outer([10, 30], [1, 2, 3])) == pytest.approx(0.0, abs=1e-12)


def test_pictures_before_their_words_are_read_and_after_them_made():
    columns = {name: getattr(small_batch(rows=2, length=48), name).clone() for name in Batch.__dataclass_fields__}
    for name, empty in (("modality", 0), ("document", -1)):
        columns[name][:] = empty
    kinds = ([1, 2, 2, 1, 1], [1, 1, 3, 3, 1], [1, 2, 1], [1, 4, 4])  # read image, made video, no words, audio
    tokens = ([1, 0, 0, 4, 30], [1, 30, 0, 0, 6], [1, 0, 4], [7, 0, 0])
    at = 0
    for document, (kind, token) in enumerate(zip(kinds, tokens, strict=True)):
        where = slice(at, at + len(kind))
        columns["modality"][0, where], columns["token"][0, where] = torch.tensor(kind), torch.tensor(token)
        columns["document"][0, where] = document
        at += len(kind)
    names = [GROUPS[label] for label in group_labels(Batch(**columns))]
    text = "text"
    assert names == [
        text, "image read", "image read", text, text,
        text, text, "video made", "video made", text,
        text, "image made", text,
        text, "audio", "audio",
    ]  # fmt: skip


def test_a_member_is_counted_among_its_own_experts_only():
    model = Model(small_config(), seed=1).eval()
    spec = SubmodelSpec((0, 3, 4), ((1, 4, 5), (0, 2, 5), (2, 3, 4)), (2, 2, 1))
    choices = route(model, [small_batch()], spec)
    assert len(choices) == 3
    for choice, kept, used in zip(choices, spec.experts, spec.top_k, strict=True):
        assert choice.max() <= len(kept) and ((choice < len(kept)).sum(1) == used).all()


def test_drift_is_nothing_for_the_same_choices_and_whole_for_others():
    labels = np.array([0] * 40 + [5] * 40)
    before = np.concatenate([np.zeros((40, 1), int), np.ones((40, 1), int)])
    same = drift(before, before, labels, 4)
    assert same["text"] == {"total_variation": 0.0, "null": 0.0, "iou": 1.0}
    moved = drift(before, before + 2, labels, 4)
    assert moved["audio"]["total_variation"] == 1.0 and moved["audio"]["iou"] == 0.0
    halves = np.arange(80)[:, None] % 2  # even positions choose expert 0, odd ones expert 1: all the null can be
    assert drift(halves, halves, labels, 4)["text"] == {"total_variation": 0.0, "null": 1.0, "iou": 1.0}
