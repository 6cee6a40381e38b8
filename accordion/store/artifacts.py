"""The artifact store: folders addressed by kind and digest, published atomically, verified before each read."""

import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accordion.errors import ArtifactError
from accordion.store.atomic import enough_disk, sync_folder, sync_tree
from accordion.store.manifest import Manifest, describe_files

_KIND = re.compile(r"[a-z][a-z0-9-]*")


@dataclass(frozen=True)
class Artifact:
    """What flows between stages: the kind of a folder and the SHA-256 digest of its manifest."""

    kind: str
    digest: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.digest}"

    @classmethod
    def parse(cls, text: str) -> "Artifact":
        """Read `kind:digest` as printed by `str`."""
        kind, _, digest = text.partition(":")
        if not _KIND.fullmatch(kind) or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ArtifactError(f"{text!r}: not an artifact; expected KIND:SHA256, as `accordion status` prints it")
        return cls(kind, digest)


class Store:
    """A folder of artifacts, `root/kind/<first 16 of digest>/`."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def path(self, artifact: Artifact) -> Path:
        """Where `artifact` is or would be; nothing is checked."""
        return self.root / artifact.kind / artifact.digest[:16]

    def open(self, artifact: Artifact) -> Path:
        """The artifact's folder, after its manifest and every file were verified.

        Raises:
            ArtifactError: it is missing, unfinished, altered, or not the artifact asked for.
        """
        folder = self.path(artifact)
        if not folder.is_dir():
            raise ArtifactError(
                f"{artifact.kind} {artifact.digest[:16]} is not in {self.root}; run its stage again or `dvc pull` it"
            )
        manifest = self.manifest(artifact)
        manifest.verify(folder)
        return folder

    def manifest(self, artifact: Artifact) -> Manifest:
        """The manifest of `artifact`, checked against its digest but not against the files."""
        manifest = Manifest.read(self.path(artifact))
        if (manifest.kind, manifest.digest) != (artifact.kind, artifact.digest):
            raise ArtifactError(f"{self.path(artifact)}: holds {manifest.kind}:{manifest.digest}, not {artifact}")
        return manifest

    @contextmanager
    def staging(self, stage: str) -> Iterator[Path]:
        """A fresh folder for a stage to write into; gone afterwards unless `publish` took it.

        Raises:
            StorageError: the disk was full before the stage ended.
        """
        folder = self.root / ".staging" / f"{stage}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        with enough_disk(folder):
            folder.mkdir(parents=True)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def publish(
        self,
        folder: Path,
        *,
        kind: str,
        stage: str,
        config: Mapping[str, Any],
        parents: Mapping[str, Artifact],
        created: Mapping[str, Any],
    ) -> Artifact:
        """Write the manifest of a filled staging folder and move it to its address, all or nothing.

        If the same artifact is already there and whole, the new copy is dropped; a damaged one is replaced.
        """
        if not _KIND.fullmatch(kind):
            raise ArtifactError(f"{kind!r}: an artifact kind is lower-case words joined by '-'")
        manifest = Manifest(
            kind=kind,
            stage=stage,
            config=dict(config),
            parents={name: str(parent) for name, parent in sorted(parents.items())},
            files=describe_files(folder),
            created=dict(created),
        )
        manifest.write(folder)
        sync_tree(folder)
        artifact = Artifact(kind, manifest.digest)
        target = self.path(artifact)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            try:
                self.open(artifact)
                return artifact
            except ArtifactError:
                self.quarantine(artifact)
        os.rename(folder, target)
        sync_folder(target.parent)
        return artifact

    def quarantine(self, artifact: Artifact) -> Path:
        """Move a damaged artifact aside (never deleted) and say where to."""
        target = self.root / ".quarantine" / f"{artifact.kind}-{artifact.digest[:16]}-{uuid.uuid4().hex[:8]}"
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(self.path(artifact), target)
        return target

    def list(self) -> Iterator[Artifact]:
        """Every finished artifact in the store, by kind, newest last."""
        if not self.root.is_dir():
            return
        for kind in sorted(p for p in self.root.iterdir() if p.is_dir() and _KIND.fullmatch(p.name)):
            folders = [f for f in kind.iterdir() if (f / "manifest.json").is_file()]
            for folder in sorted(folders, key=lambda f: (f / "manifest.json").stat().st_mtime):
                yield Artifact(kind.name, Manifest.read(folder).digest)
