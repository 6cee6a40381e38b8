"""What changes in the course of a run."""

import pytest

from accordion.config.pretrain import PretrainConfig
from accordion.train.schedule import batch_sizes, conditions, ramped, warmup_stable_decay


def test_the_rate_rises_stays_and_falls():
    rate = [warmup_stable_decay(step, steps=100, warmup=10, decay_share=0.3) for step in range(100)]
    assert rate[0] == pytest.approx(1 / 11) and rate[10:71] == [1.0] * 61
    assert rate[71:] == sorted(rate[71:], reverse=True) and 0.1 < rate[-1] < 0.14
    assert warmup_stable_decay(100, steps=100, warmup=10, decay_share=0.3, to=0.4) == pytest.approx(0.4)


def test_stage_two_goes_on_from_where_stage_one_ends_to_a_tenth_of_it():
    config = PretrainConfig.parse({
        "steps": 200, "batch": 16, "batch_ramp": 0.3, "mtp_weight": 0.3, "balance_step": 1e-3,
        "optimizer": {"learning_rate": 1.0, "warmup_steps": 10, "decay_share": 0.4, "decay_to": 0.3},
        "long_context": {"share": 0.25, "mtp_weight": 0.1, "balance_step": 1e-4},
    })  # fmt: skip
    found = [conditions(config, step) for step in range(200)]
    rates = [each.rate for each in found]
    assert rates[10:90] == [1.0] * 80 and not any(each.long for each in found[:150])
    assert rates[90:] == sorted(rates[90:], reverse=True) and rates[149] == pytest.approx(0.3, abs=0.02)
    assert all(each.long for each in found[150:]) and rates[150] == pytest.approx(0.3, abs=0.01)
    assert rates[199] == pytest.approx(0.03)
    assert {each.mtp_weight for each in found[:150]} == {0.3} and {each.mtp_weight for each in found[150:]} == {0.1}
    assert {each.balance_step for each in found[150:]} == {1e-4}
    batches = [each.batch for each in found]
    assert batches == sorted(batches) and set(batches) == {4, 8, 12, 16} and batches.index(16) == 60


def test_stage_two_goes_on_at_the_stable_rate_where_stage_one_does_not_fall():
    config = PretrainConfig.parse({
        "steps": 100, "optimizer": {"learning_rate": 1.0, "warmup_steps": 10, "decay_share": 0.0},
        "long_context": {"share": 0.25},
    })  # fmt: skip
    rates = [conditions(config, step).rate for step in range(100)]
    assert rates[10:75] == [1.0] * 65 and rates[75] == pytest.approx(1.0, abs=0.01)
    assert rates[75:] == sorted(rates[75:], reverse=True) and rates[99] == pytest.approx(0.1)
    assert warmup_stable_decay(10, steps=10, warmup=1, decay_share=0.01) == 1.0  # a share of less than half a step


def test_a_ramp_never_reads_nothing_and_none_is_the_whole_batch():
    assert [ramped(step, steps=3, batch=2) for step in range(5)] == [1, 1, 2, 2, 2]
    assert ramped(0, steps=0, batch=8) == 8 and ramped(0, steps=10, batch=1) == 1


def test_the_sizes_of_a_run_are_those_that_its_steps_read():
    for ramp, share, wanted in (
        (0.0, 0.0, {16}),
        (0.3, 0.25, {4, 8, 12, 16}),
        (0.1, 0.0, {4, 16}),
        (1.0, 0.5, {4, 8, 16}),
    ):
        config = PretrainConfig.parse({"steps": 10, "batch": 16, "batch_ramp": ramp, "long_context": {"share": share}})
        read = {conditions(config, step).batch for step in range(10)}
        assert batch_sizes(config) == sorted(read | {16}) == sorted(wanted)


def test_a_step_beyond_the_last_is_like_the_last():
    config = PretrainConfig.parse({"steps": 4, "optimizer": {"warmup_steps": 1}})
    assert not conditions(config, 4).long and conditions(config, 4).rate <= conditions(config, 3).rate
