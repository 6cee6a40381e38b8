"""The gate: arithmetic of checks, and every way to fail closed."""

import json
import math

import pytest

from accordion.config.profile import load_profile, profile_names
from accordion.config.release import CheckConfig, GateConfig
from accordion.errors import ConfigError, DataError
from accordion.evaluate.gates import gate, judge

FIGURES = {
    "pretrain": {"val_loss_full": {"text": 3.0}, "val_loss_unigram": {"text": 5.0, "image": 0}},
    "rl": {"pass_before": {"rate": 0.25, "count": 400}, "pass_after": {"rate": 0.5, "count": 300}},
    "evaluate": {"domains": {"a-b": {"p": 0.001, "bad": math.nan, "none": None, "flag": True, "word": "0.5"}}},
}


def verdict(**values):
    result = judge(GateConfig(checks={"check": CheckConfig(**values)}), FIGURES)
    (check,) = result["checks"]
    assert result["passed"] == check["passed"]
    json.dumps(result, allow_nan=False)
    return check


@pytest.mark.parametrize(
    "direction, threshold, passed",
    [("at_least", 3, True), ("at_least", 3.1, False), ("at_most", 3, True), ("at_most", 2.9, False),
     ("above", 3, False), ("above", 2.9, True), ("below", 3, False), ("below", 3.1, True)],
)  # fmt: skip
def test_directions(direction, threshold, passed):
    check = verdict(figure="pretrain.val_loss_full.text", direction=direction, threshold=threshold)
    assert check["passed"] is passed
    assert check["value"] == 3.0


def test_ratio_and_difference():
    ratio = verdict(
        figure="pretrain.val_loss_full.text", over="pretrain.val_loss_unigram.text", direction="at_most", threshold=0.75
    )
    assert ratio["passed"] and ratio["value"] == pytest.approx(0.6)
    gain = verdict(figure="rl.pass_after.rate", minus="rl.pass_before.rate", direction="above", threshold=0.0)
    assert gain["passed"] and gain["value"] == 0.25 and gain["count"] == 300  # the smaller of both counts


@pytest.mark.parametrize(
    "values, words",
    [
        ({"figure": "extract.max_abs_logit_diff"}, "missing"),
        ({"figure": "evaluate.domains.a-b.p.deeper"}, "missing"),
        ({"figure": "evaluate.domains.a-b.none"}, "missing"),
        ({"figure": "evaluate.domains.a-b.bad"}, "not a finite number"),
        ({"figure": "evaluate.domains.a-b.flag"}, "not a number"),
        ({"figure": "evaluate.domains.a-b.word"}, "not a number"),
        ({"figure": "rl.pass_after"}, "not a number"),
        ({"figure": "rl.pass_after.rate", "minus": "rl.gone.rate"}, "rl.gone.rate is missing"),
        ({"figure": "pretrain.val_loss_full.text", "over": "pretrain.val_loss_unigram.image"}, "divided"),
        ({"figure": "rl.pass_after.rate", "minimum_count": 301}, "300 samples"),
        ({"figure": "evaluate.domains.a-b.p", "minimum_count": 1}, "no sample count"),
    ],
)
@pytest.mark.parametrize("direction, threshold", [("at_least", -1e9), ("at_most", 1e9)])
def test_what_cannot_be_judged_fails(values, words, direction, threshold):
    check = verdict(direction=direction, threshold=threshold, **values)
    assert check["passed"] is False
    assert words in check["message"]


def test_one_failing_check_fails_the_gate():
    good = CheckConfig(figure="rl.pass_after.rate", direction="at_least", threshold=0.1)
    bad = CheckConfig(figure="rl.pass_after.rate", direction="at_least", threshold=0.9)
    result = judge(GateConfig(checks={"good": good, "bad": bad}), FIGURES)
    assert [check["passed"] for check in result["checks"]] == [True, False]
    assert result["passed"] is False


def test_an_empty_or_contradictory_gate_is_refused():
    with pytest.raises(ConfigError, match="empty"):
        judge(GateConfig(checks={}), FIGURES)
    check = {"figure": "a.b", "minus": "c.d", "over": "e.f", "direction": "above", "threshold": 0}
    with pytest.raises(ConfigError, match="not both"):
        GateConfig.parse({"checks": {"x": check}})


def test_the_stage_reads_metrics_and_writes_the_verdict(tmp_path):
    folders = {}
    for name in ("pretrain", "extract", "rl", "distil", "evaluate"):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        (folders[name] / "metrics.json").write_text(json.dumps(FIGURES.get(name, {})))
    out = tmp_path / "out"
    out.mkdir()
    check = CheckConfig(figure="evaluate.domains.a-b.bad", direction="at_least", threshold=0)
    result = gate(GateConfig(checks={"nan": check}), out=out, **folders)
    assert result["passed"] is False
    assert json.loads((out / "verdict.json").read_text()) == result
    (folders["rl"] / "metrics.json").unlink()
    with pytest.raises(DataError, match=r"metrics\.json"):
        gate(GateConfig(checks={"nan": check}), out=out, **folders)


@pytest.mark.parametrize("profile", profile_names())
def test_every_profile_gates_each_promise(profile):
    figures = {
        figure
        for check in load_profile(profile).gate.checks.values()
        for figure in (check.figure, check.minus, check.over)
    }
    assert {"extract.max_abs_logit_diff", "rl.pass_after.rate", "pretrain.val_loss_full.text"} <= figures
    assert any(figure and figure.startswith("evaluate.domains.libreoffice-help.gain") for figure in figures)
