"""The family in a real MLflow registry: one model a size, members linked to their parent, registered once."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from accordion.config.extract import ExtractConfig, RecoverConfig, SearchConfig
from accordion.config.pretrain import MemberSpec
from accordion.config.release import RegisterFamilyConfig
from accordion.errors import ArtifactError, ConfigError, DataError
from accordion.extract import extract, extract_member
from accordion.extract.recover import recover
from accordion.extract.search import search_family
from accordion.model import Model, SubmodelSpec, save_model
from accordion.model.files import read_config
from accordion.store import Manifest, Store
from accordion.store.dvc import Versions
from model_registry.family import register_family
from model_registry.members import register_member
from tests.unit.model.synthetic import small_config
from tests.unit.train.synthetic_shards import tiny_config, write_shards

MEMBERS = (
    MemberSpec(name="small", layers=3, experts=4, top_k=2),
    MemberSpec(name="narrow", layers=5, experts=3, top_k=3),
)
RUN = SimpleNamespace(id="r1", commit="c1", execution="e1")
SMALL = SubmodelSpec.nested(small_config(), layers=3, experts=4, top_k=2)


@dataclass
class Tracker:
    client: Any
    run_id: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A store with a policy, its family and the result of a search in it."""
    place = tmp_path_factory.mktemp("family")
    store = Store(place / "home" / "store")
    versions = Versions.around(store, str(place / "remote"))
    shards = write_shards(place / "shards")
    with store.staging("rl") as folder:
        save_model(Model(small_config(), seed=1), folder)
        policy = store.publish(folder, kind="policy", stage="rl", config={}, parents={}, created={})
    found = {"policy": policy}
    searched = SearchConfig(trials=4, population=2, sequences=2, members=2)
    for kind, function, config in (
        ("family", extract, ExtractConfig(members=MEMBERS)), ("family-search", search_family, searched)
    ):  # fmt: skip
        with store.staging(kind) as folder:
            figures = function(config, out=folder, policy=store.path(policy), shards=shards)  # type: ignore[operator]
            (folder / "metrics.json").write_text(json.dumps(figures))
            found[kind] = store.publish(
                folder, kind=kind, stage=kind, config={}, parents={"policy": policy}, created={}
            )
    for artifact in found.values():
        versions.add(artifact, "test")
    folders = {kind: store.path(artifact) for kind, artifact in found.items()}
    return SimpleNamespace(store=store, versions=versions, shards=shards, folders=folders, home=place / "home")


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("x", artifact_location=(tmp_path / "mlartifacts").as_uri())
    return Tracker(client, client.create_run(experiment).info.run_id)


def register(made: SimpleNamespace, tracker: Tracker, out: Path, *, search: Path | None = None) -> dict[str, int]:
    out.mkdir()
    policy, family = made.folders["policy"], made.folders["family"]
    versions: dict[str, int] = register_family(
        RegisterFamilyConfig(), out=out, policy=policy, family=family, search=search, tracker=tracker,
        store=made.store, versions=made.versions, run=RUN,
    )["versions"]  # fmt: skip
    return versions


def test_every_size_is_registered_with_its_parent(made: SimpleNamespace, tracker: Tracker, tmp_path: Path) -> None:
    found = register(made, tracker, tmp_path / "out")
    assert found == {"accordion-lm-full": 1, "accordion-lm-narrow": 1, "accordion-lm-small": 1}
    small = tracker.client.get_model_version("accordion-lm-small", "1")
    assert small.tags["parent_version"] == "accordion-lm-full/1" and small.tags["parent"].startswith("policy:")
    assert "#/models/accordion-lm-full/versions/1" in small.description and "| parameters |" in small.description
    assert float(small.tags["val_loss.text"]) > 0 and small.tags["dvc.family"] and small.tags["git_commit"] == "c1"
    logged = {item.path for item in tracker.client.list_artifacts(tracker.run_id, "small")}
    assert logged == {
        f"small/{name}"
        for name in ("config.json", "model.safetensors", "spec.json", "figures.json", "README.md", "manifest.json",
                     "huggingface")
    }  # fmt: skip
    whole = tmp_path / "downloaded"
    tracker.client.download_artifacts(tracker.run_id, "small", str(whole.parent))
    shutil.move(tmp_path / "small", whole)
    Manifest.read(whole).verify(whole)


def test_a_second_registration_finds_the_first(made: SimpleNamespace, tracker: Tracker, tmp_path: Path) -> None:
    first = register(made, tracker, tmp_path / "a")
    assert register(made, tracker, tmp_path / "b") == first
    assert len(tracker.client.search_model_versions("name = 'accordion-lm-small'")) == 1


def test_what_a_search_found_is_registered_too(made: SimpleNamespace, tracker: Tracker, tmp_path: Path) -> None:
    rows = json.loads((made.folders["family-search"] / "search.json").read_text())["members"]
    found = register(made, tracker, tmp_path / "out", search=made.folders["family-search"])
    names = {"full", "narrow", "small", "found-1"} | {row["name"] for row in rows}
    assert set(found) == {f"accordion-lm-{name}" for name in names}
    version = tracker.client.get_model_version("accordion-lm-found-1", "1")
    assert version.tags["parent_version"] == "accordion-lm-full/1" and version.tags["dvc.search"]
    assert version.tags["val_loss.text"] == f"{rows[0]['held_out_val_loss']['text']:.4f}"
    assert "# found-1" in version.description


def test_two_members_of_one_name_are_refused(made: SimpleNamespace, tracker: Tracker, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="family has a member 'narrow' too; rename it"):
        register(made, tracker, tmp_path / "out", search=made.folders["family"])


def alone(made: SimpleNamespace, tracker: Tracker, member: Path, name: str) -> tuple[Any, bool]:
    return register_member(
        RegisterFamilyConfig(), member=member, name=name, client=tracker.client, experiment="1", store=made.store,
        versions=made.versions, tags={"git_commit": "c2"},
    )  # fmt: skip


def test_a_recovered_member_is_registered_with_what_it_comes_from(
    made: SimpleNamespace, tracker: Tracker, tmp_path: Path
) -> None:
    register(made, tracker, tmp_path / "out")
    small = made.folders["family"] / "members" / "small"
    recover(RecoverConfig(steps=1), run=tiny_config(validation_sequences=8), member=small, shards=made.shards,
            out=tmp_path / "better", name="better", full=made.folders["policy"])  # fmt: skip
    version, new = alone(made, tracker, tmp_path / "better", "better")
    assert new and version.name == "accordion-lm-better"
    version = tracker.client.get_model_version("accordion-lm-better", version.version)
    assert version.tags["parent_version"] == "accordion-lm-full/1"
    assert version.tags["recovered_from_version"] == "accordion-lm-small/1"
    assert "Recovered from [accordion-lm-small version 1]" in version.description
    assert version.tags["git_commit"] == "c2" and float(version.tags["val_loss.text"]) > 0
    assert tracker.client.get_run(version.run_id).info.status == "FINISHED"
    again, new = alone(made, tracker, tmp_path / "better", "better")
    assert not new and again.version == version.version
    assert not alone(made, tracker, small, "small")[1]  # the same member as that of the family


def test_a_member_cut_by_hand_brings_its_full_model_with_it(
    made: SimpleNamespace, tracker: Tracker, tmp_path: Path
) -> None:
    extract_member(made.folders["policy"], SMALL, tmp_path / "mine")
    version, new = alone(made, tracker, tmp_path / "mine", "mine")
    full = tracker.client.get_model_version("accordion-lm-full", "1")
    assert new and full.tags["artifact"] == f"policy:{Manifest.read(made.folders['policy']).digest}"
    tags = tracker.client.get_model_version(version.name, version.version).tags
    assert tags["parent_version"] == "accordion-lm-full/1" and "val_loss.text" not in tags


def test_a_member_cut_out_of_a_member_is_not_called_recovered(
    made: SimpleNamespace, tracker: Tracker, tmp_path: Path
) -> None:
    register(made, tracker, tmp_path / "out")
    small = made.folders["family"] / "members" / "small"
    extract_member(small, SubmodelSpec.nested(read_config(small), top_k=1), tmp_path / "smaller")
    version, _ = alone(made, tracker, tmp_path / "smaller", "smaller")
    version = tracker.client.get_model_version(version.name, version.version)
    assert version.tags["cut_from_version"] == "accordion-lm-small/1" and "recovered_from" not in version.tags
    assert version.description.startswith("Cut from [accordion-lm-small version 1]")


def test_what_cannot_be_registered_is_refused(made: SimpleNamespace, tracker: Tracker, tmp_path: Path) -> None:
    member = tmp_path / "mine"
    extract_member(made.folders["policy"], SMALL, member)
    for name in ("full", "Über", "a/b", ""):
        with pytest.raises(ConfigError, match="--name: got"):
            alone(made, tracker, member, name)
    with pytest.raises(ArtifactError, match="is a policy; wanted a sub-model"):
        alone(made, tracker, made.folders["policy"], "x")
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        alone(made, tracker, tmp_path, "x")
    (tmp_path / "found" / "members" / "found-1").mkdir(parents=True)
    with pytest.raises(ArtifactError, match=r"is a folder of members; name one of them: .*/found/members/found-1"):
        alone(made, tracker, tmp_path / "found", "x")
    plain = tmp_path / "plain"
    plain.mkdir()
    save_model(Model(small_config()), plain)
    extract_member(plain, SMALL, tmp_path / "orphan")
    with pytest.raises(ArtifactError, match="does not say which full model it was cut from"):
        alone(made, tracker, tmp_path / "orphan", "x")
    shutil.copytree(made.folders["policy"], tmp_path / "elsewhere")
    elsewhere = SimpleNamespace(**{**vars(made), "store": Store(tmp_path / "other")})
    with pytest.raises(ArtifactError, match=r"policy .* is not in"):
        alone(elsewhere, tracker, member, "x")
    (member / "README.md").write_text("altered")
    with pytest.raises(ArtifactError, match=r"README\.md was altered"):
        alone(made, tracker, member, "x")
    assert tracker.client.search_model_versions("name = 'accordion-lm-x'") == []


def test_the_command_line_registers_a_member_under_its_folders_name(
    made: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    from model_registry.__main__ import app

    monkeypatch.setenv("ACCORDION_HOME", str(made.home))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setattr("tasks._tracking.tracking_uri", lambda _: uri)
    extract_member(made.folders["policy"], SMALL, tmp_path / "mine")
    for words in ("accordion-lm-mine: version 1\n", "version 1 (it was already registered)"):
        shown = CliRunner().invoke(app, ["register-member", str(tmp_path / "mine")])
        assert shown.exit_code == 0 and words in shown.output, shown.output
    (version,) = MlflowClient(uri).search_model_versions("name = 'accordion-lm-mine'")
    assert version.tags["parent_version"] == "accordion-lm-full/1"
