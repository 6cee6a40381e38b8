"""config.pbtxt is generated and validated; version folders appear whole, once, and name their source."""

import subprocess
import sys

import pytest

from accordion.errors import ArtifactError, ServiceError
from accordion.serve import repository
from accordion.store import Store
from tests.encoders import make_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return make_encoder(Store(tmp_path_factory.mktemp("store")))


def write(models, versions):
    (models / "encoder").mkdir(parents=True, exist_ok=True)
    text = repository.encoder_config("encoder", versions, 16, instances=1, threads=1)
    repository.write_config(models, "encoder", text)


def test_config_serves_exactly_the_versions_named(tmp_path, encoder):
    for version in (1, 2):
        repository.stage_encoder(tmp_path, "encoder", version, encoder, "encoder:a")
    write(tmp_path, [2, 1])
    config = repository.read_config(tmp_path / "encoder" / "config.pbtxt")
    assert list(config.version_policy.specific.versions) == [1, 2]
    assert {given.name: given.optional for given in config.input} == {"TEXT": False, "KIND": True}
    assert list(config.output[0].dims) == [-1, 16]


def test_a_config_that_cannot_serve_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="version 7, which has no folder"):
        write(tmp_path, [7])
    path = tmp_path / "encoder" / "config.pbtxt"
    path.write_text("nonsense {")
    with pytest.raises(ArtifactError, match="not a Triton model configuration"):
        repository.read_config(path)
    path.write_text('name: "other"')
    with pytest.raises(ArtifactError, match="'other'"):
        repository.read_config(path)


def test_staging_is_idempotent_and_never_mixes_sources(tmp_path, encoder):
    folder = repository.stage_encoder(tmp_path, "encoder", 1, encoder, "encoder:a")
    before = (folder / "source.json").stat().st_mtime_ns
    repository.stage_encoder(tmp_path, "encoder", 1, encoder, "encoder:a")
    assert (folder / "source.json").stat().st_mtime_ns == before
    assert repository.version_source(tmp_path, "encoder", 1) == "encoder:a"
    with pytest.raises(ArtifactError, match="was made from encoder:a, not from encoder:b"):
        repository.stage_encoder(tmp_path, "encoder", 1, encoder, "encoder:b")
    assert repository.versions(tmp_path, "encoder") == [1]


def test_an_incomplete_encoder_is_refused_and_leaves_nothing(tmp_path):
    (tmp_path / "artifact").mkdir()
    with pytest.raises(ArtifactError, match=r"no encoder\.onnx"):
        repository.stage_encoder(tmp_path / "models", "encoder", 1, tmp_path / "artifact", "encoder:a")
    assert repository.versions(tmp_path / "models", "encoder") == []


def test_the_staged_library_needs_nothing_of_the_checkout(tmp_path, encoder):
    folder = repository.stage_encoder(tmp_path, "encoder", 1, encoder, "encoder:a")
    code = (
        "import sys; sys.path.insert(0, 'library')\n"
        "from pathlib import Path\n"
        "from accordion.data.tokenizers.text import TextTokenizer\n"
        "from accordion.retrieval.contract import EncoderContract\n"
        "import accordion; assert 'library' in accordion.__file__, accordion.__file__\n"
        "print(EncoderContract.load(Path('.')).prepare(TextTokenizer.load(Path('.')), ['a'], 'query')[0][0])\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr


def test_collect_keeps_pinned_and_newest_and_never_a_served_version(tmp_path, encoder):
    for version in range(1, 6):
        repository.stage_encoder(tmp_path, "encoder", version, encoder, f"encoder:{version}")
    write(tmp_path, [1, 5])
    assert repository.collect(tmp_path, "encoder", [1, 5], 2) == [2, 3]
    with pytest.raises(ServiceError, match=r"\[1\] are served"):
        repository.collect(tmp_path, "encoder", [5], 1)
