"""Members of the family in the MLflow registry: a model for each size, each version linked to its parents."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accordion.config.release import RegisterFamilyConfig
from accordion.errors import ArtifactError, ConfigError
from accordion.extract.card import CARD
from accordion.extract.member import FIGURES, HUGGINGFACE, KIND, member_figures
from accordion.extract.spec import SPEC
from accordion.model.files import CONFIG, WEIGHTS
from accordion.store import MANIFEST, Artifact, Manifest, Store
from accordion.store.dvc import Versions
from accordion.store.lineage import ancestors

FULL = "full"
MEMBER = "member"  # tag of a version: `sub-model:DIGEST`, whichever folder the member lies in
NAME = "[a-z0-9][a-z0-9_.-]*"
FILES = (CONFIG, WEIGHTS, SPEC, FIGURES, CARD)


class Registry:
    """Registered models of one family.

    Args:
        client: an MlflowClient.
        run_id: the MLflow run under which files are logged.
        tags: that every version gets: where and by what code it was registered.
    """

    def __init__(self, config: RegisterFamilyConfig, client: Any, run_id: str, tags: Mapping[str, str]) -> None:
        self.config, self.client, self.run_id, self.tags = config, client, run_id, tags

    def full(self, policy: Artifact, store: Store, versions: Versions, losses: Mapping[str, float]) -> Any:
        """The version of the full model, whose verified folder is in the store."""
        tags = {**lineage(policy, store, versions), "artifact": str(policy), **_losses(losses)}
        about = f"The full elastic model, {policy}: its members share its weights."
        return self.register(FULL, store.path(policy), tags, about)

    def member(self, name: str, folder: Path, parent: Any, tags: Mapping[str, str]) -> Any:
        """The version of the member in `folder`, linked to `parent`, the version of the full model.

        Args:
            tags: `artifact`, what holds it; `parent`, the full model's artifact; and what else is known.

        Raises:
            DataError: the folder is no extracted member.
        """
        figures, manifest = member_figures(folder), Manifest.read(folder)
        tags = {
            **tags,
            MEMBER: f"{manifest.kind}:{manifest.digest}",
            "parent_version": f"{parent.name}/{parent.version}",
            **{key: str(figures[key]) for key in ("parameters", "active_parameters", "bytes")},
            **_losses(figures.get("val_loss", {})),
        }
        links = [f"Cut from {_link(parent)}."]
        if before := manifest.parents.get(KIND):
            what = "recovered" if manifest.stage == "recover" else "cut"
            tags[f"{what}_from"] = before
            links.insert(0, f"{what.capitalize()} from {self._before(before, what, tags)}.")
        card = (folder / CARD).read_text().partition("\n---\n")[2].lstrip()
        return self.register(name, folder, tags, f"{' '.join(links)}\n\n{card}")

    def register(self, size: str, folder: Path, tags: Mapping[str, str], description: str) -> Any:
        """The version that holds `folder`: the one with the same artifact, or a new one."""
        from mlflow.exceptions import MlflowException

        model = f"{self.config.prefix}-{size}"
        try:
            self.client.create_registered_model(model, description=f"Size `{size}` of the elastic family.")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        if (version := find(self.client, model, "artifact", tags["artifact"])) is not None:
            return version
        files = FILES if size == FULL else (*FILES, MANIFEST)
        for name in files:
            if (folder / name).is_file():
                self.client.log_artifact(self.run_id, str(folder / name), size)
        if (folder / HUGGINGFACE).is_dir():
            self.client.log_artifacts(self.run_id, str(folder / HUGGINGFACE), f"{size}/{HUGGINGFACE}")
        source = f"{self.client.get_run(self.run_id).info.artifact_uri}/{size}"
        return self.client.create_model_version(
            model, source=source, run_id=self.run_id, tags={**tags, **self.tags}, description=description
        )

    def _before(self, member: str, what: str, tags: dict[str, str]) -> str:
        """The member that another was recovered or cut from: a link, and a tag, where that one is registered."""
        known = self.client.search_model_versions(f"tags.{MEMBER} = '{member}'")
        if not known:
            return f"`{member}`"
        tags[f"{what}_from_version"] = f"{known[0].name}/{known[0].version}"
        return _link(known[0])


def register_member(
    config: RegisterFamilyConfig, *, member: Path, name: str, client: Any, experiment: str, store: Store,
    versions: Versions, tags: Mapping[str, str],
) -> tuple[Any, bool]:  # fmt: skip
    """Register the member in a folder, found, recovered or cut by hand, under `PREFIX-NAME`, with its parent.

    The full model that it was cut from gets a version too, if it has none.

    Args:
        experiment: id of the MLflow experiment in which the run that holds the files is made.
        store, versions: where the full model and its lineage are found.
        tags: for the new version: the commit.

    Returns:
        the version, and whether it is new.

    Raises:
        ConfigError: `name` cannot be the name of a size.
        ArtifactError: the folder is no member or was altered, was cut from a model that is no artifact, or that
            artifact is not in the store.
    """
    manifest = _checked(member, name)
    identity = f"{manifest.kind}:{manifest.digest}"
    if (version := find(client, f"{config.prefix}-{name}", MEMBER, identity)) is not None:
        return version, False
    policy = Artifact.parse(next(text for kind, text in manifest.parents.items() if kind != KIND))
    store.open(policy)
    note = {"mlflow.note.content": f"Registration of one member, {identity}."}
    run_id = client.create_run(experiment, run_name=f"register {name}", tags={**note, **tags}).info.run_id
    state = "FAILED"
    try:
        registry = Registry(config, client, run_id, tags)
        parent = registry.full(policy, store, versions, member_figures(member).get("val_loss_full", {}))
        known = {**lineage(policy, store, versions), "artifact": identity, "parent": str(policy)}
        version = registry.member(name, member, parent, known)
        state = "FINISHED"
    finally:
        client.set_terminated(run_id, state)
    return version, True


def _checked(member: Path, name: str) -> Manifest:
    """The manifest of a member that can be registered under a name."""
    if not re.fullmatch(NAME, name) or name == FULL:
        raise ConfigError(
            f"--name: got {name!r}; wants small letters, digits, '-', '_' and '.', and not {FULL!r}, the full model's"
        )
    if (member / "members").is_dir():
        folders = ", ".join(map(str, sorted((member / "members").iterdir())))
        raise ArtifactError(f"{member}: is a folder of members; name one of them: {folders}")
    manifest = Manifest.read(member)
    manifest.verify(member)
    if manifest.kind != KIND:
        raise ArtifactError(f"{member}: is a {manifest.kind}; wanted a {KIND}, as `accordion extract` writes it")
    if not set(manifest.parents) - {KIND}:
        raise ArtifactError(
            f"{member}: does not say which full model it was cut from, since that was no artifact; cut it again with "
            "--policy KIND or KIND:DIGEST"
        )
    return manifest


def find(client: Any, model: str, tag: str, value: str) -> Any:
    """The version of a registered model that has a tag of this value, or None."""
    versions = client.search_model_versions(f"name = '{model}'")
    return next((version for version in versions if version.tags.get(tag) == value), None)


def lineage(policy: Artifact, store: Store, versions: Versions) -> dict[str, str]:
    """Tags: the full model, the checkpoint it came from, and its version in DVC."""
    family = ancestors(store, policy)
    chain = [family[kind] for kind in ("checkpoint", "policy") if kind in family]
    return {"parents": " -> ".join(map(str, chain)), f"dvc.{policy.kind}": versions.version(policy).hash}


def _losses(losses: Mapping[str, float]) -> dict[str, str]:
    return {f"val_loss.{name}": f"{value:.4f}" for name, value in losses.items()}


def _link(version: Any) -> str:
    return f"[{version.name} version {version.version}](#/models/{version.name}/versions/{version.version})"
