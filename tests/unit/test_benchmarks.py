"""The benchmark harness and its command: pairing, spread, listing, names, JSON; serving with a real encoder."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from accordion.errors import ArtifactError
from benchmarks import __main__ as command
from benchmarks import harness, serving


def test_sides_alternate_and_the_warm_up_does_not_count() -> None:
    calls: list[str] = []

    def side(name: str, value: float):  # type: ignore[no-untyped-def]
        def measure() -> dict[str, float]:
            calls.append(name)
            return {"time": value + len(calls)}

        return measure

    values = harness.paired(side("a", 10), side("b", 20), repeats=2, label="test", warm_up=1)
    assert calls == ["a", "b"] * 3
    assert values == {"time": ([13, 15], [24, 26])}


def test_sides_must_measure_the_same() -> None:
    with pytest.raises(ValueError, match="different figures"):
        harness.paired(lambda: {"a": 1.0}, lambda: {"b": 1.0}, repeats=1, label="test")


def test_a_row_states_the_spread_of_paired_ratios() -> None:
    row = harness.Row(figure="f", unit="s", ours="o", peer="p", ours_values=[2, 3, 8], peer_values=[1, 2, 2])
    assert row.to_json()["ratio"] == {"median": 2.0, "low": 1.5, "high": 4.0}
    assert row.to_json()["difference"] == {"median": 1, "low": 1, "high": 6}


def test_list_names_every_benchmark() -> None:
    shown = CliRunner().invoke(command.app, ["--list"])
    assert shown.exit_code == 0
    assert all(name in shown.output for name in command.BENCHMARKS)
    assert "Triton against ONNX Runtime" in shown.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["servin"], "did you mean 'serving'?"), (["zzz"], "known: orchestration, serving"), ([], "name a benchmark")],
)
def test_an_unknown_name_is_an_error_with_the_names(arguments: list[str], says: str) -> None:
    shown = CliRunner().invoke(command.app, arguments)
    assert shown.exit_code == 2 and says in shown.output


def test_without_an_encoder_serving_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCORDION_HOME", str(tmp_path))
    shown = CliRunner().invoke(command.app, ["serving"])
    assert shown.exit_code == 2 and "holds no encoder yet; run `make run` once" in shown.output


def test_results_are_written_with_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(repeats: int) -> list[harness.Row]:
        values = harness.paired(lambda: {"t": 2.0}, lambda: {"t": 1.0}, repeats=repeats, label="test")
        return [
            harness.Row(figure=name, unit="s", ours="o", peer="p", ours_values=a, peer_values=b)
            for name, (a, b) in values.items()
        ]

    monkeypatch.setattr(serving, "run", run)
    file = tmp_path / "deep" / "out.json"
    shown = CliRunner().invoke(command.app, ["serving", "--json", str(file), "--repeats", "3"])
    assert shown.exit_code == 0, shown.output
    document = json.loads(file.read_text())
    assert document["benchmark"] == "serving" and document["rows"][0]["ratio"]["median"] == 2.0
    assert len(document["rows"][0]["ours"]["values"]) == 3
    assert document["machine"]["cores"] >= 1 and document["machine"]["packages"]["onnxruntime"]


def test_sides_that_disagree_are_not_compared() -> None:
    ahead, behind = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    with pytest.raises(ArtifactError, match="differently"):
        serving.compare(lambda text: ahead, lambda text: behind, ["a"], 0, 1)


def test_throughput_counts_concurrent_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "REQUESTS", 16)

    def embed(text: str) -> np.ndarray:
        time.sleep(0.01)
        return np.ones(1)

    alone = serving.one_by_one(embed, ["a"], None)
    assert 10 <= alone["request"] < 20
    assert serving.together(embed, ["a"])["throughput"] > 2 / 0.01
