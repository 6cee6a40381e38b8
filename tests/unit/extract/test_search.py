"""The search finds members that keep to the budget, judges each as the model it is, and says when none fits."""

import json

import pytest

from accordion.config.extract import BudgetConfig, ExtractConfig, SearchConfig
from accordion.config.pretrain import AnalyseConfig
from accordion.data.loader import sample
from accordion.errors import ConfigError, DataError
from accordion.evaluate.routing import analyse
from accordion.extract.family import extract
from accordion.extract.huggingface import obstacle
from accordion.extract.search import Found, excess, listed, pareto_front, search_family, spread
from accordion.model import Model, SubmodelSpec, load_model, save_model
from accordion.model.elastic import fixed_layers, parameter_counts
from accordion.store import Manifest
from accordion.train.validate import validation_losses
from tests.unit.model.synthetic import small_config
from tests.unit.train.synthetic_shards import write_shards

QUICK = SearchConfig(trials=24, population=6, sequences=4, members=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    (folder / "policy").mkdir()
    save_model(Model(small_config(), seed=1), folder / "policy")
    return {"policy": folder / "policy", "shards": write_shards(folder / "shards")}


def search(config, place, out):
    out.mkdir()
    figures = search_family(config, out=out, **place)
    return figures, json.loads((out / "search.json").read_text())


def test_members_of_the_front_are_written_and_are_what_was_judged(place, tmp_path):
    figures, document = search(QUICK, place, tmp_path / "out")
    front = [document["trials"][index] for index in document["front"]]
    losses = [member["relative_loss"] for member in front]
    costs = [member["costs"]["active_parameters"] for member in front]
    assert costs == sorted(costs) and losses == sorted(losses, reverse=True)
    assert figures["judged"] == len(document["trials"]) <= QUICK.trials
    for row in figures["members"]:
        part = load_model(tmp_path / "out" / "members" / row["name"])
        assert parameter_counts(part.config) == (row["costs"]["parameters"], row["costs"]["active_parameters"])
        drawn = sample(place["shards"], "val", 8)  # the even ones steer, the odd ones judge
        assert row["held_out_val_loss"] == pytest.approx(validation_losses(part, [drawn.select([1, 3, 5, 7])]))
        assert row["val_loss"] == pytest.approx(validation_losses(part, [drawn.select([0, 2, 4, 6])]))
        assert row["max_abs_logit_diff"] <= 1e-5


def test_the_budget_holds_for_every_member_written(place, tmp_path):
    full = parameter_counts(small_config())
    budget = BudgetConfig(active_parameters=round(0.97 * full[1]), bytes=round(4 * 0.9 * full[0]))
    config = QUICK.model_copy(update={"budget": budget})
    figures, _ = search(config, place, tmp_path / "out")
    assert figures["judged"] < figures["tried"] == QUICK.trials
    for row in figures["members"]:
        assert row["costs"]["active_parameters"] <= budget.active_parameters
        size = (tmp_path / "out" / "members" / row["name"] / "model.safetensors").stat().st_size
        assert size == row["costs"]["bytes"] <= budget.bytes


def test_every_member_found_has_a_card_and_where_its_layers_are_alike_a_huggingface_layout(place, tmp_path):
    figures, document = search(QUICK, place, tmp_path / "out")
    for row in figures["members"]:
        folder = tmp_path / "out" / "members" / row["name"]
        Manifest.read(folder).verify(folder)
        card = (folder / "README.md").read_text()
        assert f"# {row['name']}\n" in card and f"{row['costs']['parameters']:,}" in card
        for losses in (row["held_out_val_loss"], document["held_out_full"]):
            assert all(f"{loss:.4f}" in card for loss in losses.values())
        alike = obstacle(load_model(folder).config) is None
        assert alike == (folder / "huggingface" / "model.safetensors").is_file() == row["huggingface"]
    assert {row["huggingface"] for row in figures["members"]} == {True, False}  # the search begins with even ones


def test_the_same_seed_finds_the_same(place, tmp_path):
    _, first = search(QUICK, place, tmp_path / "a")
    _, second = search(QUICK, place, tmp_path / "b")
    _, other = search(QUICK.model_copy(update={"seed": 1}), place, tmp_path / "c")
    assert first == second
    assert other["trials"] != first["trials"]


def test_measured_latency_can_be_the_cost(place, tmp_path):
    config = SearchConfig(trials=4, population=2, sequences=2, cost="latency_ms", latency_repeats=1)
    _, document = search(config, place, tmp_path / "out")
    assert all(member["costs"]["latency_ms"] > 0 for member in document["trials"])
    assert "milliseconds for a sequence" in (tmp_path / "out/members/found-1/README.md").read_text()


def test_a_budget_that_nothing_fits_names_the_smallest_member(place, tmp_path):
    config = QUICK.model_copy(update={"budget": BudgetConfig(parameters=10)})
    with pytest.raises(ConfigError, match=r"no member of this model fits; the smallest has .* raise parameters"):
        search(config, place, tmp_path / "out")
    assert not (tmp_path / "out" / "members").exists()


def test_a_budget_that_only_the_smallest_member_fits_finds_it_at_once(place, tmp_path):
    shape = small_config()
    least = SubmodelSpec.nested(shape, layers=len(fixed_layers(shape)), experts=3, top_k=1)
    limit = parameter_counts(least.config(shape))[1]
    config = QUICK.model_copy(update={"budget": BudgetConfig(active_parameters=limit), "trials": 3})
    figures, _ = search(config, place, tmp_path / "out")
    assert [row["costs"]["active_parameters"] for row in figures["members"]] == [limit]


def test_the_search_says_nothing_of_its_library(place, tmp_path, recwarn):
    search(SearchConfig(trials=3, population=2, sequences=2), place, tmp_path / "out")
    assert [str(each.message) for each in recwarn if "optuna" in str(each.message)] == []


def test_costs_in_words():
    costs = {"parameters": 2825872.0, "bytes": 11303700.0, "latency_ms": 12.3456}
    assert listed(costs) == "parameters 2,825,872, bytes 11,303,700, 12.35 ms a sequence"


@pytest.mark.parametrize(
    "stage",
    [
        lambda **places: extract(ExtractConfig(), **places),
        lambda **places: search_family(QUICK, **places),
        lambda **places: analyse(AnalyseConfig(), checkpoint=places["policy"], **places),
    ],
    ids=["extract", "search", "analyse"],
)
def test_shards_without_validation_sequences_are_a_clear_error(place, tmp_path, stage):
    shards = write_shards(tmp_path / "shards")
    meta = json.loads((shards / "meta.json").read_text())
    meta["splits"]["val"] |= {"sequences": 0, "datasets": {}}
    (shards / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(DataError, match=rf"{shards}: its split 'val' holds no sequence"):
        stage(out=tmp_path, policy=place["policy"], shards=shards)


def found(loss: float, cost: float) -> Found:
    costs = {"active_parameters": cost, "parameters": cost, "bytes": 4 * cost}
    return Found(SubmodelSpec((0,), ((0,),), (1,)), costs, {"text": loss}, loss)


def test_the_front_leaves_out_what_another_beats():
    members = [found(1.0, 10), found(1.1, 5), found(1.2, 5), found(1.05, 12), found(1.3, 4)]
    front = pareto_front(members, "active_parameters")
    assert [(m.loss, m.costs["active_parameters"]) for m in front] == [(1.3, 4), (1.1, 5), (1.0, 10)]
    assert [m.loss for m in spread(front, 2)] == [1.0, 1.3]
    assert [m.loss for m in spread(front, 1)] == [1.0]


def test_excess_is_relative_to_the_limit():
    over = excess({"parameters": 30, "bytes": 120}, BudgetConfig(parameters=20, bytes=200))
    assert over == {"parameters": 0.5}
