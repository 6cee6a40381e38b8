"""Deck fragments of single stages, and the model card."""

import pytest

from accordion.report.card import model_card
from accordion.report.deck import deck
from accordion.report.run import RunFigures
from accordion.report.summary import summarise


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ("ingest", "What the corpus holds"),
        ("pretrain", "under the unigram baseline"),
        ("analyse", "One router serves all modalities"),
        ("rl", "held-out problems are solved"),
        ("evaluate", "nDCG@10 of the encoder"),
        ("gate", "All 4 checks passed."),
        ("rollout", "Version 3 is served."),
        ("distil", "queries_per_second"),
    ],
)
def test_a_stage_has_its_deck(run: RunFigures, stage: str, says: str) -> None:
    html = deck(stage, run.metrics[stage], run.folders.get(stage, next(iter(run.folders.values())) / "none"))
    assert says in html
    assert "<html" not in html and "<script" not in html and "@scope (.accordion-deck)" in html


def test_the_card_tells_figures_lineage_and_limits(run: RunFigures) -> None:
    card = model_card(
        summarise(run.metrics, run.timings),
        name="accordion-encoder",
        lineage="encoder:" + "a" * 64,
        encoder={"dimension": 128, "pooling": "mean", "query_prefix": "query: "},
    )
    assert card.startswith("# accordion-encoder\n")
    assert "| libreoffice-help | this model | 0.291 [0.271, 0.311] |" in card
    assert "| libreoffice-help | BM25 | 0.414 [0.394, 0.434] |" in card
    assert "encoder:aaaa" in card and "| dimension | 128 |" in card
    assert "## Gate: passed" in card and "## Limits" in card


def test_a_card_leaves_out_what_was_not_measured() -> None:
    card = model_card(summarise({}, {}), name="m", lineage="", encoder={})
    assert "Retrieval" not in card and "Gate" not in card
