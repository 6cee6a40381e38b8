"""What an artifact was made from, read back from the manifests."""

from collections.abc import Iterator
from dataclasses import dataclass

from accordion.store.artifacts import Artifact, Store
from accordion.store.manifest import Manifest


@dataclass(frozen=True)
class Link:
    """One artifact of a lineage: how deep below the asked-for one, the name its child gives it, its manifest.

    `manifest` is None where the store no longer holds the artifact.
    """

    depth: int
    name: str
    artifact: Artifact
    manifest: Manifest | None


def walk(store: Store, artifact: Artifact, name: str = "", depth: int = 0) -> Iterator[Link]:
    """`artifact` and, below it, everything it was made from, depth first; an artifact used twice comes twice."""
    manifest = store.manifest(artifact) if store.path(artifact).is_dir() else None
    yield Link(depth, name, artifact, manifest)
    for parent, reference in sorted(manifest.parents.items()) if manifest else ():
        yield from walk(store, Artifact.parse(reference), parent, depth + 1)


def ancestors(store: Store, artifact: Artifact) -> dict[str, Artifact]:
    """Kind -> artifact of everything `artifact` was made from, itself included.

    A kind occurs once: a run makes one artifact of each kind, and the one nearest to `artifact` is kept.
    """
    found: dict[str, tuple[int, Artifact]] = {}
    for link in walk(store, artifact):
        if link.artifact.kind not in found or link.depth < found[link.artifact.kind][0]:
            found[link.artifact.kind] = (link.depth, link.artifact)
    return {kind: nearest for kind, (_, nearest) in found.items()}


def tree(store: Store, artifact: Artifact) -> str:
    """The lineage as indented lines: kind, first of its digest, stage, when it was made, in how many seconds."""
    lines = []
    for link in walk(store, artifact):
        text = f"{'  ' * link.depth}{link.artifact.kind} {link.artifact.digest[:16]}"
        if link.manifest is None:
            lines.append(f"{text}  (no longer in the store)")
            continue
        created = link.manifest.created
        seconds = f"{created['seconds']:.1f} s" if "seconds" in created else "unknown time"
        lines.append(f"{text}  by {link.manifest.stage}, {created.get('at', 'unknown date')}, {seconds}")
    return "\n".join(lines)
