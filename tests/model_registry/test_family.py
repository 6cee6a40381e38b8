"""The family in a real MLflow registry: one model a size, members linked to their parent, registered once."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from accordion.config.extract import ExtractConfig
from accordion.config.pretrain import MemberSpec
from accordion.config.release import RegisterFamilyConfig
from accordion.extract import extract
from accordion.model import Model, save_model
from accordion.store import Store
from accordion.store.dvc import Versions
from model_registry.family import register_family
from tests.unit.model.synthetic import small_config
from tests.unit.train.synthetic_shards import write_shards

MEMBERS = (
    MemberSpec(name="small", layers=3, experts=4, top_k=2),
    MemberSpec(name="narrow", layers=5, experts=3, top_k=3),
)


@dataclass
class Tracker:
    client: Any
    run_id: str


@pytest.fixture
def place(tmp_path: Path) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("x", artifact_location=(tmp_path / "mlartifacts").as_uri())
    store = Store(tmp_path / "home" / "store")
    versions = Versions.around(store, str(tmp_path / "remote"))
    parents: dict[str, Any] = {}
    with store.staging("rl") as folder:
        save_model(Model(small_config(), seed=1), folder)
        policy = store.publish(folder, kind="policy", stage="rl", config={}, parents=parents, created={})
    shards = write_shards(tmp_path / "shards")
    with store.staging("extract") as folder:
        figures = extract(ExtractConfig(members=MEMBERS), out=folder, policy=store.path(policy), shards=shards)
        (folder / "metrics.json").write_text(json.dumps(figures))
        family = store.publish(
            folder, kind="family", stage="extract", config={}, parents={"policy": policy}, created={}
        )
    for artifact in (policy, family):
        versions.add(artifact, "test")
    return {
        "policy": store.path(policy), "family": store.path(family), "store": store, "versions": versions,
        "tracker": Tracker(client, client.create_run(experiment).info.run_id),
        "run": SimpleNamespace(id="r1", commit="c1", execution="e1"),
    }  # fmt: skip


def test_every_size_is_registered_with_its_parent(place: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    found = register_family(RegisterFamilyConfig(), out=out, **place)["versions"]
    assert found == {"accordion-lm-full": 1, "accordion-lm-narrow": 1, "accordion-lm-small": 1}
    client = place["tracker"].client
    small = client.get_model_version("accordion-lm-small", "1")
    assert small.tags["parent_version"] == "accordion-lm-full/1" and small.tags["parent"].startswith("policy:")
    assert "#/models/accordion-lm-full/versions/1" in small.description and "| parameters |" in small.description
    assert float(small.tags["val_loss.text"]) > 0 and small.tags["dvc.family"]
    logged = {item.path for item in client.list_artifacts(place["tracker"].run_id, "small")}
    assert logged == {
        f"small/{name}" for name in ("config.json", "model.safetensors", "spec.json", "README.md", "huggingface")
    }


def test_a_second_registration_finds_the_first(place: dict[str, Any], tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first = register_family(RegisterFamilyConfig(), out=tmp_path / "a", **place)
    assert register_family(RegisterFamilyConfig(), out=tmp_path / "b", **place) == first
    assert len(place["tracker"].client.search_model_versions("name = 'accordion-lm-small'")) == 1
