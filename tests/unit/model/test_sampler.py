"""What instances draw: subsets of experts, top-k by layer, the ways in which reduced instances begin."""

import pytest

from accordion.config.pretrain import ElasticConfig
from accordion.errors import ConfigError
from accordion.model.sampler import ElasticSampler
from tests.unit.model.synthetic import small_config

CHOICES = {"layers": (4, 5), "experts": (3, 6), "top_k": (1, 2, 3), "full_share": 0.5}


def sampler(steps=100, **changes) -> ElasticSampler:
    elastic = ElasticConfig.parse({**CHOICES, "warmup_share": 0.1, **changes})
    return ElasticSampler(small_config(), elastic, steps=steps, seed=0)


def drawn(sampler: ElasticSampler, steps, rows=8):
    return [spec for step in steps for spec in sampler.draw(step, rows).specs]


def test_random_subsets_have_the_size_asked_for_and_differ_between_instances_and_layers():
    specs = [spec for spec in drawn(sampler(subsets="random"), range(10, 60)) if len(spec.experts[0]) == 3]
    assert len({spec.experts for spec in specs}) > len(specs) / 2
    assert any(spec.experts[0] != spec.experts[1] for spec in specs)
    assert {expert for spec in specs for kept in spec.experts for expert in kept} == set(range(6))
    for spec in specs:
        spec.check(small_config())


def test_top_k_by_layer_draws_a_vector():
    specs = [spec for spec in drawn(sampler(top_k_by_layer=True), range(10, 60)) if spec != sampler().full]
    assert sum(len(set(spec.top_k)) > 1 for spec in specs) > len(specs) / 2
    assert {k for spec in specs for k in spec.top_k} == {1, 2, 3}


def test_the_ramp_brings_reduced_instances_in_slowly():
    learner = sampler(ramp_share=0.5, full_share=0.0)
    early = [spec == learner.full for spec in drawn(learner, range(10, 20))]
    late = [spec == learner.full for spec in drawn(learner, range(60, 100))]
    assert sum(early) / len(early) > 0.75 and sum(late) / len(late) < 0.25


def test_shrinking_opens_the_choices_from_the_largest_down():
    learner = sampler(shrink_share=0.4, full_share=0.0)
    assert {spec.top_k[0] for spec in drawn(learner, range(10, 29))} == {3}
    assert {spec.top_k[0] for spec in drawn(learner, range(30, 49))} == {2, 3}
    assert {spec.top_k[0] for spec in drawn(learner, range(50, 80))} == {1, 2, 3}


def test_one_axis_at_a_time_or_the_least_of_all_of_them():
    full = sampler().full
    sizes = {
        (len(spec.layers), len(spec.experts[0]), spec.top_k[0])
        for spec in drawn(sampler(axes="one", smallest_share=0.5, full_share=0.0), range(10, 60))
    }
    whole = (len(full.layers), len(full.experts[0]), full.top_k[0])
    assert sizes == {(4, *whole[1:]), (whole[0], 3, whole[2]), (*whole[:2], 1), (*whole[:2], 2), (4, 3, 1)}
    least = sampler(smallest_share=1.0, full_share=0.0)
    assert set(drawn(least, range(10, 20))) == {least.smallest}


def test_the_smallest_is_trained_alone_before_the_full_model_and_the_others():
    learner = sampler(grow_share=0.3, warmup_share=0.2, full_share=0.0)
    assert set(drawn(learner, range(30))) == {learner.smallest}
    assert not any(learner.draw(step, 8).twins for step in range(30))
    assert all(learner.draw(step, 8).specs is None for step in range(30, 50))
    assert len(set(drawn(learner, range(50, 60)))) > 4


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_twins_are_reduced_rows_in_their_share(share):
    learner = sampler(distil_share=share)
    reduced = twins = 0
    for step in range(10, 100):
        draw = learner.draw(step, 8)
        rows = {row for row, spec in enumerate(draw.specs) if spec != learner.full}
        assert set(draw.twins) <= rows and list(draw.twins) == sorted(draw.twins)
        reduced, twins = reduced + len(rows), twins + len(draw.twins)
    assert twins / reduced == pytest.approx(share, abs=0.08)


def test_ranked_subsets_need_steps_in_which_to_rank():
    with pytest.raises(ConfigError, match="warmup_share above 0"):
        sampler(subsets="ranked", warmup_share=0.0)
    with pytest.raises(ConfigError, match="is no step"):
        sampler(steps=3, subsets="ranked", warmup_share=0.1)
    with pytest.raises(ConfigError, match="grow_share: 0"):
        sampler(subsets="ranked", grow_share=0.1)


def test_the_full_model_is_drawn_with_its_share():
    learner = sampler(warmup_share=0.0, full_share=0.7)
    specs = [spec for step in range(50) for spec in learner.draw(step, 40).specs]
    # of the other three tenths one in twelve has the most of every axis too
    assert sum(spec == learner.full for spec in specs) / len(specs) == pytest.approx(0.7 + 0.3 / 12, abs=0.03)
