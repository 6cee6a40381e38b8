"""The family experiment at a tiny size: exported data, units that go on, and the arithmetic of what they say."""

import dataclasses
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from accordion.config.pretrain import ElasticConfig
from accordion.config.study import StudyConfig
from accordion.data.batch import AUDIO, COLUMNS, IMAGE, TEXT, VIDEO
from accordion.errors import ArtifactError, ConfigError, DataError, OutOfMemory
from accordion.home import REPOSITORY
from accordion.model import SubmodelSpec
from accordion.model.flops import RowCounts, forward_flops, training_flops
from accordion.model.sampler import Draw, ElasticSampler
from accordion.report.deck import deck
from accordion.study import pool, run
from accordion.study.__main__ import main
from accordion.study.data import Resident, ResidentLoader, export, read_meta
from accordion.study.figures import interval, summarise
from accordion.study.run import begin, run_unit
from accordion.study.speed import expected, parts_of_a_run, read_timing, time_steps
from accordion.study.study import conclude, elastic_study, prepare, read_units, run_units
from accordion.study.units import Unit, settings, units
from tests.unit.model.synthetic import small_batch, small_config
from tests.unit.train.synthetic_shards import small_columns, tiny_config, write_columns, write_shards

VALUES = {
    "seeds": (0, 1),
    "family": ("small",),
    "recovery_shares": (0.25, 0.5),
    "variants": {"random": {"subsets": "random"}},
    "validation_sequences": 8,
    "ranking_sequences": 4,
    "timed_steps": 1,
}


def study_config(steps=4, **changes) -> StudyConfig:
    pretrain = tiny_config(steps=steps, code_noise=0.0).model_dump()
    pretrain["elastic"] |= {"distil_share": 1.0, "warmup_share": 0.25}
    return StudyConfig.parse({**VALUES, "pretrain": pretrain, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_shards(folder / "shards")
    export(folder / "shards", folder / "data")
    return folder / "data"


def place_of(config, data, out, commit="abc"):
    return prepare(config, data, out, command="test", commit=commit)


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    """A finished study: its place and its results."""
    place = place_of(study_config(), data, tmp_path_factory.mktemp("done") / "study")
    assert run_units(place, jobs=1)
    return place, conclude(place, place.out / "results")


@pytest.fixture
def copy(done, tmp_path):
    """A finished study that a test may change."""
    place, _ = done
    for name in ("units", "models"):
        shutil.copytree(place.out / name, tmp_path / "copy" / name)
    return dataclasses.replace(place, out=tmp_path / "copy")


def test_exported_columns_are_those_of_the_shards(data):
    resident = Resident.load(data, "train", torch.device("cpu"))
    wanted, given = small_batch(rows=24, length=48, seed=0), resident.batch(torch.arange(24))
    for name, (kind, stored) in COLUMNS.items():
        assert torch.equal(
            getattr(given, name), torch.from_numpy(getattr(wanted, name).numpy().astype(stored)).to(kind)
        )


def test_sizes_are_judged_on_as_many_sequences_of_each_kind_as_there_are():
    columns = {name: torch.from_numpy(values) for name, values in small_columns(20, seed=0).items()}
    kinds = [TEXT] * 14 + [IMAGE] * 3 + [VIDEO] * 2 + [AUDIO]
    columns["modality"] = torch.full((20, 48), TEXT, dtype=torch.uint8)
    columns["modality"][:, 10:13] = torch.tensor(kinds, dtype=torch.uint8).unsqueeze(1)
    columns["modality"][16, 20:22] = VIDEO  # an image and a shorter clip
    columns["token"][:, 0] = torch.arange(20)
    read = torch.cat([batch.token[:, 0] for batch in Resident(columns).batches(3, 12)]).tolist()
    assert read == [0, 6, 13, 14, 15, 16, 17, 18, 19]  # three of the texts, evenly, and all of what there is less of


def test_every_run_of_a_seed_reads_each_epoch_whole_in_one_order_and_goes_on_anywhere(data):
    resident = Resident.load(data, "train", torch.device("cpu"))
    first = ResidentLoader(resident, batch=5, seed=3)
    rows = np.concatenate([first.next_rows() for _ in range(20)])
    for epoch in range(4):
        assert sorted(rows[epoch * 24 : (epoch + 1) * 24]) == list(range(24))
    assert rows[:24].tolist() != rows[24:48].tolist()
    second = ResidentLoader(resident, batch=5, seed=3)
    second.restore({"position": 35, "seed": 3, "sequences": 24})
    assert second.next_rows().tolist() == rows[35:40].tolist() == [row for _, row in first.places(35)]
    with pytest.raises(ConfigError, match="seed 4"):
        second.restore({"position": 0, "seed": 4, "sequences": 24})


def test_damaged_and_missing_data_are_named(data, tmp_path):
    with pytest.raises(ArtifactError, match=r"meta\.json: missing"):
        prepare_and_run(tmp_path / "nothing", tmp_path)
    broken = tmp_path / "broken"
    (broken / "columns" / "train").mkdir(parents=True)
    (broken / "columns" / "train" / "modality.xz").write_bytes(b"no xz")
    with pytest.raises(ArtifactError, match=r"modality\.xz: not readable"):
        Resident.load(broken, "train", torch.device("cpu"))
    moved = small_columns(8, seed=1)
    moved["position"] += np.float32(1 / 128)
    shards = write_columns(tmp_path / "shards", {"train": small_columns(24, seed=0), "val": moved})
    with pytest.raises(DataError, match="multiple of 1/64"):
        export(shards, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def prepare_and_run(data, out):
    data.mkdir()
    run_units(place_of(study_config(), data, out / "study"), jobs=1)


def test_the_figures_are_those_of_a_computation_by_hand(done):
    place, results = done
    found, summary = read_units(place), results["summary"]
    loss = {name: unit["val_loss"]["text"] for name, unit in found.items() if name != "speed"}
    tax = [loss[f"elastic_seed{seed}"] - loss[f"fixed_seed{seed}"] for seed in (0, 1)]
    assert summary["tax"]["text"]["values"] == pytest.approx(tax)
    half = 12.706204736 * statistics.stdev(tax) / 2**0.5  # Student's t, one degree of freedom
    assert summary["tax"]["text"]["low"] == pytest.approx(statistics.mean(tax) - half)
    small = summary["members"]["small"]
    for seed in (0, 1):
        elastic = found[f"elastic_seed{seed}"]["members"]["small"]["text"]
        naive = found[f"fixed_seed{seed}"]["members"]["small"]["text"]
        scratch = loss[f"scratch_small_seed{seed}"]
        assert small["gap"]["text"]["values"][seed] == pytest.approx(elastic - scratch)
        fraction = (naive - elastic) / (naive - scratch)
        assert small["recovered_fraction"]["text"]["values"][seed] == pytest.approx(fraction)
        gap = loss[f"recovery_small_0.5_seed{seed}"] - scratch
        assert small["recovery"]["0.5"]["gap"]["text"]["values"][seed] == pytest.approx(gap)
        flops = {name: unit["flops"] for name, unit in found.items() if name != "speed"}
        separate = flops[f"fixed_seed{seed}"] + flops[f"scratch_small_seed{seed}"]
        ours = flops[f"elastic_seed{seed}"] + flops[f"recovery_small_0.5_seed{seed}"]
        assert summary["cost"]["family"]["flops"]["0.5"]["values"][seed] == pytest.approx(ours / separate)
        alone = flops[f"elastic_seed{seed}"] / separate
        assert summary["cost"]["family"]["flops"]["0"]["values"][seed] == pytest.approx(alone)
    mean = statistics.mean(found["fixed_seed0"]["val_loss"][name] for name in ("text", "image", "video", "audio"))
    assert summary["losses"]["fixed"]["mean"]["values"][0] == pytest.approx(mean)
    assert summary["variants"]["random"]["tax"]["text"]["values"][0] == pytest.approx(
        loss["random_seed0"] - loss["fixed_seed0"]
    )
    assert {path.name for path in (place.out / "results").iterdir()} == {
        "elastic_study.json", "gaps.png", "losses.png", "variants.png"
    }  # fmt: skip


def test_the_deck_shows_what_the_experiment_says(done):
    place, results = done
    shown = deck("study", {}, place.out / "results")
    tax = results["summary"]["tax"]["text"]
    assert f"{tax['mean']:.3f} [{tax['low']:.3f}, {tax['high']:.3f}]" in shown
    assert shown.count("<svg") == 3 and "all members" in shown and "50%" in shown


def test_one_value_has_no_interval():
    assert interval([2.0]) == {"mean": 2.0, "low": None, "high": None, "values": [2.0]}


def test_a_stopped_unit_goes_on_bit_for_bit_and_says_who_worked_on_it(done, data, tmp_path):
    whole, _ = done
    place = place_of(study_config(), data, tmp_path / "study", commit="first")
    unit = Unit("elastic", 0)
    stopped = dataclasses.replace(place, deadline=time.time() - 1)
    assert not run_unit(stopped, unit) and list(place.partial(unit).glob("step-*"))
    place = place_of(study_config(), data, tmp_path / "study", commit="second")
    assert run_unit(place, unit) and not place.partial(unit).exists()
    ours, theirs = (json.loads(p.result(unit).read_text()) for p in (place, whole))
    assert ours["val_loss"] == theirs["val_loss"] and ours["flops"] == theirs["flops"]
    assert ours["weights"] == theirs["weights"] and ours["identity"] == theirs["identity"]
    assert [made["commit"] for made in ours["made"]] == ["first", "second"]
    assert {"command", "device", "threads", "torch"} <= set(ours["made"][0])


def test_finished_units_are_kept_and_results_say_every_commit_and_command_that_made_them(copy):
    place = dataclasses.replace(copy, made={**copy.made, "command": "another call", "commit": "other-dirty"})
    kept, again = Unit("fixed", 0), Unit("scratch", 0, "small")
    before = place.result(kept).read_bytes()
    losses = json.loads(place.result(again).read_text())["val_loss"]
    place.result(again).unlink()
    assert run_units(place, jobs=1)
    assert place.result(kept).read_bytes() == before
    results = conclude(place, place.out / "results")
    assert results["made"]["commit"] == ["abc", "other-dirty"]
    assert results["made"]["command"] == ["test", "another call"]
    assert results["concluded"]["commit"] == "other-dirty"
    assert results["units"][again.name]["val_loss"] == losses and "identity" not in results["units"][again.name]
    assert results["units"][again.name]["made"][0]["commit"] == "other-dirty"


def test_finished_units_of_other_settings_or_data_are_refused_and_named(copy):
    fixed = copy.result(Unit("fixed", 0))
    slower = dataclasses.replace(copy, study=study_config(steps=6))
    with pytest.raises(ArtifactError, match=r"elastic_seed0\.json: .*settings\.steps: 4 -> 6.* a new --out, or delete"):
        run_units(slower, jobs=1)
    with pytest.raises(ArtifactError, match=r"so for \d+ other finished units"):
        run_units(slower, jobs=1)
    with pytest.raises(ArtifactError, match=rf"data: '{copy.digest}' -> 'others'"):
        run_unit(dataclasses.replace(copy, digest="others"), Unit("fixed", 0))
    with pytest.raises(ArtifactError, match=r"judged\.validation_sequences: 8 -> 12"):
        conclude(dataclasses.replace(copy, study=study_config(validation_sequences=12)), copy.out / "results")
    ranked = dataclasses.replace(copy, study=study_config(ranking_sequences=8))
    with pytest.raises(ArtifactError, match=r"judged\.ranking_sequences: 4 -> 8"):
        run_unit(ranked, Unit("fixed", 0))
    assert run_unit(ranked, Unit("elastic", 0))  # which ranks nothing
    for text, why in (("{}", "does not say of which settings"), ("[]", "no figures"), ("{", "not readable")):
        fixed.write_text(text)
        with pytest.raises(ArtifactError, match=rf"fixed_seed0\.json: .*{why}"):
            run_unit(copy, Unit("fixed", 0))
        assert fixed.read_text() == text


def test_a_unit_that_is_run_again_replaces_its_weights_and_recoveries_know_theirs(copy):
    elastic, recovery = Unit("elastic", 0), Unit("recovery", 0, "small", 0.5)
    weights = copy.model(elastic.name) / "model.safetensors"
    first = weights.read_bytes()
    other = (copy.model("elastic_seed1") / "model.safetensors").read_bytes()
    weights.write_bytes(other)
    copy.result(recovery).unlink()
    with pytest.raises(ArtifactError, match=r"elastic_seed0: not the weights that unit elastic_seed0 made; delete .*"):
        run_unit(copy, recovery)
    copy.result(elastic).unlink()
    assert not pool._ready(copy, recovery)  # though weights lie there
    assert run_unit(copy, elastic) and weights.read_bytes() == first
    assert pool._ready(copy, recovery) and run_unit(copy, recovery)
    figures = json.loads(copy.result(elastic).read_text())
    copy.result(elastic).write_text(json.dumps({**figures, "weights": "of another run"}))
    with pytest.raises(ArtifactError, match=r"recovery_small_0\.5_seed0\.json: .*source\.weights: '.*' -> 'of another"):
        conclude(copy, copy.out / "results")


def test_steps_are_timed_once_and_again_only_for_other_settings(copy):
    timed = json.loads(copy.result("speed").read_text())["kinds"]
    assert set(timed) == {"fixed", "elastic", "random", "small"}
    assert all(0 < part["flops"] / part["seconds"] / part["peak_flops"] < 1 for part in timed.values())
    more = study_config(variants={**VALUES["variants"], "ranked": {"subsets": "ranked"}})
    with_ranked = dataclasses.replace(copy, study=more)
    assert set(time_steps(with_ranked)) == {*timed, "ranked"}
    now = json.loads(copy.result("speed").read_text())["kinds"]
    assert {name: now[name] for name in timed} == timed
    assert set(read_timing(copy)["step_seconds"]) == set(timed)  # the study without the new recipe
    with pytest.raises(ArtifactError, match=r"speed\.json, fixed: .*timed_steps: 1 -> 2"):
        time_steps(dataclasses.replace(copy, study=study_config(timed_steps=2)))
    copy.result("speed").write_text(json.dumps({"step_seconds": {"fixed": 1.0}}))
    with pytest.raises(ArtifactError, match=r"speed\.json: does not say of which settings"):
        time_steps(copy)


def test_the_work_of_a_unit_is_its_steps_and_what_is_judged(copy):
    timed = {
        "fixed": 3.0,
        "elastic": 2.0,
        "random": 2.5,
        "small": 1.2,
    }  # 4 sequences a step: 0.25 and 0.1 s to read one
    place = dataclasses.replace(copy, out=copy.out / "elsewhere")
    short = expected(place, Unit("recovery", 0, "small", 0.25), timed)
    assert (short.training, short.judging) == pytest.approx((1.2, 8 * 0.1))
    elastic = expected(place, Unit("elastic", 0), timed)
    assert (elastic.training, elastic.judging) == pytest.approx((8.0, 8 * 0.35))
    fixed = expected(place, Unit("fixed", 0), timed)
    assert fixed.judging == pytest.approx(8 * (0.25 + 0.1 + 0.1) + 4 * 0.25)
    (place.partial(Unit("fixed", 0)) / "step-00000003").mkdir(parents=True)
    assert expected(place, Unit("fixed", 0), timed).training == pytest.approx(3.0)


def test_memory_that_is_too_small_names_the_settings(data, tmp_path, monkeypatch):
    place = place_of(study_config(), data, tmp_path / "study")
    monkeypatch.setattr(run, "validation_losses", lambda *_: torch.empty(2**55))
    with pytest.raises(OutOfMemory, match=r"lower study\.validation_sequences \(now 8\).*--jobs"):
        run_unit(place, Unit("scratch", 0, "small"))
    pretrain = place.study.pretrain.model_copy(update={"batch": 2**50})
    greedy = dataclasses.replace(place, study=place.study.model_copy(update={"pretrain": pretrain}))
    with pytest.raises(OutOfMemory, match=r"lower study\.pretrain\.batch \(now \d+\), .*study\.pretrain\.model"):
        run_unit(greedy, Unit("fixed", 0))
    with pytest.raises(OutOfMemory, match=r"lower study\.pretrain\.batch"):
        time_steps(greedy)


def test_other_settings_are_refused_and_an_unfinished_study_says_what_it_can(done, data, tmp_path):
    place = place_of(study_config(), data, tmp_path / "study")
    assert not run_unit(dataclasses.replace(place, deadline=0.0), Unit("fixed", 0))
    other = place_of(study_config(steps=6), data, tmp_path / "study")
    with pytest.raises(ArtifactError, match=r"settings\.steps: 4 -> 6"):
        run_unit(other, Unit("fixed", 0))
    with pytest.raises(DataError, match="no seed has both"):
        conclude(place, tmp_path / "results")
    found = {name: unit for name, unit in read_units(done[0]).items() if "scratch" not in name and name != "speed"}
    summary = summarise(study_config(), found)
    assert summary["members"]["small"]["gap"] is None and "family" not in summary["cost"]


def test_a_recovery_reads_on_where_its_elastic_run_ended(done):
    place, _ = done
    run, unit = place.study.pretrain, Unit("recovery", 1, "small", 0.25)
    assert begin(place, unit, settings(place.study, unit)).loader.position == run.steps * run.batch


def test_every_kind_of_unit_differs_from_the_elastic_run_in_what_its_name_says():
    study = study_config(isolated=True)
    elastic, fixed, isolated, random = (
        settings(study, Unit(kind, 1)) for kind in ("elastic", "fixed", "isolated", "random")
    )
    assert elastic == study.pretrain.model_copy(update={"seed": 1}) and random.elastic.subsets == "random"
    assert not fixed.elastic.enabled and fixed.model == study.pretrain.model
    assert isolated == fixed.model_copy(update={"model": isolated.model}) and isolated.model.isolated


def test_recoveries_wait_for_their_elastic_run_and_seeds_come_in_turn():
    names = [unit.name for unit in units(study_config())]
    assert names.index("elastic_seed0") == 0 and names.index("fixed_seed1") > names.index("recovery_small_0.25_seed0")
    assert names[-2:] == ["random_seed0", "random_seed1"] and len(names) == len(set(names))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": ("tall",)}, "tall"),
        ({"recovery_shares": (0.5, 0.1)}, "ascending"),
        ({"seeds": (0,)}, "at least 2"),
        ({"variants": {"a b": {}}}, "letters, digits"),
        ({"variants": {"odd": {"subset": "random"}}}, r"variants\.odd\.subset: unknown key"),
    ],
)
def test_impossible_studies_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        study_config(**changes)


def test_flops_are_those_of_the_products_by_hand():
    config = small_config(layers=3, experts=4, top_k=2)  # hidden 16, expert and shared width 8, two audio levels
    counts = RowCounts(live=40, text=10, mtp=8, vision=5, audio=2)
    layer = 48 * (8 * 16 * 16 + 4 * 48 * 16) + 40 * (2 * 16 * 4 + 6 * 16 * 8 * 2 + 6 * 16 * 8)
    heads = 2 * 16 * (10 * 50 + 5 * 5 + 2 * 2 * 8 + 8 * (32 + 50))
    full = SubmodelSpec.full(config)
    assert forward_flops(config, full, counts, 48, mtp=True) == 3 * layer + heads
    sparse = SubmodelSpec.nested(config, top_k=1)
    assert forward_flops(config, sparse, counts, 48, mtp=True) == 3 * (layer - 40 * 6 * 16 * 8) + heads
    once, twice = (training_flops(config, Draw([sparse], twins), [counts], 48) for twins in ((), (0,)))
    assert twice - once == 3 * (3 * layer + heads)


def test_each_part_of_a_run_is_timed_as_its_last_step():
    elastic = ElasticConfig(grow_share=0.3, warmup_share=0.2, layers=(3,), experts=(4,), top_k=(1,))
    sampler = ElasticSampler(small_config(), elastic, steps=10, seed=0)
    assert parts_of_a_run(sampler, 10) == [(2, 0.3), (4, 0.2), (9, 0.5)]
    assert parts_of_a_run(ElasticSampler(small_config(), ElasticConfig(enabled=False), steps=4, seed=0), 4) == [(3, 1)]


def test_the_stage_exports_runs_and_concludes(tmp_path):
    out, resume = tmp_path / "out", tmp_path / "resume"
    out.mkdir()
    config = study_config(steps=2, variants={}, recovery_shares=(0.5,))
    run = SimpleNamespace(profile="tiny", overrides=["study.timed_steps=1"], commit="abc-dirty")
    metrics = elastic_study(config, out=out, shards=write_shards(tmp_path / "shards"), resume=resume, run=run)
    assert metrics["seeds"] == 2 and (out / "elastic_study.json").is_file() and (out / "gaps.png").is_file()
    assert 0 < metrics["flops_ratio"]["0"] < metrics["flops_ratio"]["0.5"] and set(metrics["gap"]) == {"small"}
    speed = metrics.pop("speed")
    assert set(speed) == {"seconds_ratio", "flops_utilisation"} and "seconds" not in json.dumps(metrics)
    assert all(0 < share < 1 for share in speed["flops_utilisation"].values())
    made = json.loads((out / "elastic_study.json").read_text())["made"]
    assert made["commit"] == ["abc-dirty"]
    assert made["command"] == [
        "pyflyte -c flyte.config run workflows/elastic_study.py elastic_study --profile tiny "
        """--overrides '["study.timed_steps=1"]'"""
    ]


def test_the_experiment_needs_few_libraries():
    """What a GPU machine must have: no orchestration, no tracking, no readers of shards or media."""
    code = (
        "import sys, accordion.study.__main__, accordion.study.study, accordion.study.plots; "
        "print(sorted({m.split('.')[0] for m in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    unwanted = {
        "flytekit", "mlflow", "dvc", "great_expectations", "transformers", "tokenizers", "av", "soundfile", "grain",
        "array_record", "onnxruntime", "typer", "tritonclient",
    }  # fmt: skip
    assert not unwanted & set(eval(loaded.stdout))  # a list of names that this test printed


def test_the_command_says_what_is_wrong_and_goes_on_when_time_ran_out(data, tmp_path, capsys):
    profile = tmp_path / "tiny.yaml"
    settings = json.loads(study_config(variants={}, recovery_shares=(0.5,), timed_steps=1).model_dump_json())
    sections = {"study": settings, "tokenizers": {"audio": {"levels": 2}}}
    profile.write_text(json.dumps(sections))  # JSON is YAML
    call = ["--profile", str(profile), "--data", str(data), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["run", *call, "--time-limit", "0"]) == 3
    assert "call again to go on" in capsys.readouterr().err
    assert main(["run", *call]) == 0
    said = capsys.readouterr().err
    assert "tax, text" in said and "{" not in said
    told = r"(?:in flops{0}: [\d.]+ \[[\d., ]+\]|in seconds{0}: [\d.]+)$"  # steps are timed once for all seeds
    shares = r", (?:0|50)% recovery"
    assert len(re.findall(rf"^cost, family, {told.replace('{0}', shares)}", said, re.M)) == 4
    assert len(re.findall(rf"^cost, elastic of fixed, {told.replace('{0}', '')}", said, re.M)) == 2
    assert main(["conclude", *call, "--results", str(tmp_path / "results")]) == 0
    assert (tmp_path / "results" / "elastic_study.json").is_file()
    call[3] = str(tmp_path / "nothing")
    assert main(["conclude", *call]) == 2
    assert "meta.json: missing" in capsys.readouterr().err
    assert main(["run", *call, "--set", "study.pretrain.elastic.experts=[64]"]) == 2
    assert "study.pretrain.elastic.experts: got 64; study.pretrain.model has 4" in capsys.readouterr().err
    for wrong in ("--jobs", "--threads"):
        with pytest.raises(SystemExit):
            main(["run", *call, wrong, "0"])
        assert f"argument {wrong}: got 0; wants 1 or more" in capsys.readouterr().err


def test_an_export_wants_shards_and_a_new_folder(data, tmp_path, capsys):
    assert main(["export", "--shards", str(tmp_path), "--out", str(tmp_path / "new")]) == 2
    assert "meta.json: missing; run the pack stage" in capsys.readouterr().err
    before = (data / "meta.json").read_bytes()
    assert main(["export", "--shards", str(data.parent / "shards"), "--out", str(data)]) == 2
    assert f"{data}: exists; name a new folder" in capsys.readouterr().err
    assert (data / "meta.json").read_bytes() == before


def test_an_unreadable_meta_of_the_data_is_told(tmp_path):
    (tmp_path / "meta.json").write_text('{"sequences"')
    with pytest.raises(ArtifactError, match=r"meta\.json: not readable .*; export the shards again"):
        read_meta(tmp_path)
