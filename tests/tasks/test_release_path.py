"""The end of the DAG on hand-made figures: verdict, registration, no rollout after a failed gate, report."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from flytekit import conditional, workflow

from accordion.config.release import CheckConfig, GateConfig, RegisterConfig, RolloutConfig
from accordion.config.runtime import RuntimeConfig, ServicesConfig
from accordion.store import Artifact
from tasks._run import Run, store, use_home_cache, versions
from tasks._tracking import client, start_parent
from tasks.gate import gate
from tasks.register import register
from tasks.report import report
from tasks.rollout import withhold

INTERVAL = {"mean": 0.5, "low": 0.4, "high": 0.6, "count": 50}
SYSTEM = {"ndcg10": INTERVAL, "recall100": INTERVAL, "mrr10": INTERVAL}
LOSSES = {"text": 4.0, "image": 0.6, "video": 0.6, "audio": 3.0}
RATE = {"rate": 0.5, "low": 0.4, "high": 0.6, "count": 400}
MEMBER = {
    "name": "full",
    "layers": 2,
    "experts": 2,
    "top_k": 1,
    "val_loss": LOSSES,
    "parameters": 9,
    "active_parameters": 5,
}
METRICS: dict[str, dict[str, Any]] = {
    "pretrain": {"val_loss_full": LOSSES, "val_loss_unigram": LOSSES, "submodels": [MEMBER]},
    "rl": {"pass_before": RATE, "pass_after": RATE},
    "extract": {"max_abs_logit_diff": 0.0, "members": []},
    "distil": {"loss": 1.0},
    "evaluate": {"domains": {"toy": dict.fromkeys(("encoder", "untrained", "bm25", "fusion"), SYSTEM)}},
}


@workflow
def release_path(
    run: Run, gate_config: str, checkpoint: Artifact, family: Artifact, policy: Artifact, encoder: Artifact,
    evaluation: Artifact,
) -> str:  # fmt: skip
    """From the gate on; both branches withhold, since Triton has tests of its own."""
    verdict = gate(
        run=run, config=gate_config, pretrain=checkpoint, extract=family, rl=policy, distil=encoder, evaluate=evaluation
    )
    config = RegisterConfig().model_dump_json()
    registration = register(run=run, config=config, encoder=encoder, verdict=verdict.artifact, evaluate=evaluation)
    rollout = RolloutConfig().model_dump_json()
    release = (
        conditional("gate_passed")
        .if_(verdict.passed.is_false())
        .then(withhold(run=run, config=rollout, registration=registration, verdict=verdict.artifact))
        .else_()
        .fail("the gate passed")
    )
    made = [checkpoint, family, policy, encoder, evaluation, verdict.artifact, registration, release]
    return report(run=run, artifacts=made)


def publish(run: Run, stage: str, kind: str, parents: Mapping[str, Artifact], *files: str) -> Artifact:
    with store().staging(stage) as folder:
        for name in files:
            (folder / name).write_text("{}")
        (folder / "metrics.json").write_text(json.dumps(METRICS.get(stage, {})))
        artifact = store().publish(
            folder, kind=kind, stage=stage, config={}, parents=parents, created={"seconds": 1.0, "at": "now"}
        )
    versions(run.settings).add(artifact, stage)
    return artifact


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("ACCORDION_HOME", str(tmp_path / "runs"))
    use_home_cache()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    runtime = RuntimeConfig(services=ServicesConfig(mlflow_uri=uri)).model_dump_json()
    return Run("r1", "toy", runtime, uri, start_parent(uri, "toy", "r1", {}), "abc", "local")


def test_a_failed_gate_is_registered_reported_and_not_rolled_out(run: Run) -> None:
    corpus = publish(run, "ingest", "corpus", {})
    shards = publish(run, "pack", "shards", {"corpus": corpus})
    checkpoint = publish(run, "pretrain", "checkpoint", {"shards": shards})
    policy = publish(run, "rl", "policy", {"policy": checkpoint})
    family = publish(run, "extract", "family", {"policy": policy, "shards": shards})
    parents = {"family": family, "corpus": corpus}
    encoder = publish(run, "distil", "encoder", parents, "model.safetensors", "encoder.onnx", "contract.json")
    evaluation = publish(run, "evaluate", "evaluation", {"encoder": encoder, "corpus": corpus})
    check = CheckConfig(figure="evaluate.domains.toy.encoder.ndcg10.mean", direction="at_least", threshold=0.9)
    folder = release_path(
        run=run, gate_config=GateConfig(checks={"good": check}).model_dump_json(), checkpoint=checkpoint,
        family=family, policy=policy, encoder=encoder, evaluation=evaluation,
    )  # fmt: skip

    summary = json.loads((Path(folder) / "summary.json").read_text())
    assert summary["gate"]["passed"] is False and summary["rollout"] is None
    assert summary["registry"] == {"model": "accordion-encoder", "version": 1, "aliases": []}
    assert summary["stages"]["pretrain"]["cached"] is True and summary["stages"]["gate"]["cached"] is False
    assert (run.history.parent.parent / "latest" / "report.html").is_file()

    mlflow = client(run.tracking_uri)
    version = mlflow.get_model_version("accordion-encoder", "1")
    assert version.tags["gate.passed"] == "false" and version.tags["artifact"] == str(encoder)
    assert version.tags["parents"] == " -> ".join(map(str, (checkpoint, policy, family, encoder)))
    assert version.tags["dvc.corpus"] == versions(run.settings).version(corpus).hash
    assert version.description.startswith("# accordion-encoder")
    names = {file.path for file in mlflow.list_artifacts(version.run_id, "encoder")}
    assert {"encoder/model.safetensors", "encoder/encoder.onnx", "encoder/contract.json"} <= names
    assert mlflow.get_run(run.parent).info.status == "FINISHED"
