"""A spec written by hand: cut exactly, and every way to write it wrong is refused with the file and the key."""

import json

import pytest
from typer.testing import CliRunner

from accordion.cli import app
from accordion.errors import ConfigError
from accordion.extract.family import logit_difference
from accordion.extract.member import member_figures, weights_digest
from accordion.extract.spec import read_spec
from accordion.model import Model, SubmodelSpec, load_model, save_model
from accordion.store.manifest import Manifest, describe_files
from tests.unit.model.synthetic import small_batch, small_config

MINE = {"layers": [0, 2, 3, 4], "experts": [[1, 4], [0, 2, 5], [3], [0, 1, 2, 3, 4, 5]], "top_k": [2, 1, 1, 3]}
FULL = small_config()


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spec") / "policy"
    folder.mkdir()
    save_model(Model(FULL, seed=1), folder)
    Manifest(kind="policy", stage="rl", config={}, parents={}, files=describe_files(folder)).write(folder)
    return folder


def extract(*arguments):
    return CliRunner().invoke(app, ["extract", *map(str, arguments)])


def test_a_member_with_experts_and_top_k_of_its_own_in_each_layer_is_exact(policy, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps(MINE))
    shown = extract(tmp_path / "mine", "--spec", tmp_path / "mine.json", "--policy", policy)
    assert shown.exit_code == 0 and "4 layers, 2, 3, 1, 6 experts, top-2, 1, 3" in shown.output, shown.output
    full, part = load_model(policy), load_model(tmp_path / "mine")
    assert part.config.experts == (2, 3, 1, 6) and part.config.top_k == (2, 1, 1, 3)
    spec = read_spec(tmp_path / "mine.json", FULL, "")
    assert logit_difference(full, spec, part, small_batch(seed=6)) <= 1e-5
    card = (tmp_path / "mine/README.md").read_text()
    assert "| experts by layer | 2, 3, 1, 6 |" in card and "Not measured" in card
    assert "val_loss" not in member_figures(tmp_path / "mine")
    assert Manifest.read(tmp_path / "mine").parents == {"policy": f"policy:{Manifest.read(policy).digest}"}


def test_the_spec_of_a_member_cuts_the_same_member_again(policy, tmp_path):
    assert extract(tmp_path / "a", "--layers", 3, "--top-k", 2, "--policy", policy).exit_code == 0
    assert extract(tmp_path / "b", "--spec", tmp_path / "a/spec.json", "--policy", policy).exit_code == 0
    assert weights_digest(tmp_path / "a") == weights_digest(tmp_path / "b")
    assert load_model(tmp_path / "a").config.experts == (6, 6, 6)  # what is not given stays whole


def test_a_spec_for_other_weights_is_refused(tmp_path):
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({**MINE, "parent_sha256": "ab"}))
    assert read_spec(path, FULL, "ab") == SubmodelSpec((0, 2, 3, 4), ((1, 4), (0, 2, 5), (3,), tuple(range(6))),
                                                       (2, 1, 1, 3))  # fmt: skip
    with pytest.raises(ConfigError, match=r"parent_sha256: got ab, the weights here are cd; name the model"):
        read_spec(path, FULL, "cd")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"layers": None}, "layers: missing"),
        ({"layers": []}, "layers: got"),
        ({"layers": 3}, "layers: got 3"),
        ({"layers": [0, 2, 3, 9]}, r"layers \(0, 2, 3, 9\); wants ascending indices below 5"),
        ({"layers": [2, 0, 3, 4]}, "wants ascending indices"),
        ({"layers": [0, 2, 2, 4]}, "wants ascending indices"),
        ({"layers": [0, 1, 2, 3]}, r"layers \[4\] are missing; the first layer and the top 2"),
        ({"layers": [0, -1, 3, 4]}, r"layers\.1: got -1"),
        ({"layers": [0, 2.5, 3, 4]}, r"layers\.1: got 2\.5"),
        ({"layers": [0, True, 3, 4]}, r"layers\.1: got True"),
        ({"experts": [[0], [0], [0]]}, "experts and top_k need one entry for each kept layer"),
        ({"experts": [4, 4, 4, 4]}, r"experts\.0: got 4"),
        ({"experts": [["0"], [0], [0], [0]]}, r"experts\.0\.0: got '0'"),
        ({"experts": [[0, 1], [0, 6], [0], [0, 1, 2]]}, "of layer 2; wants ascending indices below 6"),
        ({"experts": [[1, 0], [0], [0], [0, 1, 2]]}, "of layer 0; wants ascending"),
        ({"experts": [[0, 1], [], [0], [0, 1, 2]]}, "top_k 1 of layer 2; wants 1 to 0"),
        ({"top_k": [2, 1, 1]}, "need one entry for each kept layer"),
        ({"top_k": [3, 1, 1, 3]}, "top_k 3 of layer 0; wants 1 to 2, its experts"),
        ({"top_k": [0, 1, 1, 3]}, "top_k 0 of layer 0"),
        ({"top_k": 2}, "top_k: got 2"),
        ({"topk": [1]}, "topk: unknown key; did you mean 'top_k'"),
        ({"parent_sha256": 5}, "parent_sha256: got 5"),
    ],
)
def test_a_wrong_spec_is_refused_by_file_and_key(tmp_path, changes, why):
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps({key: value for key, value in {**MINE, **changes}.items() if value is not None}))
    with pytest.raises(ConfigError, match=rf"(?s)wrong\.json: .*{why}"):
        read_spec(path, FULL, "")


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"{", "no JSON"), (b"\xff\xfe\x00", "no JSON"), (b"[0, 1]", "got list; wants an object"), (b"", "no JSON")],
)
def test_a_file_that_is_no_object_is_refused(tmp_path, content, why):
    path = tmp_path / "wrong.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"wrong\.json: .*{why}"):
        read_spec(path, FULL, "")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "got nothing to keep; wants any of --layers"),
        (("--spec", "x.json", "--layers", 3), "got --layers and --spec"),
        (("--spec", "missing.json"), "missing.json: cannot be read (No such file"),
        (("--spec", "."), "cannot be read (Is a directory)"),
        (("--layers", 9), "layers 9; wants"),
        (("--experts", -1), "Invalid value for '--experts'"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(policy, tmp_path, arguments, why):
    shown = extract(tmp_path / "new", *arguments, "--policy", policy)
    assert shown.exit_code == 2 and why in " ".join(shown.output.split()), shown.output
    assert not (tmp_path / "new").exists()
