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
    assert [(record.artifact, record.message) for record in versions.history()] == [
        (str(first), "toy of run 1"),
        (str(second), "toy of run 2"),
    ]
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


def flip(path: Path) -> None:
    """Change one bit of a read-only file."""
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def objects(folder: Path, content: bytes) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.read_bytes() == content]


def lose(versions: Versions, artifact: Artifact, cache: bool = True) -> None:
    shutil.rmtree(versions.store.path(artifact))
    if cache:
        shutil.rmtree(versions.store.root / ".dvc" / "cache")


def test_refuses_an_altered_remote_object_by_its_name(versions: Versions, tmp_path: Path) -> None:
    artifact = publish(versions.store, "one")
    versions.add(artifact, "toy")
    lose(versions, artifact)
    (damaged,) = objects(tmp_path / "remote", b"one")
    flip(damaged)
    with pytest.raises(ArtifactError) as caught:
        versions.restore(artifact)
    assert f"object {damaged} (part/a.txt) was altered" in str(caught.value) and "run the stage" in str(caught.value)
    assert not versions.store.path(artifact).exists()


def test_names_a_missing_remote_object_and_an_altered_list_of_files(versions: Versions, tmp_path: Path) -> None:
    artifact = publish(versions.store, "one")
    versions.add(artifact, "toy")
    lose(versions, artifact)
    (gone,) = objects(tmp_path / "remote", b"one")
    content = gone.read_bytes()
    gone.unlink()
    with pytest.raises(ArtifactError, match=rf"object {gone} \(part/a.txt\) is missing"):
        versions.restore(artifact)
    gone.write_bytes(content)
    shutil.rmtree(versions.store.root / ".dvc" / "cache", ignore_errors=True)
    (listing,) = (path for path in (tmp_path / "remote").rglob("*.dir"))
    flip(listing)
    with pytest.raises(ArtifactError, match=r"\.dir \(the list of its files\) was altered"):
        versions.restore(artifact)


def test_a_damaged_cache_object_is_fetched_anew(versions: Versions) -> None:
    artifact = publish(versions.store, "one")
    versions.add(artifact, "toy")
    lose(versions, artifact, cache=False)
    (damaged,) = objects(versions.store.root / ".dvc" / "cache", b"one")
    flip(damaged)
    damaged.chmod(0o444)  # by which DVC takes it for whole
    assert (versions.restore(artifact) / "part" / "a.txt").read_text() == "one"


def made(store: Store, kind: str, text: str, **parents: Artifact) -> Artifact:
    with store.staging("toy") as folder:
        (folder / "b.txt").write_text(text)
        return store.publish(folder, kind=kind, stage="toy", config={}, parents=parents, created={})


def test_finds_what_was_made_from_the_data_before(versions: Versions) -> None:
    first, second = made(versions.store, "corpus", "1"), made(versions.store, "corpus", "2")

    def before(data: Artifact, profile: str = "smoke") -> Artifact | None:
        return versions.before(data, "validation", profile)

    def check(corpus: Artifact, previous: Artifact | None) -> Artifact:
        inputs = {"corpus": corpus} | ({"previous": previous} if previous else {})
        artifact = made(versions.store, "validation", str(corpus), **inputs)
        versions.add(artifact, "validate", profile="smoke")
        return artifact

    versions.add(first, "ingest", profile="smoke")
    assert before(first) is None
    checked = check(first, None)
    assert before(first) is None and before(second) == checked and before(second, "other") is None
    versions.mark([first, checked], "run of another profile, from the cache", profile="other")
    assert before(second, "other") == checked
    later = check(second, checked)
    assert before(second) == checked  # again and again: the run on unchanged data finds what it found
    assert before(first) == later
    uses = [record for record in versions.history() if record.profile == "other"]
    assert [record.artifact for record in uses] == [str(first), str(checked)]


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
