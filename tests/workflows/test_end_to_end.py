"""The whole DAG, run as a user runs it: real data, MLflow, DVC, Great Expectations and Triton, tiny models."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from accordion.home import REPOSITORY
from accordion.model import load_model
from accordion.serve import services
from accordion.store import Artifact, Manifest, Store

pytestmark = [pytest.mark.services, pytest.mark.triton, pytest.mark.slow]
PROFILE = Path(__file__).with_name("tiny.yaml")
WHOLE = ("workflows/end_to_end.py", "end_to_end")
DRAWN = "search/relative_loss"
MODALITIES = {"text", "image", "video", "audio"}


class Pipeline:
    """Runs the workflow in a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def run(self, *overrides: str, fails: bool = False, workflow: Sequence[str] = WHOLE) -> str:
        pyflyte = Path(sys.executable).with_name("pyflyte")
        workflow = ["run", *workflow, "--profile", str(PROFILE)]
        command = [pyflyte, "-c", "flyte.config", *workflow, "--overrides", json.dumps(overrides)]
        done = subprocess.run(command, cwd=REPOSITORY, env=os.environ.copy(), capture_output=True, text=True)
        assert (done.returncode != 0) == fails, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout + done.stderr

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.home / "latest" / "summary.json").read_text())

    def artifact(self, stage: str) -> str:
        """What the newest run that executed `stage` made."""
        records = sorted(self.home.glob(f"history/*/stages/{stage}.json"))
        return str(json.loads(records[-1].read_text())["artifact"])

    @property
    def executed(self) -> set[str]:
        return {name for name, stage in self.summary["stages"].items() if not stage["cached"]}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCORDION_HOME", str(home))
        before = _status()
        services.up()
        try:
            pipeline = Pipeline(home)
            pipeline.run()
            yield pipeline
        finally:
            services.down()
        assert _status() == before, "a run changed the checkout"


def _status() -> str:
    command = ["git", "-C", str(REPOSITORY), "status", "--porcelain"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_summary_holds_every_figure_of_the_run(pipeline: Pipeline) -> None:
    summary = pipeline.summary
    assert len(summary["stages"]) >= 18
    assert all(stage["seconds"] > 0 for stage in summary["stages"].values())
    for losses in (summary["pretrain"]["val_loss_full"], summary["pretrain"]["val_loss_unigram"]):
        assert set(losses) == MODALITIES and all(0 < loss < 20 for loss in losses.values())
    for member in summary["pretrain"]["submodels"]:
        assert member["active_parameters"] < member["parameters"] and set(member["val_loss"]) == MODALITIES
    assert 0 <= summary["posttrain"]["pass_before"] <= 1 and 0 <= summary["posttrain"]["pass_after"] <= 1
    assert summary["extract"]["max_abs_logit_diff"] <= 1e-5
    assert set(summary["retrieval"]) == {"libreoffice-help", "kjv-naves", "python-doc"}
    for systems in summary["retrieval"].values():
        for interval in systems["ndcg10"].values():
            assert 0 <= interval["low"] <= interval["mean"] <= interval["high"] <= 1 and interval["count"] > 100
    assert summary["gate"]["passed"]
    assert summary["registry"]["aliases"] == ["champion"] and int(summary["registry"]["version"]) == 1
    rollout = summary["rollout"]
    assert rollout["golden_cosine"] >= 0.9999 and rollout["errors"] == 0 and rollout["requests"] > 15
    assert int(rollout["served_version"]) == 1


def test_the_served_encoder_answers(pipeline: Pipeline) -> None:
    accordion = Path(sys.executable).with_name("accordion")
    done = subprocess.run([accordion, "query", "insert a chart"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()) >= 5


def test_report_is_one_self_contained_page(pipeline: Pipeline) -> None:
    page = (pipeline.home / "latest" / "report.html").read_text()
    assert "<svg" in page and 'src="http' not in page and "<link" not in page and 'src="//' not in page
    assert re.search(rf'href="{services.mlflow_url()}/#/experiments/\d+/runs/[0-9a-f]{{32}}\?workflowType', page)


def test_mlflow_holds_every_stage_and_the_lineage_of_the_version(pipeline: Pipeline) -> None:
    client = MlflowClient(services.mlflow_url())
    version = client.get_model_version_by_alias("accordion-encoder", "champion")
    assert "checkpoint:" in version.tags["parents"] and version.tags["gate.passed"] == "true"
    assert version.tags["data.corpus"] and version.tags["dvc.encoder"] and version.tags["git_commit"]
    runs = [run for e in client.search_experiments() for run in client.search_runs([e.experiment_id])]
    assert {run.info.status for run in runs} == {"FINISHED"}
    losses = [
        history for run in runs for history in [client.get_metric_history(run.info.run_id, "loss/text")] if history
    ]
    assert any(len(history) >= 6 and all(math.isfinite(point.value) for point in history) for history in losses)


def test_dvc_has_every_artifact(pipeline: Pipeline) -> None:
    folders = {path.parent.name for path in (pipeline.home / "store").glob("*/*/manifest.json")}
    pointers = {path.stem for path in (pipeline.home / "store").glob("*/*.dvc")}
    assert len(folders) >= 17 and folders <= pointers


def test_unchanged_run_is_all_cache_hits_and_a_threshold_re_runs_only_what_follows_it(pipeline: Pipeline) -> None:
    pipeline.run()
    assert pipeline.executed == {"report"}
    pipeline.run("gate.checks.enough_queries.minimum_count=101")
    assert pipeline.executed == {"gate", "register", "rollout", "report"}


def test_failed_gate_reaches_no_server_and_says_so(pipeline: Pipeline) -> None:
    pipeline.run("gate.checks.enough_queries.threshold=0.99")
    summary = pipeline.summary
    assert not summary["gate"]["passed"] and summary["rollout"] is None
    assert services.status()["triton"]["pins"]["stable"] == 1
    assert MlflowClient(services.mlflow_url()).get_model_version_by_alias("accordion-encoder", "champion").version


def test_a_family_of_an_earlier_run_is_searched_and_registered_on_its_own(pipeline: Pipeline) -> None:
    given = ("--policy", pipeline.artifact("rl"), "--shards", pipeline.artifact("pack"))
    pipeline.run(workflow=("workflows/parts.py", "family_only", *given))
    assert set(pipeline.summary["stages"]) == {"extract", "register_family", "search", "report"}
    # the named members were cut by the whole run, from the same policy
    assert pipeline.executed == {"search", "register_family", "report"}
    found = Store(pipeline.home / "store").open(Artifact.parse(pipeline.artifact("search")))
    document = json.loads((found / "search.json").read_text())
    assert 1 <= len(document["members"]) <= 2 and (found / "pareto.png").stat().st_size > 1000
    for member in document["members"]:
        folder = found / "members" / member["name"]
        Manifest.read(folder).verify(folder)
        assert member["costs"]["parameters"] == sum(weight.numel() for weight in load_model(folder).parameters())
    client = MlflowClient(services.mlflow_url())
    for member in document["members"]:
        (version,) = client.search_model_versions(f"name = 'accordion-lm-{member['name']}'")
        assert version.tags["parent_version"] == "accordion-lm-full/1"
    assert len(client.search_model_versions("name = 'accordion-lm-small'")) == 1  # registered by the whole run
    runs = [run for e in client.search_experiments() for run in client.search_runs([e.experiment_id])]
    (search,) = (run for run in runs if run.info.run_name == "search")
    assert search.info.status == "FINISHED" and len(client.get_metric_history(search.info.run_id, DRAWN)) >= 2
    deck = (pipeline.home / "latest" / "decks" / "search.html").read_text()
    assert "polyline" in deck and DRAWN in deck
    wrong = pipeline.run(workflow=("workflows/parts.py", "family_only", *given[:1], given[3], *given[2:]), fails=True)
    assert "is a shards; wanted a policy" in " ".join(wrong.split())  # the terminal breaks lines


def test_the_family_experiment_runs_on_what_the_whole_run_packed(pipeline: Pipeline) -> None:
    pipeline.run(workflow=("workflows/elastic_study.py", "elastic_study"))
    assert pipeline.executed == {"study", "report"}
    found = Store(pipeline.home / "store").open(Artifact.parse(pipeline.artifact("study")))
    document = json.loads((found / "elastic_study.json").read_text())
    assert len(document["units"]) == 1 + 2 * 4  # timing; elastic, fixed, from scratch and recovered, for two seeds
    assert set(document["summary"]["tax"]) == {*MODALITIES, "mean"}
    figures = document["summary"]["members"]["small"]["recovery"]["0.5"]["gap"]["text"]
    assert len(figures["values"]) == 2 and figures["low"] <= figures["mean"] <= figures["high"]
    assert {path.name for path in found.glob("*.png")} == {"gaps.png", "losses.png"}
    assert (pipeline.home / "latest" / "decks" / "study.html").stat().st_size > 1000


def test_failed_expectation_stops_the_run_and_shows_the_rows(pipeline: Pipeline) -> None:
    output = pipeline.run("validate_data.text_characters=[1, 50]", fails=True)
    assert "ValidationFailed" in output and "characters" in output and "failed_rows.jsonl" in output
    kept = sorted((pipeline.home / "failures").glob("validate_data-*/failed_rows.jsonl"))
    assert kept and json.loads(kept[-1].read_text().splitlines()[0])


def test_a_second_run_at_once_is_told_who_holds_the_home(pipeline: Pipeline) -> None:
    holder = "from accordion.home import hold_run_lock; hold_run_lock(); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        output = pipeline.run(fails=True)
        process.communicate("\n")
    assert f"in use by process {process.pid}" in output and "ACCORDION_HOME" in output
