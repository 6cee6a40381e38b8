"""Stage: register the full model and every member of its family in MLflow, each member with a link to its parent.

Every size is a registered model of its own (`accordion-lm-full`, `accordion-lm-small`, ...), whose versions are the
runs that made it. The encoder, which is gated and served, is registered by `model_registry.register`.
"""

import json
from pathlib import Path
from typing import Any

from accordion.config.release import RegisterFamilyConfig
from accordion.extract.card import CARD
from accordion.extract.family import HUGGINGFACE, SPEC
from accordion.model.files import CONFIG, WEIGHTS
from accordion.observe import progress, say
from accordion.store import Artifact, Manifest, Store
from accordion.store.dvc import Versions
from accordion.store.lineage import ancestors

FULL = "full"


def register_family(
    config: RegisterFamilyConfig, *, out: Path, policy: Path, family: Path, tracker: Any, store: Store,
    versions: Versions, run: Any,
) -> dict[str, Any]:  # fmt: skip
    """Make a registered version of the full model and of each member, or find the one it already has.

    Args:
        policy: artifact folder of the full model.
        family: artifact folder of the members cut out of it.
        tracker: the stage's MLflow run (`client`, `run_id`).
        store, versions: where the lineage is read from.
        run: the execution (`id`, `commit`, `execution`).

    Returns:
        name of the registered model -> version; also in family.json.
    """
    registry = _Registry(config, tracker, run)
    manifests = {name: Manifest.read(folder) for name, folder in (("policy", policy), ("family", family))}
    made = {name: Artifact(manifest.kind, manifest.digest) for name, manifest in manifests.items()}
    shared = {"parents": " -> ".join(map(str, _chain(store, made["policy"])))}
    shared |= {f"dvc.{name}": versions.version(artifact).hash for name, artifact in made.items()}
    figures = json.loads((family / "metrics.json").read_text())
    parent = registry.register(
        FULL, policy, {**shared, "artifact": str(made["policy"]), **_losses(figures["val_loss_full"])},
        f"The full elastic model, {made['policy']}: its members share its weights.",
    )  # fmt: skip
    found = {parent.name: int(parent.version)}
    members = {row["name"]: row for row in figures["members"]}
    for name in progress(sorted(members), "register family", unit="members"):
        row, folder = members[name], family / "members" / name
        tags = {
            **shared,
            "artifact": f"{made['family']}/members/{name}",
            "parent": str(made["policy"]),
            "parent_version": f"{parent.name}/{parent.version}",
            **{key: str(row[key]) for key in ("parameters", "active_parameters", "bytes")},
            **_losses(row["val_loss"]),
        }
        link = (
            f"Cut from [{parent.name} version {parent.version}](#/models/{parent.name}/versions/{parent.version}).\n\n"
        )
        card = (folder / CARD).read_text()
        version = registry.register(name, folder, tags, link + card.partition("\n---\n")[2].lstrip())
        found[version.name] = int(version.version)
    (out / "family.json").write_text(json.dumps(found, indent=1) + "\n")
    say("register family: " + ", ".join(f"{name} version {version}" for name, version in found.items()))
    return {"versions": found}


def _chain(store: Store, policy: Artifact) -> list[Artifact]:
    """The full model and the checkpoint it came from."""
    family = ancestors(store, policy)
    return [family[kind] for kind in ("checkpoint", "policy") if kind in family]


def _losses(losses: dict[str, float]) -> dict[str, str]:
    return {f"val_loss.{name}": f"{value:.4f}" for name, value in losses.items()}


class _Registry:
    """Registered models of one run."""

    def __init__(self, config: RegisterFamilyConfig, tracker: Any, run: Any) -> None:
        self.config, self.client, self.run_id, self.run = config, tracker.client, tracker.run_id, run

    def register(self, size: str, folder: Path, tags: dict[str, str], description: str) -> Any:
        """The version that holds `folder`: the one with the same artifact, or a new one."""
        from mlflow.exceptions import MlflowException

        model = f"{self.config.prefix}-{size}"
        try:
            self.client.create_registered_model(model, description=f"Size `{size}` of the elastic family.")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        tags = {**tags, "git_commit": self.run.commit, "accordion.run": self.run.id,
                "flyte_execution": self.run.execution}  # fmt: skip
        for version in self.client.search_model_versions(f"name = '{model}'"):
            if version.tags.get("artifact") == tags["artifact"]:
                return version
        for name in (CONFIG, WEIGHTS, SPEC, CARD):
            if (folder / name).is_file():
                self.client.log_artifact(self.run_id, str(folder / name), size)
        if (folder / HUGGINGFACE).is_dir():
            self.client.log_artifacts(self.run_id, str(folder / HUGGINGFACE), f"{size}/{HUGGINGFACE}")
        source = f"{self.client.get_run(self.run_id).info.artifact_uri}/{size}"
        return self.client.create_model_version(
            model, source=source, run_id=self.run_id, tags=tags, description=description
        )
