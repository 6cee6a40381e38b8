"""MLflow tracking: one parent run for an execution, one child run for each stage that was executed."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accordion.config.runtime import RuntimeConfig
from accordion.errors import ServiceError
from accordion.home import home

FLUSH_SECONDS = 2.0
BATCH_METRICS, BATCH_PARAMS, PARAM_CHARACTERS = 1000, 100, 500


def tracking_uri(runtime: RuntimeConfig) -> str:
    """The MLflow server to use: the configured one, or the local one that `make up` starts."""
    if runtime.services.mlflow_uri:
        return runtime.services.mlflow_uri
    from accordion.serve.services import mlflow_url

    return mlflow_url()


def client(uri: str) -> Any:
    """An MLflow client after the server answered.

    Raises:
        ServiceError: nothing answers at `uri`; the text names the remedy.
    """
    if uri.startswith("http"):
        try:
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5):
                pass
        except (urllib.error.URLError, TimeoutError) as error:
            raise ServiceError(
                f"MLflow does not answer at {uri} ({error}); start the services with `make up`"
            ) from None
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def source_tags(name: str, commit: str) -> dict[str, str]:
    """What MLflow's UI shows as the source of a run."""
    return {"mlflow.source.type": "LOCAL", "mlflow.source.name": name, "mlflow.source.git.commit": commit}


def start_parent(uri: str, profile: str, run_id: str, tags: Mapping[str, str]) -> str:
    """Open the parent run of an execution; parents that a killed execution left open are closed as KILLED."""
    mlflow = client(uri)
    identity = experiment(mlflow, uri, profile)
    for left in mlflow.search_runs([identity], "attributes.status = 'RUNNING'", max_results=50):
        mlflow.set_terminated(left.info.run_id, "KILLED")
    note = f"Profile `{profile}`, run `{run_id}`. Each stage that was executed is a child run; cached ones have none."
    run = mlflow.create_run(identity, run_name=f"{profile} {run_id}", tags={"mlflow.note.content": note, **tags})
    return run.info.run_id


def experiment(mlflow: Any, uri: str, profile: str) -> str:
    """Id of the experiment that holds the runs of a profile; made when it is not there."""
    name = f"accordion-{profile}"
    if (found := mlflow.get_experiment_by_name(name)) is not None:
        return str(found.experiment_id)
    location = None if uri.startswith("http") else (home() / "mlflow" / "artifacts").as_uri()
    note = f"Runs of the whole pipeline with profile {profile}."
    return str(mlflow.create_experiment(name, artifact_location=location, tags={"mlflow.note.content": note}))


class StageTracker:
    """The child run of one stage."""

    def __init__(self, uri: str, parent: str, stage: str, description: str, tags: Mapping[str, str]) -> None:
        self.client = client(uri)
        self.parent = parent
        experiment = self.client.get_run(parent).info.experiment_id
        tags = {"mlflow.parentRunId": parent, "mlflow.note.content": description, "accordion.stage": stage, **tags}
        self.run_id = self.client.create_run(experiment, run_name=stage, tags=tags).info.run_id
        self._waiting: list[Any] = []
        self._flushed = time.monotonic()

    def params(self, config: Mapping[str, Any]) -> None:
        """Log the settings as parameters, nested keys joined by dots."""
        from mlflow.entities import Param

        rows = [Param(key, value[:PARAM_CHARACTERS]) for key, value in flatten_config(config)]
        for start in range(0, len(rows), BATCH_PARAMS):
            self.client.log_batch(self.run_id, params=rows[start : start + BATCH_PARAMS])

    def record(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of a step; they are sent every two seconds, so that curves are live but cheap."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(name, float(value), now, step) for name, value in figures.items()]
        if time.monotonic() - self._flushed > FLUSH_SECONDS or len(self._waiting) >= BATCH_METRICS:
            self.flush()

    def flush(self) -> None:
        """Send what waits."""
        for start in range(0, len(self._waiting), BATCH_METRICS):
            self.client.log_batch(self.run_id, metrics=self._waiting[start : start + BATCH_METRICS])
        self._waiting.clear()
        self._flushed = time.monotonic()

    def finish(self, metrics: Mapping[str, Any], tags: Mapping[str, str], files: Sequence[Path]) -> None:
        """Log the final metrics, tags and files and close the run."""
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        self._waiting += [Metric(name, value, now, 0) for name, value in flatten_metrics(metrics)]
        self.flush()
        self.client.log_batch(self.run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])
        for file in files:
            self.client.log_artifact(self.run_id, str(file))
        self.client.set_terminated(self.run_id, "FINISHED")


@contextmanager
def tracked(tracker: StageTracker) -> Iterator[StageTracker]:
    """Close the stage's run and its parent as FAILED, with the error as a tag, when the block raises."""
    try:
        yield tracker
    except BaseException as error:
        tracker.flush()
        tracker.client.set_tag(tracker.run_id, "error", f"{type(error).__name__}: {error}"[:5000])
        tracker.client.set_terminated(tracker.run_id, "FAILED")
        tracker.client.set_terminated(tracker.parent, "FAILED")
        raise


def flatten_config(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (dotted key, JSON text)."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flatten_config(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def flatten_metrics(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Nested figures as (path with slashes, number); of an interval or rate only its centre; lists stay in the file."""
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            centre = next((value[name] for name in ("mean", "rate") if name in value), None)
            if isinstance(centre, int | float):
                yield f"{prefix}{key}", float(centre)
            else:
                yield from flatten_metrics(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", float(value)
