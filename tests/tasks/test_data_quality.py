"""Validation as Flyte runs it: drift against the version before, the cache, what is refused and where it is kept."""

import json
from pathlib import Path

import pandas as pd
import pytest
from flytekit import workflow

from accordion.config.data import DriftConfig, ValidateConfig
from accordion.config.runtime import RuntimeConfig, ServicesConfig
from accordion.errors import ValidationFailed
from accordion.store import Artifact
from tasks._run import Run, store, use_home_cache, versions
from tasks._tracking import client, start_parent
from tasks.previous import previous
from tasks.validate_data import validate_data
from tests.small_corpus import CONFIG, tables, write_corpus


@workflow
def check(run: Run, config: str, corpus: Artifact) -> Artifact:
    """The validation of the pipeline, alone."""
    before = previous(run=run, config=config, kind="validation", data=corpus)
    return validate_data(run=run, config=config, corpus=corpus, previous=before)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("ACCORDION_HOME", str(tmp_path / "runs"))
    use_home_cache()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    runtime = RuntimeConfig(threads=1, services=ServicesConfig(mlflow_uri=uri))
    return Run("r1", "toy", runtime.model_dump_json(), uri, start_parent(uri, "toy", "r1", {}), "abc", "local")


def corpus(run: Run, content: dict[str, pd.DataFrame]) -> Artifact:
    with store().staging("ingest") as folder:
        write_corpus(folder / "corpus", content)
        for path in (folder / "corpus").iterdir():
            path.rename(folder / path.name)
        (folder / "corpus").rmdir()
        artifact = store().publish(folder, kind="corpus", stage="ingest", config={}, parents={}, created={})
    versions(run.settings).add(artifact, "ingest", profile=run.profile)
    return artifact


def go(run: Run, data: Artifact, config: ValidateConfig = CONFIG) -> Artifact:
    return check(run=run, config=config.model_dump_json(), corpus=data)


def executed(run: Run) -> bool:
    """Whether the validation ran since the last call, or came from the cache."""
    record = run.history / "stages" / "validate_data.json"
    ran = record.is_file()
    record.unlink(missing_ok=True)
    return ran


def larger() -> dict[str, pd.DataFrame]:
    """Twelve times the texts."""
    content = tables()
    content["text"] = pd.concat(
        [
            content["text"].assign(
                id=lambda table, n=n: f"more{n}" + table["id"], text=lambda table, n=n: table["text"] + f" again {n}"
            )
            for n in range(12)
        ]
    )
    return content


def test_drift_stops_a_run_keeps_the_evidence_and_can_be_accepted(run: Run) -> None:
    first, second = corpus(run, tables()), corpus(run, larger())
    valid = go(run, first)
    assert executed(run) and json.loads((store().open(valid) / "metrics.json").read_text())["drift"]["previous"] is None
    assert go(run, first) == valid and not executed(run)

    with pytest.raises(
        ValidationFailed, match=r"drift from .*text rows, train, ratio.*observed 12.0 \(6 -> 72"
    ) as caught:
        go(run, second)
    assert not executed(run)
    (refused,) = [each for each in store().list() if each.kind == "validation-refused"]
    assert f"validation-refused:{refused.digest[:16]}" in str(caught.value)
    folder = store().open(refused)
    rows = [json.loads(line) for line in (folder / "failed_rows.jsonl").read_text().splitlines()]
    assert any(row["column"] == "text rows, train, ratio" for row in rows)
    assert str(refused) in {record.artifact for record in versions(run.settings).history()}
    assert store().manifest(refused).parents == {"corpus": str(second), "previous": str(valid)}
    assert "expectations failed" in str(caught.value) and (run.history / "decks" / "validate_data.html").is_file()
    mlflow = client(run.tracking_uri)
    (child,) = mlflow.search_runs([mlflow.get_run(run.parent).info.experiment_id], f"tags.refused = '{refused}'")
    assert "failed_rows.jsonl" in {file.path for file in mlflow.list_artifacts(child.info.run_id)}

    accepting = CONFIG.model_copy(update={"drift": DriftConfig(accept=(second.digest[:8],))})
    later = go(run, second, accepting)
    metrics = json.loads((store().open(later) / "metrics.json").read_text())
    assert metrics["drift"]["previous"] == str(first) and metrics["warned"] >= 1 and metrics["failed"] == 0
    executed(run)
    assert go(run, second, accepting) == later and not executed(run)


def test_refused_data_is_no_version_to_compare_with(run: Run) -> None:
    broken, whole = tables(), tables()
    broken["text"].loc[0, "text"] = " "
    with pytest.raises(ValidationFailed, match=r"match_regex\(text"):
        go(run, corpus(run, broken))
    valid = go(run, corpus(run, whole))
    assert "no previous version" in json.loads((store().open(valid) / "metrics.json").read_text())["notes"][-1]
