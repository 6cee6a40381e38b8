"""Problems and verifiers: disjoint splits, exact rewards, failures that never pay."""

from itertools import islice

import pytest

from accordion.config.posttrain import TaskConfig
from accordion.errors import ConfigError
from accordion.rl import verifiers
from accordion.rl.examine import held_out
from accordion.rl.tasks import HELD_OUT_SHARE, distinct, split_of, stream
from accordion.rl.verifiers import register, verifier_named, verify
from tests.unit.rl.tiny import TASK


def test_held_out_questions_never_come_up_in_training_whatever_the_seed():
    examined = {problem.entry["question"] for problem in held_out([TASK], 400)}
    assert len(examined) == 400
    for seed in (0, 1, 2026):
        trained = {problem.entry["question"] for problem in islice(stream([TASK], "train", seed), 2000)}
        assert not trained & examined
        assert all(split_of(question) == "train" for question in trained)


def test_the_split_takes_its_share():
    share = sum(split_of(f"question {n}") == "held-out" for n in range(4000)) / 4000
    assert share == pytest.approx(HELD_OUT_SHARE, abs=0.03)


def test_problems_are_reproducible_and_differ_by_seed():
    first, again, other = (
        [p.prompt for p in islice(stream([TASK], "train", seed), 50)] for seed in (1, 1, 2)
    )  # fmt: skip
    assert first == again != other


def test_tasks_are_drawn_in_turn():
    spelling = TaskConfig(name="spell_backward", parameters={"min_word_len": 3, "max_word_len": 4})
    names = [problem.task.name for problem in islice(stream([TASK, spelling], "train", 0), 4)]
    assert names == ["chain_sum", "spell_backward"] * 2


def test_too_many_problems_an_unknown_task_and_a_wrong_prompt_are_named():
    small = TaskConfig(parameters={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})
    with pytest.raises(ConfigError, match=r"only .* different held-out questions"):
        distinct([small], "held-out", 400, 0)
    with pytest.raises(ConfigError, match="no_such_task"):
        next(stream([TaskConfig(name="no_such_task")], "train", 0))
    with pytest.raises(ConfigError, match="min_apples"):
        next(stream([TaskConfig(parameters={"min_apples": 1})], "train", 0))
    with pytest.raises(ConfigError, match=r"'nothing'.*expression"):
        next(stream([TaskConfig(prompt="{nothing}")], "train", 0))


@pytest.mark.parametrize("name", ["reasoning-gym", "numeric", "exact"])
def test_right_answers_pay_and_wrong_ones_do_not(name):
    for problem in distinct([TASK.model_copy(update={"verifier": name})], "train", 20, 0):
        assert verify(problem, problem.answer).reward == 1.0
        assert verify(problem, f" {problem.answer} ").reward == 1.0
        for wrong in ("", "x", f"{problem.answer}1", f"{problem.answer} apples", "9999", "\ud800"):
            assert verify(problem, wrong) == verifiers.Verdict(0.0), wrong


def test_a_verifier_that_raises_pays_nothing_and_keeps_its_error(monkeypatch):
    monkeypatch.setattr(verifiers, "_registry", dict(verifiers._registry))

    @register("broken")
    def broken(problem, response):
        raise ZeroDivisionError("inside the verifier")

    (problem,) = distinct([TASK.model_copy(update={"verifier": "broken"})], "train", 1, 0)
    verdict = verify(problem, problem.answer)
    assert verdict.reward == 0.0
    assert verdict.error == "ZeroDivisionError: inside the verifier"
    with pytest.raises(ConfigError, match="registered already"):
        register("broken")(broken)


def test_an_unknown_verifier_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="exact, numeric, reasoning-gym"):
        verifier_named("telepathy")
