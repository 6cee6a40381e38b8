"""Versions of data: listed with who used them, compared, restored whole or refused."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from accordion.cli import app
from accordion.config.data import AudioTokenizerConfig, TextTokenizerConfig, VisionTokenizerConfig
from accordion.data.tokenizers.audio import AudioTokenizer
from accordion.data.tokenizers.text_training import fit, train_text_tokenizer
from accordion.data.tokenizers.vision import VisionTokenizer
from accordion.lookup import known, store, versions
from accordion.store import Artifact
from tests.small_corpus import tables, write_corpus


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ACCORDION_HOME", str(tmp_path / "runs"))
    return tmp_path


def publish(folder: Path, kind: str, config: dict | None = None, **parents: Artifact) -> Artifact:
    with store().staging("toy") as staging:
        shutil.copytree(folder, staging, dirs_exist_ok=True)
        artifact = store().publish(
            staging, kind=kind, stage="toy", config=config or {}, parents=parents, created={}
        )  # fmt: skip
    versions().add(artifact, f"toy of run {kind}-1", profile="smoke")
    return artifact


def corpora(home: Path) -> tuple[Artifact, Artifact]:
    content = tables()
    first = publish(write_corpus(home / "one", content), "corpus", {"seed": 0})
    content["text"]["language"] = "en"
    content["text"]["text"] *= 40
    content["audio"] = content["audio"].iloc[:2]
    return first, publish(write_corpus(home / "two", content), "corpus", {"seed": 1})


def accordion(*arguments: object, fails: bool = False) -> str:
    done = CliRunner().invoke(app, ["data", *map(str, arguments)])
    assert (done.exit_code != 0) == fails, done.output
    return done.output


def test_lists_versions_with_the_runs_that_used_them(home: Path) -> None:
    assert "no versions yet" in accordion("list")
    first, second = corpora(home)
    versions().mark([first], "run later", profile="other")
    lines = accordion("list").splitlines()
    assert [line.split()[1][:23] for line in lines] == [str(first)[:23], str(second)[:23]]
    assert "2 runs of other, smoke" in lines[0] and "MiB" in lines[0]
    shutil.rmtree(store().path(second))
    entries = json.loads(accordion("list", "corpus", "--json"))
    assert [entry["in_store"] for entry in entries] == [True, False] and entries[1]["files"] > 5


def test_compares_corpora_by_counts_mixes_lengths_and_settings(home: Path) -> None:
    first, second = corpora(home)
    text = accordion("compare", first, str(second)[:20])
    assert "settings  seed" in text and "text, characters" in text and "Kolmogorov-Smirnov" in text
    assert "audio rows, train" in text and "6 -> 2" in text
    found = json.loads(accordion("compare", first, second, "--json"))
    shifts = {(shift["figure"], shift["measure"]): shift for shift in found["shifts"]}
    assert shifts["text languages", "Jensen-Shannon"]["value"] == pytest.approx(0.3113, abs=1e-3)
    same = json.loads(accordion("compare", first, first, "--json"))
    assert all(shift["within"] for shift in same["shifts"]) and not same["settings"]


def test_compares_text_tokenizers_by_vocabulary_and_fertility(home: Path) -> None:
    content = tables()
    content["text"]["text"] = [f"the quick brown fox number {n} jumps over lazy dogs" for n in range(8)]
    corpus = publish(write_corpus(home / "one", content), "corpus")
    made = []
    for size in (400, 420):
        out = home / f"tokenizer{size}"
        out.mkdir()
        metrics = train_text_tokenizer(TextTokenizerConfig(vocabulary=size), out=out, corpus=store().path(corpus))
        metrics.pop("speed", None)
        (out / "metrics.json").write_text(json.dumps(metrics))
        made.append(publish(out, "tokenizer-text", {"vocabulary": size}, corpus=corpus))
    found = json.loads(accordion("compare", *made, "--json"))
    words = found["vocabulary"]
    assert words["shared"] == 384 and words["only_now"] > 0 and words["overlap"] < 1
    assert words["characters_per_token_now"] > words["characters_per_token_before"]
    assert found["settings"]["vocabulary"] == [400, 420]
    assert "cannot be compared" in accordion("compare", corpus, made[0], fails=True)


def test_restores_into_a_folder_and_refuses_a_damaged_remote(home: Path) -> None:
    first, _ = corpora(home)
    shutil.rmtree(store().path(first))
    assert "restored, every file as recorded" in accordion("restore", first, "--to", home / "new")
    assert pd.read_parquet(home / "new/text.parquet").equals(pd.read_parquet(home / "one/text.parquet"))
    assert "is there already" in accordion("restore", first, "--to", home / "new", fails=True)
    shutil.rmtree(store().path(first))
    shutil.rmtree(store().root / ".dvc/cache")
    wanted = (home / "one/audio.parquet").read_bytes()
    (damaged,) = [p for p in (home / "runs/dvc-remote").rglob("*") if p.is_file() and p.read_bytes() == wanted]
    damaged.chmod(0o644)
    damaged.write_bytes(wanted[:-1] + bytes([wanted[-1] ^ 1]))
    refusal = accordion("restore", first, "--to", home / "other", fails=True)
    assert f"object {damaged} (audio.parquet) was altered" in refusal and not (home / "other").exists()


@pytest.mark.parametrize("kind", ["tokenizer-text", "tokenizer-vision", "tokenizer-audio"])
def test_tokenizers_are_listed_compared_restored_and_refused_like_data(kind: str, home: Path) -> None:
    made, corpus = [], publish(write_corpus(home / "one", tables()), "corpus")
    for number in range(2):
        out = home / f"tokenizer{number}"
        out.mkdir()
        if kind == "tokenizer-text":
            fit(TextTokenizerConfig(vocabulary=400), [f"some words {number} and more words"] * 9).save(out)
        elif kind == "tokenizer-vision":
            VisionTokenizer(VisionTokenizerConfig(channels=8 + 4 * number, image_size=16, scales=(1, 2, 4))).save(out)
        else:
            AudioTokenizer(AudioTokenizerConfig(channels=8 + number)).save(out)
        (out / "metrics.json").write_text(json.dumps({"measured": {"value": [0.5, 0.25 + number]}}))
        made.append(publish(out, kind, {"channels": 8 + number}, corpus=corpus))
    assert all(str(each)[:30] in accordion("list") for each in made)
    found = json.loads(accordion("compare", *made, "--json"))
    assert found["settings"]["channels"] == [8, 9] and found["figures"]["measured.value.2"] == [0.25, 1.25]
    assert found["sizes"]["files"][0] == found["sizes"]["files"][1] >= 2
    wanted = max((path for path in store().path(made[0]).iterdir() if path.is_file()), key=lambda path: path.name)
    name, data = wanted.name, wanted.read_bytes()
    shutil.rmtree(store().path(made[0]))
    assert "every file as recorded" in accordion("restore", made[0], "--to", home / "new")
    assert (home / "new" / name).read_bytes() == data
    shutil.rmtree(store().path(made[0]))
    shutil.rmtree(store().root / ".dvc/cache")
    (damaged,) = [p for p in (home / "runs/dvc-remote").rglob("*") if p.is_file() and p.read_bytes() == data]
    damaged.chmod(0o644)
    damaged.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert f"({name}) was altered" in accordion("restore", made[0], "--to", home / "other", fails=True)
    assert not (home / "other").exists() and not store().path(made[0]).exists()


def test_what_is_unknown_is_answered_with_what_is_near(home: Path) -> None:
    first, second = corpora(home)
    assert known("corpus") == second and known(str(first)[:20]) == first
    assert "did you mean corpus?" in accordion("restore", "corpora", fails=True)
    wrong = first.digest[:6] + ("0" if first.digest[6] != "0" else "1")
    assert f"near it are: corpus:{first.digest[:16]}" in accordion("restore", f"corpus:{wrong}", fails=True)
