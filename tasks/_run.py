"""What every task of one execution shares: the run's identity, the store, the DVC versions, the local cache."""

import json
import os
import re
import secrets
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from flytekit.core import local_cache

from accordion.config.runtime import RuntimeConfig
from accordion.home import home
from accordion.observe import say
from accordion.store import Artifact, Store
from accordion.store.dvc import Versions

_versions: dict[tuple[Path, str], Versions] = {}


@dataclass(frozen=True)
class Run:
    """One execution of a workflow. It is passed to every task but is no part of a cache key.

    Attributes:
        id: sortable and unique, for example `20261121-220512-3f9a`.
        profile: name of the profile.
        runtime: the profile's runtime section, as JSON.
        tracking_uri, parent: the MLflow server and the run there that holds the runs of the stages.
        commit: git commit of the code, with `-dirty` when files differ from it.
        execution: Flyte's execution id.
        overrides: of the profile, as they were given.
    """

    id: str
    profile: str
    runtime: str
    tracking_uri: str
    parent: str
    commit: str
    execution: str
    overrides: list[str] = field(default_factory=list)

    @property
    def settings(self) -> RuntimeConfig:
        return RuntimeConfig.from_json(self.runtime)

    @property
    def history(self) -> Path:
        """Folder of this run's records: stages/, decks/, summary.json, report.html."""
        return home() / "history" / self.id


def new_run_id() -> str:
    """A new run's id: local time and four random hex digits."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def store() -> Store:
    """The artifact store of this home."""
    return Store(home() / "store")


def versions(runtime: RuntimeConfig) -> Versions:
    """The DVC repository around the store; one object for a process, since opening costs."""
    remote = runtime.services.dvc_remote or str(home() / "dvc-remote")
    key = (store().root, remote)
    if key not in _versions:
        _versions[key] = Versions(store(), remote)
    return _versions[key]


def resolve(artifact: Artifact, runtime: RuntimeConfig) -> Path:
    """The verified folder of `artifact`; one that is missing or damaged is brought back by DVC.

    Raises:
        ArtifactError: it is not in the store and DVC cannot bring it back whole.
    """
    return versions(runtime).open(artifact, say)


def sweep_staging() -> None:
    """Remove what killed processes left in the store's staging folder."""
    staging = store().root / ".staging"
    for folder in staging.iterdir() if staging.is_dir() else ():
        process = re.search(r"-(\d+)-[0-9a-f]{8}$", folder.name)
        if process and not Path(f"/proc/{process[1]}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def point_latest(run: Run) -> None:
    """Make `home()/latest` a link to this run's history, in one step."""
    link = home() / f".latest-{run.id}"
    link.unlink(missing_ok=True)
    link.symlink_to(Path("history") / run.id)
    os.replace(link, home() / "latest")


def use_home_cache() -> None:
    """Keep Flyte's local cache in this home, so that ACCORDION_HOME isolates it (flytekit's default is ~/.flyte)."""
    location = str(home() / "flyte" / "cache")
    if location != local_cache.CACHE_LOCATION:
        local_cache.CACHE_LOCATION = location
        local_cache.LocalTaskCache._initialized = False


def read_metrics(artifact: Artifact, runtime: RuntimeConfig) -> dict:
    """The metrics that the stage which made `artifact` returned."""
    return json.loads((resolve(artifact, runtime) / "metrics.json").read_text())


use_home_cache()
