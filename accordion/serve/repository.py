"""The Triton model repository on disk: generated and validated config.pbtxt, version folders staged and renamed."""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from accordion.errors import ArtifactError, ServiceError
from accordion.home import REPOSITORY
from accordion.store import atomic_folder, atomic_write
from accordion.store.manifest import sha256

ECHO = "echo"
SOURCE = "source.json"
ENCODER_FILES = ("encoder.onnx", "tokenizer.json", "contract.json")
LIBRARY = ("errors.py", "data/tokenizers/text.py", "retrieval/contract.py")  # what the model imports, from accordion/
_MODELS = Path(__file__).resolve().parent / "models"
_BYTES, _FP32 = model_config_pb2.TYPE_STRING, model_config_pb2.TYPE_FP32


def encoder_config(model: str, versions: Iterable[int], dimension: int, *, instances: int, threads: int) -> str:
    """config.pbtxt of an encoder that serves exactly `versions`.

    Args:
        dimension: width of the embedding.
        instances: processes that answer requests, for each version.
        threads: ONNX Runtime threads of each instance.
    """
    config = model_config_pb2.ModelConfig(name=model, backend="python", max_batch_size=0)
    config.input.add(name="TEXT", data_type=_BYTES, dims=[-1])
    config.input.add(name="KIND", data_type=_BYTES, dims=[1], optional=True)
    config.output.add(name="EMBEDDING", data_type=_FP32, dims=[-1, dimension])
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=instances)
    config.parameters["threads"].string_value = str(threads)
    config.version_policy.specific.versions.extend(sorted(versions))
    return text_format.MessageToString(config)


def echo_config() -> str:
    """config.pbtxt of the known-tensor check."""
    config = model_config_pb2.ModelConfig(name=ECHO, backend="python", max_batch_size=0)
    for name, kind in (("FLOATS", _FP32), ("TEXT", _BYTES)):
        config.input.add(name=name, data_type=kind, dims=[-1])
        config.output.add(name=f"{name}_OUT", data_type=kind, dims=[-1])
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=1)
    return text_format.MessageToString(config)


def read_config(path: Path) -> model_config_pb2.ModelConfig:
    """Parse and check a config.pbtxt.

    Raises:
        ArtifactError: it is missing, not the text form of a ModelConfig, or names another model or no version.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: missing; roll a version out to write it")
    try:
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: not a Triton model configuration ({error}); roll the version out again") from None
    if config.name != path.parent.name:
        raise ArtifactError(f"{path}: names model {config.name!r}, its folder is {path.parent.name!r}; rename one")
    for version in config.version_policy.specific.versions:
        if not (path.parent / str(version)).is_dir():
            raise ArtifactError(f"{path}: serves version {version}, which has no folder; roll a version out again")
    return config


def write_config(repository: Path, model: str, text: str) -> None:
    """Replace `model`'s config.pbtxt atomically, and check what was written."""
    atomic_write(repository / model / "config.pbtxt", text)
    read_config(repository / model / "config.pbtxt")


def write_versions(repository: Path, model: str, versions: Iterable[int]) -> None:
    """Make `model`'s config.pbtxt serve exactly `versions`, everything else as it is."""
    config = read_config(repository / model / "config.pbtxt")
    del config.version_policy.specific.versions[:]
    config.version_policy.specific.versions.extend(sorted(versions))
    write_config(repository, model, text_format.MessageToString(config))


def write_echo(repository: Path) -> None:
    """Put the echo model into the repository; nothing happens when it is there already."""
    target = repository / ECHO / "1"
    code = _MODELS / "echo.py"
    if not target.is_dir() or (target / "model.py").read_bytes() != code.read_bytes():
        shutil.rmtree(target, ignore_errors=True)
        with atomic_folder(target) as folder:
            shutil.copyfile(code, folder / "model.py")
    write_config(repository, ECHO, echo_config())


def stage_encoder(repository: Path, model: str, version: int, encoder: Path, source: str) -> Path:
    """Copy an encoder artifact and the code that serves it into `repository/model/version`, all or nothing.

    Args:
        encoder: verified folder of the encoder artifact (encoder.onnx, tokenizer.json, contract.json).
        source: what the version is made of, `encoder:SHA256`; staging the same source again does nothing.

    Raises:
        ArtifactError: the artifact lacks a file, or that version exists and was made from another source.
    """
    for name in ENCODER_FILES:
        if not (encoder / name).is_file():
            raise ArtifactError(f"{encoder}: no {name}, so it cannot be served; run stage distil again")
    target = repository / model / str(version)
    if target.is_dir():
        staged = version_source(repository, model, version)
        if staged != source:
            raise ArtifactError(f"{target}: was made from {staged}, not from {source}; give this one another version")
        return target
    with atomic_folder(target) as folder:
        for name in ENCODER_FILES:
            shutil.copyfile(encoder / name, folder / name)
        shutil.copyfile(_MODELS / "encoder.py", folder / "model.py")
        _copy_library(folder / "library")
        files = {path.relative_to(folder).as_posix(): sha256(path) for path in folder.rglob("*") if path.is_file()}
        (folder / SOURCE).write_text(json.dumps({"source": source, "files": files}, indent=1, sort_keys=True) + "\n")
    return target


def _copy_library(folder: Path) -> None:
    for name in LIBRARY:
        target = folder / "accordion" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / "accordion" / name, target)
    for package in (folder / "accordion").rglob("*"):
        if package.is_dir():
            (package / "__init__.py").touch()
    (folder / "accordion" / "__init__.py").touch()


def version_source(repository: Path, model: str, version: int) -> str:
    """What a staged version was made from, `encoder:SHA256`."""
    path = repository / model / str(version) / SOURCE
    if not path.is_file():
        raise ArtifactError(f"{path}: missing, so the version is unfinished; remove its folder")
    return json.loads(path.read_text())["source"]


def versions(repository: Path, model: str) -> list[int]:
    """Staged versions of `model`, ascending."""
    folder = repository / model
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit() and path.is_dir())


def collect(repository: Path, model: str, keep: Sequence[int], newest: int) -> list[int]:
    """Remove staged versions other than `keep` and the `newest` newest; returns what was removed."""
    present = versions(repository, model)
    spared = set(keep) | set(present[len(present) - newest :] if newest else [])
    removed = [version for version in present if version not in spared]
    served = set(read_config(repository / model / "config.pbtxt").version_policy.specific.versions)
    if served & set(removed):
        raise ServiceError(f"{model}: versions {sorted(served & set(removed))} are served and cannot be removed")
    for version in removed:
        shutil.rmtree(repository / model / str(version))
    return removed
