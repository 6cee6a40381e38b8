"""Where ingest reads: the tier's folder, the user's own, and what a missing one says."""

import json
from pathlib import Path

import pytest
import yaml

from accordion.config import load_profile
from accordion.config.data import IngestConfig, ValidateConfig
from accordion.config.profile import CONFIGS
from accordion.data.expectations.raw import LANGUAGE_TAG, known_languages
from accordion.data.tier import full_tier, source_folder
from accordion.errors import ConfigError, DataError
from accordion.home import REPOSITORY


def test_the_profiles_choose_the_tier() -> None:
    assert load_profile("smoke").ingest.tier == "sample"
    for name in ("workstation", "cluster"):
        values = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        assert values["ingest"]["tier"] == "full" and values["validate_data"]["other_languages"]
    with pytest.raises(ConfigError, match=r"ingest\.tier: got 'large'"):
        load_profile("smoke", ("ingest.tier=large",))


def test_a_full_tier_that_was_not_built_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCORDION_HOME", str(tmp_path))
    assert source_folder(IngestConfig()) == REPOSITORY / "data/sample"
    config = IngestConfig(tier="full")
    full_tier().mkdir(parents=True)  # half a tier is none
    with pytest.raises(DataError, match=r"ingest\.tier: full, but .* run `make data`"):
        source_folder(config)
    (full_tier() / "complete.json").write_text(json.dumps({}))
    assert source_folder(config) == tmp_path / "data/full"
    assert source_folder(IngestConfig(tier="full", source=str(tmp_path))) == tmp_path
    with pytest.raises(DataError, match=r"ingest\.source: .* missing"):
        source_folder(IngestConfig(source=str(tmp_path / "nowhere")))


def test_other_languages_are_let_in_only_where_the_profile_says_so() -> None:
    assert known_languages(ValidateConfig(), ["en"]).arguments["value_set"] == ["en"]
    assert known_languages(ValidateConfig(other_languages=True), ["en"]).arguments["regex"] == LANGUAGE_TAG
