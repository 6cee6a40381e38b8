"""summary.json: the keys that checks read, and figures that are missing or not numbers."""

import json
from pathlib import Path

import pytest

from accordion.errors import DataError
from accordion.report.run import RunFigures
from accordion.report.summary import summarise


def test_has_the_keys_that_are_promised(run: RunFigures, tmp_path: Path) -> None:
    summarise(run.metrics, run.timings).write(tmp_path / "summary.json")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary) == [
        "stages", "pretrain", "posttrain", "extract", "retrieval", "gate", "registry", "rollout"
    ]  # fmt: skip
    assert summary["stages"]["ingest"]["cached"] is True and summary["stages"]["pretrain"]["seconds"] == 214.9
    assert summary["pretrain"]["val_loss_full"].keys() == {"text", "image", "video", "audio"}
    assert summary["pretrain"]["val_loss_unigram"]["audio"] == 3.902
    small = summary["pretrain"]["submodels"][-1]
    assert {"name", "layers", "experts", "top_k", "val_loss", "parameters", "active_parameters"} <= small.keys()
    assert summary["posttrain"]["pass_before"] == 0.365 and summary["posttrain"]["pass_after"] == 0.6125
    assert summary["posttrain"]["pass_after_interval"] == [0.564, 0.659] and summary["posttrain"]["count"] == 400
    assert summary["extract"]["max_abs_logit_diff"] == 3.1e-7
    for domain in summary["retrieval"].values():
        assert {"encoder", "bm25", "fusion"} <= domain["ndcg10"].keys()
        assert domain["ndcg10"]["encoder"].keys() == {"mean", "low", "high", "count"}
    assert summary["gate"]["passed"] is True and summary["gate"]["checks"][0]["name"] == "text under unigram"
    assert summary["registry"].keys() == {"model", "version", "aliases"}
    assert {"golden_cosine", "served_version", "requests", "errors"} <= summary["rollout"].keys()


def test_a_stage_that_did_not_run_is_null(run: RunFigures) -> None:
    without = {stage: figures for stage, figures in run.metrics.items() if stage not in ("register", "rollout")}
    summary = summarise(without, run.timings)
    assert summary.rollout is None and summary.registry is None and summary.gate is not None


def test_a_stage_without_its_figure_is_an_error_that_names_it(run: RunFigures) -> None:
    with pytest.raises(DataError, match=r"metrics of stage rl: 'pass_after' is missing; run stage rl again"):
        summarise({**run.metrics, "rl": {"pass_before": run.metrics["rl"]["pass_before"]}}, run.timings)
    with pytest.raises(DataError, match=r"stage rollout: served_version"):
        rollout = {k: v for k, v in run.metrics["rollout"].items() if k != "served_version"}
        summarise({**run.metrics, "rollout": rollout}, run.timings)


def test_nan_is_no_figure(run: RunFigures) -> None:
    with pytest.raises(DataError, match=r"stage extract: max_abs_logit_diff: .*finite"):
        summarise({**run.metrics, "extract": {"max_abs_logit_diff": float("nan"), "members": []}}, run.timings)


def test_a_check_without_a_value_is_kept_as_failed(run: RunFigures) -> None:
    check = {"name": "n", "figure": "f", "direction": "at_least", "threshold": 1, "value": None, "passed": False}
    gate = {"passed": False, "checks": [check | {"message": "f is missing"}]}
    summary = summarise({"gate": gate}, {})
    assert summary.gate is not None and summary.gate.checks[0].value is None
