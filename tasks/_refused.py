"""What a validation refused, kept although its stage failed: as an artifact, in DVC, in MLflow, and in a deck."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accordion.store import Artifact
from tasks import _deck
from tasks._run import Run, store, versions

SUFFIX = "-refused"


def keep(
    stage: Any, run: Run, config: str, inputs: Mapping[str, Artifact], folder: Path, created: Mapping[str, Any]
) -> tuple[Artifact, str]:
    """Publish a copy of `folder` (result, page, failing rows) as `KIND-refused` and version it.

    Returns:
        the artifact, and the HTML of the deck that shows its pages.
    """
    with store().staging(stage.name) as out:
        shutil.copytree(folder, out, dirs_exist_ok=True)
        artifact = store().publish(
            out, kind=stage.kind + SUFFIX, stage=stage.name, config=json.loads(config), parents=inputs, created=created
        )
    versions(run.settings).add(artifact, f"{stage.name} of run {run.id} refused its data", profile=run.profile)
    about = {"refused": str(artifact), **{name: str(given) for name, given in inputs.items()}}
    pages = [store().path(artifact) / page for page in stage.pages if (folder / page).is_file()]
    return artifact, _deck.render(f"{stage.name}: refused", about, config, "", {}, pages)
