"""Recovery trains a cut member on its own, counts what that cost, and writes a whole member again."""

import json

import pytest
import torch

from accordion.config.extract import ExtractConfig, RecoverConfig
from accordion.config.pretrain import MemberSpec
from accordion.errors import DataError, OutOfMemory
from accordion.extract import extract
from accordion.extract.member import member_figures, origin
from accordion.extract.recover import recover
from accordion.model import Model, load_model, save_model
from accordion.store.manifest import Manifest, identity
from accordion.train.loop import Trainer
from tests.unit.model.synthetic import small_config
from tests.unit.train.synthetic_shards import LENGTH, tiny_config, write_shards

RUN = tiny_config(batch=8, validation_sequences=8)
QUICK = RecoverConfig(steps=12, rate=1.0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recover")
    (folder / "policy").mkdir()
    save_model(Model(small_config(), seed=1), folder / "policy")
    shards = write_shards(folder / "shards")
    members = (MemberSpec(name="small", layers=3, experts=4, top_k=2),)
    figures = extract(ExtractConfig(members=members), out=folder, policy=folder / "policy", shards=shards)
    return folder, figures


def test_a_member_brings_its_card_and_its_huggingface_layout(place):
    folder, figures = place
    card = (folder / "members/small/README.md").read_text()
    assert f"{figures['members'][0]['parameters']:,}" in card and "Dots1ForCausalLM" in card
    assert f"{figures['val_loss_full']['text']:.4f}" in card
    assert (folder / "members/small/huggingface/config.json").is_file()


def test_recovery_lowers_the_training_loss_and_keeps_the_origin(place, tmp_path):
    folder, _ = place
    shards = folder / "shards"
    figures = recover(QUICK, run=RUN, member=folder / "members/small", shards=shards, out=tmp_path / "b", name="small",
                      full=folder / "policy")  # fmt: skip
    assert figures["val_loss"]["text"] < figures["val_loss_before"]["text"]
    assert figures["steps"] == 12 and figures["flops"] > 0 and figures["tokens"] > 0
    spec = json.loads((tmp_path / "b/spec.json").read_text())
    assert spec["recovery"]["flops"] == figures["flops"]
    assert spec["parent_sha256"] == json.loads((folder / "members/small/spec.json").read_text())["parent_sha256"]
    assert "trained on its own for 12 steps" in (tmp_path / "b/README.md").read_text()
    before, after = load_model(folder / "members/small"), load_model(tmp_path / "b")
    assert after.config == before.config
    assert not torch.equal(after.layers[0].moe.router, before.layers[0].moe.router)


def test_a_recovered_member_says_what_it_was_recovered_from_and_keeps_its_history(place, tmp_path):
    folder, _ = place
    short = QUICK.model_copy(update={"steps": 2})
    given, shards, before = folder / "members/small", folder / "shards", []
    for name in ("once", "twice"):
        recover(short, run=RUN, member=given, shards=shards, out=tmp_path / name, name=name)
        manifest, spec = Manifest.read(tmp_path / name), origin(tmp_path / name)
        assert manifest.stage == "recover" and manifest.parents["sub-model"] == identity(given)
        assert spec["recovery"]["from"] == identity(given) and len(spec["recovery"]["earlier"]) == len(before)
        card, figures = (tmp_path / name / "README.md").read_text(), member_figures(tmp_path / name)
        assert identity(given) in card and f"{figures['val_loss_before']['text']:.4f}" in card
        assert ("Recoveries before that one: 1, of 2 steps" in card) == (name == "twice")
        before.append(figures["val_loss"])
        given = tmp_path / name
    assert member_figures(tmp_path / "twice")["val_loss_before"] == before[0]


def test_what_is_no_member_and_what_exists_is_refused(place, tmp_path):
    folder, _ = place
    with pytest.raises(DataError, match="is no extracted member"):
        recover(QUICK, run=RUN, member=folder / "policy", shards=folder / "shards", out=tmp_path / "x", name="x")
    with pytest.raises(DataError, match="exists; name a new folder"):
        recover(QUICK, run=RUN, member=folder / "members/small", shards=folder / "shards", out=folder, name="x")
    save_model(Model(small_config(), seed=2), tmp_path)
    with pytest.raises(DataError, match="name the model that it was cut from"):
        recover(QUICK, run=RUN, member=folder / "members/small", shards=folder / "shards", out=tmp_path / "x",
                name="x", full=tmp_path)  # fmt: skip


def test_memory_that_is_too_small_names_the_setting_to_lower(place, tmp_path, monkeypatch):
    folder, _ = place
    given = {"run": RUN, "member": folder / "members/small", "shards": folder / "shards", "name": "x"}
    monkeypatch.setattr(Trainer, "step", lambda _: torch.empty(2**55))
    for config, now in ((QUICK, 8), (QUICK.model_copy(update={"batch": 2}), 2)):
        with pytest.raises(OutOfMemory, match=rf"lower --batch \(now {now}\), or recover a smaller member"):
            recover(config, out=tmp_path / "x", **given)
    assert not (tmp_path / "x").exists()


def test_recovery_with_a_batch_of_its_own_reads_that_many_sequences(place, tmp_path):
    folder, _ = place
    config = RecoverConfig(steps=2, batch=3)
    figures = recover(config, run=RUN, member=folder / "members/small", shards=folder / "shards", out=tmp_path / "c",
                      name="small")  # fmt: skip
    assert 0 < figures["tokens"] <= 2 * 3 * LENGTH
