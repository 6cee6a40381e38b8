"""Source digest, staging sweep, the latest link: what a run does around its stages."""

import os
from pathlib import Path

import pytest

from accordion.config.data import IngestConfig
from accordion.config.runtime import RuntimeConfig
from accordion.errors import ArtifactError, DataError
from accordion.home import home
from tasks._run import Run, point_latest, store, sweep_staging
from tasks.configure import source_digest
from tasks.existing import existing


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCORDION_HOME", str(tmp_path / "runs"))


def test_the_source_digest_covers_names_and_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "a").write_text("one")
    config = IngestConfig(source=str(folder))
    digests = {source_digest(config)}
    (folder / "a").write_text("two")
    digests.add(source_digest(config))
    (folder / "a").rename(folder / "b")
    digests.add(source_digest(config))
    assert len(digests) == 3
    own = tmp_path / "own.jsonl"
    for text in ("one", "two"):
        own.write_text(text)
        sources = [{"kind": "text", "path": str(own)}]
        digests.add(source_digest(IngestConfig.parse({"source": str(folder), "sources": sources})))
    assert len(digests) == 5
    with pytest.raises(DataError, match=r"ingest\.source"):
        source_digest(IngestConfig(source=str(tmp_path / "absent")))


def test_sweeps_only_what_dead_processes_left() -> None:
    staging = store().root / ".staging"
    alive, dead = staging / f"toy-{os.getpid()}-0123abcd", staging / "toy-99999999-0123abcd"
    for folder in (alive, dead):
        folder.mkdir(parents=True)
    sweep_staging()
    assert [path.name for path in staging.iterdir()] == [alive.name]


def test_latest_follows_the_newest_run() -> None:
    for name in ("r1", "r2"):
        run = Run(name, "toy", "{}", "", "", "", "")
        run.history.mkdir(parents=True)
        point_latest(run)
    assert (home() / "latest").resolve() == home() / "history" / "r2"


def test_an_artifact_of_an_earlier_run_is_named_as_on_the_command_line() -> None:
    with store().staging("toy") as out:
        (out / "figure").write_text("1")
        made = store().publish(out, kind="toy", stage="toy", config={}, parents={}, created={})
    run = Run("r1", "toy", RuntimeConfig().model_dump_json(), "", "", "", "")
    for reference in (str(made), f"toy:{made.digest[:9]}", "toy"):
        assert existing(run=run, reference=reference, kind="toy") == made
    with pytest.raises(ArtifactError, match="wanted a policy"):
        existing(run=run, reference="toy", kind="policy")
    with pytest.raises(ArtifactError, match="fits 0 of 1 versions; near it are: toy:"):
        existing(run=run, reference="toy:ffff0000ffff", kind="toy")
