"""What the registry accepts: which files a version may hold, and which version may become champion."""

from collections.abc import Mapping
from pathlib import Path

from accordion.errors import ArtifactError

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
SUFFIXES = {".safetensors", ".onnx", ".json", ".npz"}


def check_files(folder: Path) -> list[Path]:
    """Files of an encoder that are registered: weights as safetensors or ONNX, never a pickle.

    Raises:
        ArtifactError: a file of another format; the text names it.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        if path.suffix not in SUFFIXES:
            raise ArtifactError(f"{path}: only {', '.join(sorted(SUFFIXES))} files are registered")
    return files


def check_promotable(model: str, version: int, tags: Mapping[str, str]) -> None:
    """Refuse a version whose gate did not pass.

    Raises:
        ArtifactError: it failed its gate or was never judged.
    """
    verdict = tags.get("gate.passed")
    if verdict != "true":
        state = "has no verdict" if verdict is None else "failed its gate"
        raise ArtifactError(f"{model} version {version} {state}; only a version that passed can be promoted")
