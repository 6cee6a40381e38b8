"""Finding artifacts by what a person types: `KIND`, `KIND:DIGEST` (or its beginning), or a folder."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from accordion.errors import ArtifactError
from accordion.home import home
from accordion.store import MANIFEST, Artifact, Manifest, Store
from accordion.store.dvc import Versions


def store() -> Store:
    """The artifact store of this home."""
    return Store(home() / "store")


def find(text: str) -> Path:
    """The folder of an artifact, not verified yet.

    Args:
        text: a folder with a manifest; `kind:digest`, where the beginning of the digest is enough; or a kind,
            which means the newest artifact of that kind.

    Raises:
        ArtifactError: nothing or more than one thing fits; the text names what is there.
    """
    if (Path(text) / MANIFEST).is_file():
        return Path(text)
    kind, _, digest = text.partition(":")
    here = [artifact for artifact in store().list() if artifact.kind == kind]
    if not here:
        kinds = sorted({artifact.kind for artifact in store().list()})
        raise ArtifactError(
            f"{text!r}: no such folder and no artifact of that kind in {store().root}; "
            f"kinds there: {', '.join(kinds) or 'none, run the pipeline first (`make run`)'}"
        )
    fitting = [artifact for artifact in here if artifact.digest.startswith(digest)]
    if digest and len(fitting) != 1:
        raise ArtifactError(
            f"{text!r}: fits {len(fitting)} artifacts; there are: "
            + ", ".join(f"{artifact.kind}:{artifact.digest[:16]}" for artifact in here)
        )
    return store().path(fitting[-1])


def versions() -> Versions:
    """The DVC repository around the store, with the remote that the runs used."""
    return Versions.around(store(), str(home() / "dvc-remote"))


def known(text: str) -> Artifact:
    """The artifact that `KIND` (the newest) or `KIND:DIGEST` (the beginning is enough) names, in the store or in DVC.

    Raises:
        ArtifactError: nothing or more than one thing fits; the text names what is near.
    """
    if (Path(text) / MANIFEST).is_file():
        manifest = Manifest.read(Path(text))
        return Artifact(manifest.kind, manifest.digest)
    recorded = dict.fromkeys(record.artifact for record in versions().history())
    everything = list(dict.fromkeys([*recorded, *map(str, store().list())]))
    kind, _, digest = text.partition(":")
    here = [Artifact.parse(each) for each in everything if each.startswith(f"{kind}:")]
    if not here:
        kinds = sorted({each.partition(":")[0] for each in everything})
        near = difflib.get_close_matches(kind, kinds, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(kinds) or 'none yet'}"
        raise ArtifactError(f"{text!r}: no artifact of kind {kind!r} in {store().root} or its DVC history; {hint}")
    fitting = [artifact for artifact in here if artifact.digest.startswith(digest)]
    if not fitting or (digest and len(fitting) > 1):
        near = difflib.get_close_matches(digest, [artifact.digest[:16] for artifact in here], n=3, cutoff=0.0)
        raise ArtifactError(
            f"{text!r}: fits {len(fitting)} of {len(here)} versions; near it are: "
            + ", ".join(f"{kind}:{each}" for each in near)
        )
    return fitting[-1]


def open_verified(text: str) -> Path:
    """`find`, then hash every file against the manifest.

    Raises:
        ArtifactError: it is not found, or was altered.
    """
    folder = find(text)
    Manifest.read(folder).verify(folder)
    return folder


def ancestor(folder: Path, kind: str) -> Path:
    """The verified folder of the nearest artifact of `kind` that `folder` was made from.

    Raises:
        ArtifactError: it was made from none, or that one is not in the store.
    """
    for link in lineage(folder):
        if link.artifact.kind == kind:
            return store().open(link.artifact)
    raise ArtifactError(f"{folder}: was not made from any {kind}; name one")


@dataclass(frozen=True)
class Link:
    """One edge of the lineage tree: under which name, at which depth, which artifact; None when it is not here."""

    depth: int
    name: str
    artifact: Artifact
    manifest: Manifest | None
    repeated: bool


def lineage(folder: Path) -> Iterator[Link]:
    """Everything `folder` was made from, depth first; an artifact met again is given without its own parents."""
    seen: set[Artifact] = set()
    stack = _parents(Manifest.read(folder), 1)
    while stack:
        depth, name, artifact = stack.pop()
        present = (store().path(artifact) / MANIFEST).is_file()
        manifest = store().manifest(artifact) if present else None
        yield Link(depth, name, artifact, manifest, artifact in seen)
        if manifest is not None and artifact not in seen:
            stack += _parents(manifest, depth + 1)
        seen.add(artifact)


def _parents(manifest: Manifest, depth: int) -> list[tuple[int, str, Artifact]]:
    return [(depth, name, Artifact.parse(text)) for name, text in sorted(manifest.parents.items(), reverse=True)]
