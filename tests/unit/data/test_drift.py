"""Drift: what moved beyond chance is named with its movement; what cannot be compared is said."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.spatial.distance import jensenshannon
from scipy.stats import ks_2samp

from accordion.config.data import DriftConfig
from accordion.data.expectations.drift import (
    aligned,
    compare,
    jensen_shannon,
    kolmogorov_smirnov,
    measure,
    stability_index,
)
from accordion.data.expectations.statistics import FILE, Lengths, Statistics, counted
from accordion.data.expectations.suite import validate
from accordion.errors import ArtifactError, ValidationFailed

DIGEST = "3fa9c1d2" * 8
TEXTS = np.random.default_rng(7).lognormal(6, 1, 2000)


def statistics(**changes: object) -> Statistics:
    figures: dict = {
        "of": f"corpus:{DIGEST}",
        "counts": {"text rows, train": 2000},
        "mixes": {"text languages": {"en": 900, "de": 700, "ja": 400}},
        "lengths": {"text, characters": Lengths.of(TEXTS)},
    }
    return Statistics(**(figures | changes))


def test_distances_agree_with_scipy() -> None:
    p, q = np.array([9.0, 0, 5, 1]), np.array([2.0, 3, 5, 0])
    assert jensen_shannon(p, q) == pytest.approx(jensenshannon(p, q, base=2) ** 2)
    assert jensen_shannon(p, 3 * p) == 0 and jensen_shannon(np.array([1, 0]), np.array([0, 1])) == pytest.approx(1)
    other = TEXTS[:500] * 1.7
    exact = ks_2samp(TEXTS, other).statistic
    assert kolmogorov_smirnov(Lengths.of(TEXTS), Lengths.of(other)) == pytest.approx(exact, abs=0.05)
    assert stability_index(p, p) == 0 and stability_index(p, q) > 1
    assert aligned({"a": 1}, {"b": 2})[0] == ["a", "b"]


def test_samples_of_one_distribution_do_not_drift_however_small() -> None:
    draw = np.random.default_rng(3)

    def sample(size: int) -> Statistics:
        return Statistics(
            "corpus:x",
            {"rows": size},
            {"mix": counted(draw.choice(8, size)), "tokens": counted(draw.zipf(1.5, size) % 2000)},
            {"length": Lengths.of(draw.lognormal(6, 1, size))},
        )

    for size in (10, 40, 3000):
        for _ in range(10):
            shifts, left = compare(sample(size), sample(size), DriftConfig())
            assert all(shift.within for shift in shifts) and not left, [s for s in shifts if not s.within]


def test_the_first_version_and_a_switched_off_comparison_are_said(tmp_path: Path) -> None:
    first = measure(statistics(), None, DriftConfig(), "validate_data.drift")
    assert first.suites == [] and "no previous version" in first.notes[0] and first.figures["previous"] is None
    off = measure(statistics(), tmp_path, DriftConfig(compare=False), "validate_data.drift")
    assert off.suites == [] and "validate_data.drift.compare is false" in off.notes[0]


def moved() -> Statistics:
    return statistics(
        counts={"text rows, train": 700},
        mixes={"text languages": {"en": 690, "de": 8, "xx": 2}},
        lengths={"text, characters": Lengths.of(TEXTS[:700] / 10)},
    )


def test_what_moved_is_named_with_its_movement_and_kept(tmp_path: Path) -> None:
    statistics(of="corpus:" + "0" * 64).write(tmp_path)
    drift = measure(moved(), tmp_path, DriftConfig(), "validate_data.drift")
    assert drift.figures["outside"] == 4 and drift.figures["previous"] == "corpus:" + "0" * 64
    with pytest.raises(ValidationFailed) as caught:
        validate(drift.suites, tmp_path, "raw data", drift.notes)
    text = str(caught.value)
    assert "drift from 0000000000000000: expect_column_max_to_be_between(text rows, train, ratio" in text
    assert "observed 0.35 (2,000 -> 700" in text and "en 45.0% -> 98.6%" in text
    assert 'add "3fa9c1d23fa9c1d2" to validate_data.drift.accept' in text
    rows = [json.loads(line) for line in (tmp_path / "failed_rows.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and all(row["observed"] is not None and "->" in row["note"] for row in rows)


def test_an_accepted_version_passes_with_a_warning(tmp_path: Path) -> None:
    statistics(of="corpus:" + "0" * 64).write(tmp_path)
    drift = measure(moved(), tmp_path, DriftConfig(accept=("3fa9c1d2",)), "validate_data.drift")
    figures = validate(drift.suites, tmp_path, "raw data", drift.notes)
    assert figures["warned"] == 4 and figures["failed"] == 0 and drift.figures["accepted"]
    assert "warning: drift from" in (tmp_path / "report.html").read_text()
    other = measure(moved(), tmp_path, DriftConfig(accept=("aaaaaaaa",)), "validate_data.drift")
    assert not other.figures["accepted"] and not any(each.warning for each in other.suites[0].expectations)


def test_what_rests_on_another_tokenizer_is_said_and_not_compared() -> None:
    rests = {"text languages": "tokenizer-text:bb"}
    before = statistics(rests_on={"text languages": "tokenizer-text:aa"})
    now = statistics(mixes={"text languages": {"xx": 1}, "new": {"a": 1}}, rests_on=rests)
    shifts, left = compare(before, now, DriftConfig())
    assert all(shift.within for shift in shifts)
    assert left[0] == "text languages: rests on tokenizer-text:bb, before on tokenizer-text:aa"
    assert left[1] == "new: new in this version"


def test_what_vanished_has_drifted() -> None:
    shifts, _ = compare(statistics(), Statistics("corpus:x"), DriftConfig())
    outside = {shift.figure for shift in shifts if not shift.within}
    assert outside == {"text rows, train", "text languages", "text, characters"}


def test_statistics_come_back_as_written_and_damage_is_named(tmp_path: Path) -> None:
    statistics().write(tmp_path)
    assert Statistics.read(tmp_path) == statistics()
    document = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(document | {"schema": 99}))
    assert Statistics.read(tmp_path) is None
    assert "another form" in measure(statistics(), tmp_path, DriftConfig(), "x").notes[0]
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(ArtifactError, match="no readable statistics"):
        Statistics.read(tmp_path)


@pytest.mark.parametrize("accept", ["3fa9", "not hex!", "3FA9C1D2"])
def test_acceptance_wants_a_digest(accept: str) -> None:
    with pytest.raises(ValidationError, match="no beginning of a digest"):
        DriftConfig(accept=(accept,))
