"""Stage: register an encoder as a version of the model in MLflow, with its files, model card, lineage and verdict."""

import json
from pathlib import Path
from typing import Any

from accordion.config.release import RegisterConfig
from accordion.observe import say
from accordion.report.card import model_card
from accordion.report.summary import summarise
from accordion.store import Artifact, Manifest, Store
from accordion.store.dvc import Versions
from accordion.store.lineage import ancestors, tree
from model_registry.history import append, writer
from model_registry.policy import CANDIDATE, CHAMPION, check_files
from model_registry.promote import alias

CHAIN = ("checkpoint", "policy", "family", "encoder")  # foundation -> sub-models -> encoder


def register(
    config: RegisterConfig, *, out: Path, encoder: Path, verdict: Path, evaluate: Path, tracker: Any, store: Store,
    versions: Versions, run: Any,
) -> dict[str, Any]:  # fmt: skip
    """Make a registered version of `encoder`, or bring the one it already has up to date with this verdict.

    Args:
        encoder, verdict, evaluate: verified artifact folders.
        tracker: the stage's MLflow run (`client`, `run_id`).
        store, versions: where the lineage is read from.
        run: the execution (`id`, `commit`, `execution`).

    Returns:
        `{"model", "version", "aliases", "new"}`; the same and more goes to registration.json.
    """
    client, manifest = tracker.client, Manifest.read(encoder)
    artifact = Artifact(manifest.kind, manifest.digest)
    judged = json.loads((verdict / "verdict.json").read_text())
    figures = json.loads((evaluate / "metrics.json").read_text())
    tags = _tags(artifact, judged, figures, store, versions, run)
    card = model_card(
        summarise({"evaluate": figures, "gate": judged}, {}),
        name=config.model,
        lineage=tree(store, artifact),
        encoder=json.loads((encoder / "contract.json").read_text(encoding="utf-8")),
    )
    with writer():
        version, new = _version(client, config.model, artifact, encoder, tracker.run_id, card)
        for name, value in tags.items():
            client.set_model_version_tag(config.model, version, name, value)
        client.update_model_version(config.model, version, description=card)
        candidate = alias(client, config.model, CANDIDATE)
        if judged["passed"] and alias(client, config.model, CHAMPION) != int(version):
            client.set_registered_model_alias(config.model, CANDIDATE, version)
        elif not judged["passed"] and candidate == int(version):
            client.delete_registered_model_alias(config.model, CANDIDATE)
        append({"action": "register" if new else "judge", "state": "registered", "model": config.model,
                "version": int(version), "passed": judged["passed"], "encoder": str(artifact)})  # fmt: skip
    say(f"register: {config.model} version {version}{'' if new else ' (already registered)'}")
    aliases = sorted(client.get_model_version(config.model, version).aliases)
    figures = {"model": config.model, "version": int(version), "aliases": aliases, "new": new}
    document = {**figures, "encoder": str(artifact), "passed": judged["passed"], "tags": tags}
    (out / "registration.json").write_text(json.dumps(document, indent=1) + "\n")
    (out / "model-card.md").write_text(card)
    return figures


def _version(client: Any, model: str, artifact: Artifact, encoder: Path, run_id: str, card: str) -> tuple[str, bool]:
    """The version of this encoder: the existing one (an encoder is registered once), or a new one."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(
            model, description="Retrieval encoder cut from one elastic pre-training run; see each version's card."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for found in client.search_model_versions(f"name = '{model}'"):
        if found.tags.get("artifact") == str(artifact):
            return str(found.version), False
    for path in check_files(encoder):
        client.log_artifact(run_id, str(path), "encoder")
    client.log_text(run_id, card, "model-card.md")
    source = f"{client.get_run(run_id).info.artifact_uri}/encoder"
    created = client.create_model_version(
        model, source=source, run_id=run_id, tags={"artifact": str(artifact)}, description=card
    )
    return str(created.version), True


def _tags(
    artifact: Artifact, judged: dict[str, Any], figures: dict[str, Any], store: Store, versions: Versions, run: Any
) -> dict[str, str]:
    family = ancestors(store, artifact)
    tags = {
        "artifact": str(artifact),
        "manifest.sha256": artifact.digest,
        "gate.passed": str(judged["passed"]).lower(),
        "git_commit": run.commit,
        "accordion.run": run.id,
        "flyte_execution": run.execution,
        "parents": " -> ".join(str(family[kind]) for kind in CHAIN if kind in family),
        "dvc.encoder": versions.version(artifact).hash,
    }
    for kind in ("corpus", "shards"):
        if kind in family:
            tags |= {f"data.{kind}": family[kind].digest, f"dvc.{kind}": versions.version(family[kind]).hash}
    for domain, systems in figures["domains"].items():
        for system in ("encoder", "bm25"):
            tags[f"ndcg10.{domain}.{system}"] = f"{systems[system]['ndcg10']['mean']:.4f}"
    return tags
