"""The command line: errors in one line with exit code 2, artifacts found by what a person types, quick help."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from accordion.cli import app
from accordion.lookup import ancestor, find
from accordion.model import Model, save_model
from accordion.store import Store
from tests.unit.model.synthetic import small_config
from tests.unit.train.synthetic_shards import tiny_config, write_shards

runner = CliRunner()


@pytest.fixture
def family(tmp_path, monkeypatch):
    """A corpus, and an encoder made from it through a tokenizer, in a home of their own."""
    monkeypatch.setenv("ACCORDION_HOME", str(tmp_path))
    store, made = Store(tmp_path / "store"), {}
    for kind, parents in (("corpus", []), ("tokenizer-text", ["corpus"]), ("encoder", ["corpus", "tokenizer-text"])):
        with store.staging(kind) as folder:
            (folder / "data.txt").write_text(kind)
            made[kind] = store.publish(
                folder, kind=kind, stage=f"make-{kind}", config={}, parents={p: made[p] for p in parents}, created={}
            )
    return made


def test_inspect_verifies_and_prints_the_lineage(family, tmp_path):
    shown = runner.invoke(app, ["inspect", "encoder"])
    assert shown.exit_code == 0
    assert str(family["encoder"]) in shown.stdout and "verified 1 files" in shown.stdout
    assert shown.stdout.count(f"corpus:{family['corpus'].digest[:16]}") == 2
    (Store(tmp_path / "store").path(family["encoder"]) / "data.txt").write_text("altered")
    refused = runner.invoke(app, ["inspect", str(family["encoder"])[:16]])
    assert refused.exit_code == 2 and "data.txt was altered" in refused.output
    assert "Traceback" not in refused.output


def test_artifacts_are_found_by_kind_beginning_and_folder(family, tmp_path):
    wanted = Store(tmp_path / "store").path(family["encoder"])
    assert find("encoder") == find(f"encoder:{family['encoder'].digest[:6]}") == find(str(wanted)) == wanted
    assert ancestor(wanted, "corpus") == Store(tmp_path / "store").path(family["corpus"])


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["inspect", "nothing"], "kinds there: corpus, encoder, tokenizer-text"),
        (["inspect", "encoder:ffff"], "fits 0 artifacts"),
        (["generate", " "], "the prompt is empty"),
        (["generate", "3 + 4"], "'policy': no such folder"),
        (["generate"], "got nothing; give one of a question"),
        (["generate", "3 + 4", "--text", "x"], "got question and text"),
        (["generate", "--text", "x", "--out", "x.png"], "no way from text to image; there are: question to text"),
        (["generate", "--text", "x", "--out", "x.gif"], "wants .png (an image), .mp4 (a film) or .wav"),
        (["generate", "--image", "x.png", "--top-p", "0"], "top_p 0"),
        (["generate", "--audio", "x.wav", "--max-tokens", "0"], "0 tokens"),
        (["query", "x", "--domain", "nowhere"], ""),
        (["report"], "no run.json"),
        (["up", "--only", "oracle"], "there are: mlflow, triton"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(family, arguments, why):
    result = runner.invoke(app, arguments)
    assert result.exit_code == (2 if why else result.exit_code) and result.exit_code != 0
    assert why in result.output and "Traceback" not in result.output


def test_status_says_what_does_not_run_and_how_to_start_it(family):
    result = runner.invoke(app, ["status", "--latest"])
    assert result.exit_code == 0
    assert result.stdout.count("accordion up") == 2 and "make run" in result.stdout


def test_help_imports_none_of_the_heavy_libraries():
    code = (
        "import sys; from accordion.cli import app\n"
        "heavy = {'torch', 'mlflow', 'tritonclient', 'flytekit', 'numpy', 'pandas'} & set(sys.modules)\n"
        "raise SystemExit(', '.join(heavy) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_members_are_searched_and_recovered_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCORDION_HOME", str(tmp_path / "home"))
    store = Store(tmp_path / "home" / "store")
    with store.staging("pack") as folder:
        shards = store.publish(write_shards(folder), kind="shards", stage="pack", config={}, parents={}, created={})
    settings, parents = tiny_config(validation_sequences=8).model_dump(mode="json"), {"shards": shards}
    for kind, config in (("checkpoint", settings), ("policy", {})):
        with store.staging(kind) as folder:
            save_model(Model(small_config(), seed=1), folder)
            made = store.publish(folder, kind=kind, stage=kind, config=config, parents=parents, created={})
        parents = {"checkpoint": made}
    found = tmp_path / "found"
    few = ["--trials", "4", "--sequences", "2", "--members", "2"]
    shown = runner.invoke(app, ["search-family", str(found), *few])
    assert shown.exit_code == 0, shown.output
    assert "4 tried" in shown.output and (found / "pareto.png").stat().st_size > 1000
    member = next((found / "members").iterdir())
    shown = runner.invoke(app, ["recover", str(member), str(tmp_path / "better"), "--steps", "2"])
    assert shown.exit_code == 0 and "2 steps" in shown.output, shown.output
    assert (tmp_path / "better" / "README.md").is_file()
    none = runner.invoke(app, ["search-family", str(tmp_path / "none"), *few, "--max-parameters", "10"])
    assert none.exit_code == 2 and "no member of this model fits" in none.output
    assert not (tmp_path / "none").exists()
    again = runner.invoke(app, ["search-family", str(found), *few])
    assert again.exit_code == 2 and "exists; name a new folder" in again.output
