"""manifest.json: what an artifact is, what it was made from, and the SHA-256 of each of its files.

It is written last, so a folder without one is unfinished. Its `digest` covers everything that
determines the content (kind, schema, stage, config, parents, files) and nothing that only describes
the making (time, duration, commit), so that the same work gives the same digest.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accordion.errors import ArtifactError
from accordion.store.atomic import atomic_write

MANIFEST = "manifest.json"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The identity and history of one artifact folder.

    Attributes:
        kind: what the folder holds, for example `shards` or `checkpoint`.
        stage: the stage that made it.
        config: the stage's settings, as plain JSON.
        parents: input name -> `kind:digest` of each artifact it was made from.
        files: path within the folder -> `{"sha256": hex, "bytes": size}`.
        created: how it came to be (`at` ISO time, `seconds`, `peak_rss_bytes`, `git_commit`, ...);
            not part of the digest.
    """

    kind: str
    stage: str
    config: dict[str, Any]
    parents: dict[str, str]
    files: dict[str, dict[str, Any]]
    created: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the canonical JSON of all fields but `created`."""
        fields = asdict(self)
        del fields["created"]
        return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into `folder`, atomically, after every other file is there."""
        document = {"digest": self.digest, **asdict(self)}
        atomic_write(folder / MANIFEST, json.dumps(document, indent=1, sort_keys=True) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read a folder's manifest and check that it agrees with its own digest (files: see `verify`)."""
        path = folder / MANIFEST
        if not path.is_file():
            raise ArtifactError(f"{folder}: no {MANIFEST}, so it is unfinished or no artifact; run its stage again")
        try:
            document = json.loads(path.read_text())
            digest = document.pop("digest")
            manifest = cls(**document)
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{path}: not a readable manifest ({error}); restore it with DVC or run its stage again"
            ) from None
        if manifest.schema != SCHEMA:
            raise ArtifactError(f"{path}: schema {manifest.schema}, this version reads {SCHEMA}; run its stage again")
        if manifest.digest != digest:
            raise ArtifactError(f"{path}: altered since it was written; restore it with DVC or run its stage again")
        return manifest

    def verify(self, folder: Path) -> None:
        """Hash every file of `folder` against this manifest.

        Raises:
            ArtifactError: names each file that is missing, altered or not listed.
        """
        problems = []
        present = list_files(folder)
        for name, entry in self.files.items():
            if name not in present:
                problems.append(f"{name} is missing")
            elif present[name].stat().st_size != entry["bytes"] or sha256(present[name]) != entry["sha256"]:
                problems.append(f"{name} was altered")
        problems += [f"{name} is not listed" for name in present if name not in self.files]
        if problems:
            raise ArtifactError(
                f"{folder}: {'; '.join(problems)}; restore it with DVC (`dvc checkout`) or run stage {self.stage} again"
            )


def identity(folder: Path) -> str:
    """`kind:digest` of the artifact in `folder`, or an empty text for a folder without a manifest."""
    if not (folder / MANIFEST).is_file():
        return ""
    manifest = Manifest.read(folder)
    return f"{manifest.kind}:{manifest.digest}"


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Path -> SHA-256 and size of every file under `folder`, for a new manifest."""
    return {
        name: {"sha256": sha256(path), "bytes": path.stat().st_size}
        for name, path in sorted(list_files(folder).items())
    }


def list_files(folder: Path) -> dict[str, Path]:
    """Every regular file under `folder` but the manifest itself, by POSIX path within it."""
    if any(path.is_symlink() for path in folder.rglob("*")):
        raise ArtifactError(f"{folder}: holds symbolic links; an artifact holds its own files only")
    return {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and path != folder / MANIFEST
    }


def sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
