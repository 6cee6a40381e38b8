"""DVC versions of artifacts: recorded, restored, refused when the remote was altered; the checkout untouched."""

import shutil
import subprocess
from pathlib import Path

import pytest

from accordion.errors import ArtifactError
from accordion.store import Artifact, Store
from accordion.store.dvc import Versions


def publish(store: Store, text: str, kind: str = "toy") -> Artifact:
    with store.staging("toy") as folder:
        (folder / "part").mkdir()
        (folder / "part" / "a.txt").write_text(text)
        (folder / "b.txt").write_text("b")
        return store.publish(folder, kind=kind, stage="toy", config={}, parents={}, created={})


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    return Versions(Store(tmp_path / "store"), str(tmp_path / "remote"))


def test_adds_lists_and_restores(versions: Versions) -> None:
    first, second = publish(versions.store, "one"), publish(versions.store, "two", "other-toy")
    record = versions.add(first, "toy of run 1")
    versions.add(second, "toy of run 2")
    assert record.hash.endswith(".dir") and record.files == 3
    assert versions.add(first, "again").hash == record.hash
    assert [(a, m) for _, a, m in versions.list()] == [(str(first), "toy of run 1"), (str(second), "toy of run 2")]
    shutil.rmtree(versions.store.path(first))
    folder = versions.restore(first)
    assert (folder / "part" / "a.txt").read_text() == "one"


def test_restores_although_the_pointers_are_gone_too(versions: Versions) -> None:
    artifact = publish(versions.store, "one")
    versions.add(artifact, "toy")
    shutil.rmtree(versions.store.root / "toy")
    assert (versions.restore(artifact) / "part" / "a.txt").read_text() == "one"


def test_restores_from_the_remote_alone(versions: Versions) -> None:
    artifact = publish(versions.store, "one")
    versions.add(artifact, "toy")
    shutil.rmtree(versions.store.path(artifact))
    shutil.rmtree(versions.store.root / ".dvc" / "cache")
    assert (versions.restore(artifact) / "part" / "a.txt").read_text() == "one"


def test_refuses_an_altered_remote(versions: Versions, tmp_path: Path) -> None:
    artifact = publish(versions.store, "one")
    versions.add(artifact, "toy")
    shutil.rmtree(versions.store.path(artifact))
    shutil.rmtree(versions.store.root / ".dvc" / "cache")
    for path in (tmp_path / "remote").rglob("*"):
        if path.is_file() and path.read_bytes() == b"one":
            path.chmod(0o644)
            path.write_bytes(b"ona")
    with pytest.raises(ArtifactError, match="altered"):
        versions.restore(artifact)


def test_never_versioned_is_a_clear_error(versions: Versions) -> None:
    with pytest.raises(ArtifactError, match="nor versioned"):
        versions.restore(Artifact("toy", "0" * 64))


def test_leaves_a_surrounding_repository_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text("runs/\n")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    versions = Versions(Store(tmp_path / "runs" / "store"), str(tmp_path / "runs" / "remote"))
    versions.add(publish(versions.store, "one"), "toy")
    status = subprocess.run(["git", "-C", tmp_path, "status", "--porcelain"], capture_output=True, text=True)
    assert status.stdout == "?? .gitignore\n"
