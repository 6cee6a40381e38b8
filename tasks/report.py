"""Report: summary.json and report.html of the run, from the artifacts' own metrics. Never cached."""

import json
import time
from pathlib import Path
from typing import Any

from flytekit import Deck, Resources, task

from accordion.home import home
from accordion.observe import say
from accordion.store import Artifact
from tasks._run import Run, point_latest, resolve, store, versions
from tasks._tracking import client, flatten_metrics


@task(requests=Resources(cpu="1", mem="2Gi"), enable_deck=True, deck_fields=())
def report(run: Run, artifacts: list[Artifact]) -> str:
    """Gather, draw, and close the run; returns the folder of the report."""
    from accordion.report.page import render
    from accordion.report.run import RunFigures
    from accordion.report.summary import StageTiming

    clock = time.monotonic()
    metrics: dict[str, Any] = {}
    folders: dict[str, Path] = {}
    timings: dict[str, StageTiming] = {}
    for artifact in artifacts:
        folder, manifest = resolve(artifact, run.settings), store().manifest(artifact)
        stage = manifest.stage
        metrics[stage], folders[stage] = json.loads((folder / "metrics.json").read_text()), folder
        metrics[stage] |= {"speed": manifest.created.get("speed", {})}
        timings[stage] = _timing(run.history / "stages" / f"{stage}.json", StageTiming)
    mlflow = client(run.tracking_uri)
    if "register" in metrics:
        metrics["register"] |= _aliases_now(mlflow, metrics["register"])
    timings["report"] = StageTiming(seconds=time.monotonic() - clock, cached=False)
    about = {"profile": run.profile, "run": run.id, "commit": run.commit, "flyte execution": run.execution}
    figures = RunFigures(
        metrics=metrics,
        timings=timings,
        folders=folders,
        links=_links(run, mlflow, "rollout" in metrics),
        about=about,
    )
    run.history.mkdir(parents=True, exist_ok=True)
    render(figures, out=run.history)
    versions(run.settings).mark(artifacts, f"run {run.id}", profile=run.profile)
    point_latest(run)
    _close(mlflow, run, metrics, timings)
    Deck("report", (run.history / "report.html").read_text())
    executed_stages = [stage for stage, timing in timings.items() if not timing.cached]
    say(f"executed: {', '.join(executed_stages)}; from the cache: {len(timings) - len(executed_stages)} stages")
    say(f"report: {home() / 'latest' / 'report.html'}")
    return str(run.history)


def _timing(executed: Path, timing: type[Any]) -> Any:
    """What this execution spent on a stage, from the record that a stage leaves when it was no cache hit."""
    if not executed.is_file():
        return timing(seconds=0.0, cached=True)
    record = json.loads(executed.read_text())
    return timing(seconds=record["whole_seconds"], cached=False, peak_rss_bytes=record["peak_rss_bytes"])


def _aliases_now(mlflow: Any, registered: dict[str, Any]) -> dict[str, Any]:
    """The version's aliases after the rollout (the registration was made before it)."""
    version = mlflow.get_model_version(registered["model"], str(registered["version"]))
    return {"aliases": sorted(version.aliases)}


def _links(run: Run, mlflow: Any, served: bool) -> dict[str, str]:
    from accordion.serve.services import mlflow_page, triton_addresses

    links = {"store": str(store().root)}
    if run.tracking_uri.startswith("http"):
        experiment = mlflow.get_run(run.parent).info.experiment_id
        links["mlflow"] = mlflow_page(run.tracking_uri, f"experiments/{experiment}/runs/{run.parent}")
    if served:
        links["endpoint"] = triton_addresses().http
        links["example"] = 'accordion query "how do I freeze the first row"'
    return links


def _close(mlflow: Any, run: Run, metrics: dict[str, Any], timings: dict[str, Any]) -> None:
    """Log the headline figures, the times and the report to the parent run and end it."""
    for stage in ("pretrain", "rl", "extract", "evaluate", "rollout"):
        for name, value in flatten_metrics(metrics.get(stage, {})):
            mlflow.log_metric(run.parent, f"{stage}/{name}", value)
    cached = " ".join(stage for stage, timing in timings.items() if timing.cached)
    mlflow.set_tag(run.parent, "stages_from_cache", cached)
    for name in ("summary.json", "report.html"):
        mlflow.log_artifact(run.parent, str(run.history / name))
    mlflow.set_terminated(run.parent, "FINISHED")
