"""Where artifacts live: atomic writes, manifests with SHA-256, the content-addressed store, DVC, lineage."""

from accordion.store.artifacts import Artifact, Store
from accordion.store.atomic import atomic_folder, atomic_write
from accordion.store.manifest import MANIFEST, Manifest

__all__ = ["MANIFEST", "Artifact", "Manifest", "Store", "atomic_folder", "atomic_write"]
