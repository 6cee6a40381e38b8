"""The command line: errors in one line with exit code 2, artifacts found by what a person types, quick help."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from accordion.cli import app
from accordion.lookup import ancestor, find
from accordion.store import Store

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
