"""The family experiment at a tiny size: exported data, units that go on, and the arithmetic of what they say."""

import dataclasses
import json
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from accordion.config.pretrain import ElasticConfig
from accordion.config.study import StudyConfig
from accordion.data.batch import AUDIO, COLUMNS, IMAGE, TEXT, VIDEO
from accordion.errors import ArtifactError, ConfigError, DataError
from accordion.home import REPOSITORY
from accordion.model import SubmodelSpec
from accordion.model.flops import RowCounts, forward_flops, training_flops
from accordion.model.sampler import Draw, ElasticSampler
from accordion.report.deck import deck
from accordion.study.__main__ import main
from accordion.study.data import Resident, ResidentLoader, export
from accordion.study.figures import interval, summarise
from accordion.study.run import run_unit
from accordion.study.speed import parts_of_a_run
from accordion.study.study import conclude, elastic_study, prepare, read_units, run_units
from accordion.study.units import Unit, units
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


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    """A finished study: its place and its results."""
    place = prepare(study_config(), data, tmp_path_factory.mktemp("done") / "study")
    assert run_units(place, jobs=1)
    return place, conclude(place, place.out / "results", command="test")


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
    run_units(prepare(study_config(), data, out / "study"), jobs=1)


def test_the_figures_are_those_of_a_computation_by_hand(done):
    place, results = done
    found, summary = read_units(place.out), results["summary"]
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
    assert {"command", "device", "commit", "versions"} <= set(
        json.loads((place.out / "results" / "elastic_study.json").read_text())
    )


def test_the_deck_shows_what_the_experiment_says(done):
    place, results = done
    shown = deck("study", {}, place.out / "results")
    tax = results["summary"]["tax"]["text"]
    assert f"{tax['mean']:.3f} [{tax['low']:.3f}, {tax['high']:.3f}]" in shown
    assert shown.count("<svg") == 3 and "all members" in shown and "50%" in shown


def test_one_value_has_no_interval():
    assert interval([2.0]) == {"mean": 2.0, "low": None, "high": None, "values": [2.0]}


def test_a_stopped_unit_goes_on_bit_for_bit_and_finished_ones_are_skipped(done, data, tmp_path):
    whole, _ = done
    place = prepare(study_config(), data, tmp_path / "study")
    unit = Unit("elastic", 0)
    stopped = dataclasses.replace(place, deadline=time.time() - 1)
    assert not run_unit(stopped, unit) and (place.out / "partial" / unit.name).is_dir()
    assert run_unit(place, unit) and not (place.out / "partial" / unit.name).exists()
    ours, theirs = (json.loads(p.result(unit).read_text()) for p in (place, whole))
    assert ours["val_loss"] == theirs["val_loss"] and ours["flops"] == theirs["flops"]
    place.result(unit).write_text("{}")
    assert run_unit(place, unit) and place.result(unit).read_text() == "{}"


def test_other_settings_are_refused_and_an_unfinished_study_says_what_it_can(done, data, tmp_path):
    place = prepare(study_config(), data, tmp_path / "study")
    assert not run_unit(dataclasses.replace(place, deadline=0.0), Unit("fixed", 0))
    other = prepare(study_config(steps=6), data, tmp_path / "study")
    with pytest.raises(ArtifactError, match=r"settings\.steps: 4 -> 6"):
        run_unit(other, Unit("fixed", 0))
    with pytest.raises(DataError, match="no seed has both"):
        conclude(place, tmp_path / "results", command="test")
    found = {name: unit for name, unit in read_units(done[0].out).items() if "scratch" not in name and name != "speed"}
    summary = summarise(study_config(), found)
    assert summary["members"]["small"]["gap"] is None and "family" not in summary["cost"]


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
    metrics = elastic_study(config, out=out, shards=write_shards(tmp_path / "shards"), resume=resume)
    assert metrics["seeds"] == 2 and (out / "elastic_study.json").is_file() and (out / "gaps.png").is_file()
    assert 0 < metrics["flops_ratio"]["0"] < metrics["flops_ratio"]["0.5"] and set(metrics["gap"]) == {"small"}
    assert set(metrics.pop("speed")) == {"seconds_ratio"} and "seconds" not in json.dumps(metrics)


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
    assert "tax, text" in capsys.readouterr().err
    assert main(["conclude", *call, "--results", str(tmp_path / "results")]) == 0
    assert (tmp_path / "results" / "elastic_study.json").is_file()
    call[3] = str(tmp_path / "nothing")
    assert main(["conclude", *call]) == 2
    assert "meta.json: missing" in capsys.readouterr().err
    assert main(["run", *call, "--set", "study.pretrain.elastic.experts=[64]"]) == 2
    assert "study.pretrain.elastic.experts: got 64; study.pretrain.model has 4" in capsys.readouterr().err
