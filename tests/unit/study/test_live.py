"""What a study tells while it runs: how much is done, and a curve of every unit, from processes of their own."""

import pytest

from accordion.observe import listening, progress
from accordion.study.data import export
from accordion.study.live import Ended, Expected, RecentLosses, Report, Watch
from accordion.study.pool import run_all
from accordion.study.study import prepare
from accordion.study.units import Unit
from tests.unit.study.test_study import study_config
from tests.unit.train.synthetic_shards import write_shards


def report(unit, step, **changes):
    losses = {"text": 4.0, "image": 0.5, "video": 0.5, "audio": 1.0}
    return Report(unit, step, 400, **{"losses": losses, "tokens": 1000, "flops": 6000, "seconds": 2.0, **changes})


def test_a_short_unit_counts_for_less_than_a_long_one():
    watch = Watch({"long": Expected(100, 2.0, 600.0, 100.0), "short": Expected(0, 0.5, 2.0, 98.0)}, peak=12e3)
    assert watch.percent == 0 and watch.note() == "0 of 2 units"
    watch.hear(report("long", 250))  # 150 of the 300 steps that were left
    assert watch.percent == pytest.approx(100 * 300 / 800)
    watch.hear(report("short", 4))
    assert watch.percent == pytest.approx(100 * 302 / 800)
    assert watch.note() == "0 of 2 units; long 250/400 text 4.000; short 4/400 text 4.000; 50% of peak"
    watch.hear(Ended("short", whole=True))
    assert watch.percent == pytest.approx(50) and watch.finished == 1
    watch.hear(report("short", 4))  # comes after its end
    assert watch.percent == pytest.approx(50) and "short" not in watch.note()
    watch.hear(Ended("long", whole=False))  # stopped half-way
    assert watch.percent == pytest.approx(50) and watch.finished == 1
    assert Watch({}, peak=1.0).percent == 100


def test_a_unit_has_one_curve_and_the_study_its_speed():
    seen = []
    with listening(lambda step, figures: seen.append((step, figures))):
        watch = Watch({name: Expected(0, 1.0, 400.0, 0.0) for name in ("one", "two")}, peak=12e3)
        watch.hear(report("one", 10))
        watch.hear(report("two", 20, flops=12000))
    assert seen[0] == (10, {"loss/one": 1.5}) and seen[2] == (20, {"loss/two": 1.5})
    assert seen[3][1] == {
        "percent_done": pytest.approx(100 * 30 / 800), "units_done": 0, "tokens_per_second": 1000,
        "flops_per_second": 9000, "flops_utilisation": 0.75,
    }  # fmt: skip


def test_losses_are_means_since_the_last_report_of_every_modality():
    recent = RecentLosses()
    recent.add({"loss/text": 4.0, "loss/audio": 2.0, "loss/total": 1.0})
    recent.add({"loss/text": 3.0})
    assert recent.take() == {"text": 3.5, "audio": 2.0}
    recent.add({"loss/text": 2.0})
    assert recent.take() == {"text": 2.0, "audio": 2.0}


def test_the_remaining_time_is_that_of_what_is_done_not_of_how_many_items_there_were(capsys, monkeypatch):
    clock = iter([0.0, 20.0, 40.0, 40.0])
    monkeypatch.setattr("accordion.observe.time.monotonic", lambda: next(clock))
    done = {1: 10.0, 2: 80.0}
    assert list(progress("ab", "study", total=100, unit="%", done=done.__getitem__)) == ["a", "b"]
    assert capsys.readouterr().err.splitlines() == [
        "study: 10.0/100 %, 0.5 %/s, 180 s left", "study: 80.0/100 %, 2.0 %/s, 10 s left", "study: 80.0 % in 40.0 s"
    ]  # fmt: skip


def test_processes_send_what_they_train(tmp_path):
    export(write_shards(tmp_path / "shards"), tmp_path / "data")
    place = prepare(study_config(), tmp_path / "data", tmp_path / "out", command="test", commit="abc")
    expected = {Unit(kind, 0): Expected(0, 1.0, 4.0, 1.0) for kind in ("elastic", "fixed")}
    seen: dict[str, list[tuple[int, float]]] = {}

    def listen(step, figures):
        for name, value in figures.items():
            seen.setdefault(name, []).append((step, value))

    with listening(listen):
        assert run_all(place, expected, jobs=2, threads=1, peak=1e9)
    for name in ("elastic_seed0", "fixed_seed0"):
        step, loss = seen[f"loss/{name}"][-1]
        assert step == 4 and 0 < loss < 10
    assert seen["units_done"][-1][1] == 2 and seen["percent_done"][-1][1] == 100
    assert max(share for _, share in seen["flops_utilisation"]) > 0
    assert len(seen) == 2 + 5
