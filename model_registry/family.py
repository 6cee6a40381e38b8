"""Stage: register the full model and every member of its family in MLflow, each member with a link to its parent.

Every size is a registered model of its own (`accordion-lm-full`, `accordion-lm-small`, ...), whose versions are the
runs that made it; what a search found is there as `accordion-lm-found-1` and so on. The encoder, which is gated and
served, is registered by `model_registry.register`.
"""

import json
from pathlib import Path
from typing import Any

from accordion.config.release import RegisterFamilyConfig
from accordion.errors import DataError
from accordion.observe import progress, say
from accordion.store import Artifact, Manifest, Store
from accordion.store.dvc import Versions
from model_registry.members import Registry, lineage


def register_family(
    config: RegisterFamilyConfig, *, out: Path, policy: Path, family: Path, search: Path | None = None, tracker: Any,
    store: Store, versions: Versions, run: Any,
) -> dict[str, Any]:  # fmt: skip
    """Make a registered version of the full model and of each member, or find the one it already has.

    Args:
        policy: artifact folder of the full model.
        family: artifact folder of the members cut out of it.
        search: artifact folder of members that a search found in it.
        tracker: the stage's MLflow run (`client`, `run_id`).
        store, versions: where the lineage is read from.
        run: the execution (`id`, `commit`, `execution`).

    Returns:
        name of the registered model -> version; also in family.json.

    Raises:
        DataError: two members have the same name.
    """
    tags = {"git_commit": run.commit, "accordion.run": run.id, "flyte_execution": run.execution}
    registry = Registry(config, tracker.client, tracker.run_id, tags)
    figures = json.loads((family / "metrics.json").read_text())
    whole = _artifact(policy)
    parent = registry.full(whole, store, versions, figures["val_loss_full"])
    shared = {**lineage(whole, store, versions), "parent": str(whole)}
    found = {parent.name: int(parent.version)}
    members = _members({"family": family, **({} if search is None else {"search": search})})
    for name in progress(sorted(members), "register family", unit="members"):
        source, folder = members[name]
        made = _artifact(folder.parents[1])
        tags = {"artifact": f"{made}/members/{name}", f"dvc.{source}": versions.version(made).hash}
        version = registry.member(name, folder, parent, {**shared, **tags})
        found[version.name] = int(version.version)
    (out / "family.json").write_text(json.dumps(found, indent=1) + "\n")
    say("register family: " + ", ".join(f"{name} version {version}" for name, version in found.items()))
    return {"versions": found}


def _members(sources: dict[str, Path]) -> dict[str, tuple[str, Path]]:
    """Name of each member -> the input that holds it, and its folder there."""
    found: dict[str, tuple[str, Path]] = {}
    for source, artifact in sources.items():
        for folder in sorted((artifact / "members").iterdir()):
            if folder.name in found:
                raise DataError(
                    f"{folder}: {found[folder.name][0]} has a member {folder.name!r} too; rename it in extract.members"
                )
            found[folder.name] = (source, folder)
    return found


def _artifact(folder: Path) -> Artifact:
    manifest = Manifest.read(folder)
    return Artifact(manifest.kind, manifest.digest)
