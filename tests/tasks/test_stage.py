"""The runner: publishing, tracking, versions, cache, failures, restoring; toy stages, real MLflow store."""

import json
import shutil
from pathlib import Path

import pytest
from flyteidl.core.errors_pb2 import ContainerError, ErrorDocument
from flytekit.bin.entrypoint import _dispatch_execute, setup_execution
from flytekit.core.type_engine import TypeEngine
from toy_flow import COUNT, count, toy
from toy_stages import CountConfig, SumConfig

from accordion.config.pretrain import ParallelConfig, PretrainConfig
from accordion.config.runtime import RuntimeConfig, ServicesConfig
from accordion.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    Interrupted,
    OutOfMemory,
    RankLost,
    ServiceError,
    StorageError,
    TrainingDiverged,
    ValidationFailed,
)
from accordion.store import Artifact
from tasks._run import Run, store, use_home_cache, versions
from tasks._tracking import client, start_parent
from tasks.pretrain import STAGE as PRETRAIN


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def run(tmp_path: Path, tracking: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("ACCORDION_HOME", str(tmp_path / "runs"))
    use_home_cache()
    runtime = RuntimeConfig(threads=1, services=ServicesConfig(mlflow_uri=tracking))
    parent = start_parent(tracking, tmp_path.name, "r1", {})
    return Run("r1", "toy", runtime.model_dump_json(), tracking, parent, "abc", "local")


def go(run: Run, count: CountConfig | None = None, total: SumConfig | None = None) -> Artifact:
    sections = [
        (section or default).model_dump_json() for section, default in ((count, CountConfig()), (total, SumConfig()))
    ]
    return toy(run=run, count_config=sections[0], total_config=sections[1])


def executed(run: Run) -> set[str]:
    """Stages executed since the last call."""
    folder = run.history / "stages"
    names = {path.stem for path in folder.glob("*.json")}
    shutil.rmtree(folder, ignore_errors=True)
    return names


def test_publishes_tracks_and_versions(run: Run) -> None:
    artifact = go(run)
    folder = store().open(artifact)
    assert (folder / "total.txt").read_text() == "10"
    assert json.loads((folder / "metrics.json").read_text()) == {"total": 10}
    manifest = store().manifest(artifact)
    assert manifest.stage == "total" and manifest.created["git_commit"] == "abc"
    record = json.loads((run.history / "stages" / "count.json").read_text())
    assert record["cached"] is False and record["peak_rss_bytes"] > 1e6 and record["seconds"] < 5
    assert versions(run.settings).version(artifact).files == 3
    assert not (store().root / ".staging").exists() or not any((store().root / ".staging").iterdir())
    assert not any((run.history.parent.parent / "resume").iterdir())
    mlflow = client(run.tracking_uri)
    children = mlflow.search_runs(
        [mlflow.get_run(run.parent).info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.parent}'"
    )
    by_name = {child.info.run_name: child for child in children}
    assert set(by_name) == {"count", "total"} and {c.info.status for c in children} == {"FINISHED"}
    assert by_name["total"].data.tags["artifact"] == str(artifact)
    assert by_name["count"].data.params["to"] == "5" and by_name["count"].data.metrics["nested"] == 2.0
    assert [m.value for m in mlflow.get_metric_history(by_name["count"].info.run_id, "number")] == [0, 1, 2, 3, 4]
    assert {f.path for f in mlflow.list_artifacts(by_name["total"].info.run_id)} == {
        "metrics.json", "total.txt", "total.html",
    }  # fmt: skip
    assert "polyline" in (run.history / "decks" / "count.html").read_text()


def test_only_what_depends_on_a_change_runs_again(run: Run) -> None:
    first = go(run)
    assert executed(run) == {"count", "total"}
    later = Run("r2", "toy", run.runtime, run.tracking_uri, run.parent, "other-commit", "local")
    assert go(later) == first and executed(later) == set()
    assert go(later, total=SumConfig(offset=1)) != first and executed(later) == {"total"}
    assert go(later, count=CountConfig(to=6)) != first and executed(later) == {"count", "total"}
    go(later, count=CountConfig(most=99))
    assert executed(later) == {"count", "total"}


def test_a_cached_result_without_store_and_history_is_a_clear_error(run: Run) -> None:
    go(run)
    executed(run)
    shutil.rmtree(store().root)
    with pytest.raises(ArtifactError, match="nor versioned"):
        go(run, total=SumConfig(offset=2))


def test_missing_and_altered_inputs_come_back_from_dvc(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    go(run)
    executed(run)
    (numbers,) = [artifact for artifact in store().list() if artifact.kind == "numbers"]
    shutil.rmtree(store().path(numbers))
    go(run, total=SumConfig(offset=2))
    assert executed(run) == {"total"}
    altered = store().path(numbers) / "numbers.txt"
    altered.chmod(0o644)
    altered.write_text("0\n1\n2\n3\n5")
    go(run, total=SumConfig(offset=3))
    assert executed(run) == {"total"} and "numbers.txt was altered" in capsys.readouterr().err
    assert len(list((store().root / ".quarantine").iterdir())) == 1


def test_a_failing_stage_publishes_nothing_and_keeps_what_it_wrote(run: Run) -> None:
    with pytest.raises(ValidationFailed, match="9 numbers; at most 3") as caught:
        go(run, count=CountConfig(to=9, most=3))
    (kept,) = (run.history.parent.parent / "failures").iterdir()
    assert str(kept) in str(caught.value) and (kept / "numbers.txt").read_text().startswith("0\n1")
    assert executed(run) == set()
    (refused,) = store().list()  # what was refused is kept, under a kind that nothing takes for the real one
    assert refused.kind == "numbers-refused" and f"{refused.kind}:{refused.digest[:16]}" in str(caught.value)
    assert versions(run.settings).version(refused).files == 2
    assert (store().open(refused) / "numbers.txt").read_text().startswith("0\n1")
    mlflow = client(run.tracking_uri)
    assert mlflow.get_run(run.parent).info.status == "FAILED"


def test_a_killed_attempt_finds_its_resume_folder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CountConfig().model_dump_json()
    resume = COUNT._resume_folder(COUNT.section.from_json(config), {})

    def killed(config: CountConfig, *, out: Path, resume: Path) -> dict:
        (resume / "half").write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("toy_stages.count", killed)
        with pytest.raises(KeyboardInterrupt):
            COUNT.run(run, config)
    assert (resume / "half").read_text() == "half"
    COUNT.run(run, config)
    assert not resume.exists()


def test_a_state_is_found_again_under_settings_that_do_not_change_it() -> None:
    settings, wider = PretrainConfig(), PretrainConfig(validation_sequences=65, parallel=ParallelConfig(processes=2))
    assert PRETRAIN._resume_folder(wider, {}) == PRETRAIN._resume_folder(settings, {})
    assert PRETRAIN._resume_folder(PretrainConfig(batch=9), {}) != PRETRAIN._resume_folder(settings, {})
    assert COUNT._resume_folder(CountConfig(most=99), {}) != COUNT._resume_folder(CountConfig(), {})


@pytest.mark.parametrize("error", [Interrupted, RankLost, ServiceError, ConnectionError, TimeoutError])
def test_what_another_attempt_may_mend_is_recoverable_on_a_cluster(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    assert _kind_of(error, run, monkeypatch) == ContainerError.RECOVERABLE


@pytest.mark.parametrize(
    "error",
    [ValueError, ConfigError, DataError, ArtifactError, ValidationFailed, TrainingDiverged, OutOfMemory, StorageError],
)
def test_what_would_fail_again_is_never_tried_again(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    assert _kind_of(error, run, monkeypatch) == ContainerError.NON_RECOVERABLE


def _kind_of(error: type[Exception], run: Run, monkeypatch: pytest.MonkeyPatch) -> int:
    """What Flyte's agent is told when the stage raises `error` in its container."""

    def fail(config: CountConfig, *, out: Path, resume: Path) -> dict:
        raise error("so it is")

    monkeypatch.setattr("toy_stages.count", fail)
    place = run.history.parent.parent / "container"
    place.mkdir(parents=True)
    with setup_execution(str(place / "raw"), str(place / "out")) as context:
        given = {"run": run, "config": CountConfig().model_dump_json()}
        literals = TypeEngine.dict_to_literal_map(context, given, {"run": Run, "config": str})
        (place / "inputs.pb").write_bytes(literals.to_flyte_idl().SerializeToString())
        _dispatch_execute(context, lambda: count, str(place / "inputs.pb"), str(place / "out"))
    found = ErrorDocument.FromString((place / "out" / "error.pb").read_bytes()).error
    assert "so it is" in found.message
    return found.kind


def test_a_full_disk_keeps_nothing_of_the_stage(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(config: CountConfig, *, out: Path, resume: Path) -> dict:
        (out / "numbers.txt").write_text("0")
        raise RuntimeError("faiss: could not write: No space left on device")

    monkeypatch.setattr("toy_stages.count", full)
    with pytest.raises(StorageError, match=r"count-.*: no space to write it.*Free space on that disk"):
        COUNT.run(run, CountConfig().model_dump_json())
    home = run.history.parent.parent
    assert not (home / "failures").exists() and not any((home / "store" / ".staging").iterdir())


def test_without_a_server_the_error_names_the_remedy() -> None:
    with pytest.raises(ServiceError, match="make up"):
        client("http://127.0.0.1:9")
