"""The evaluate stage on two tiny domains."""

import json

import pandas as pd
import pytest

from accordion.config.release import EvaluateConfig
from accordion.errors import DataError
from accordion.evaluate.statistics import paired_randomisation
from accordion.retrieval.examine import evaluate
from tests.unit.retrieval.conftest import write_domain


def test_figures_cover_every_domain_system_and_query(trained, corpus, tmp_path):
    config = EvaluateConfig(bootstrap=200, permutations=500)
    figures = evaluate(config, out=tmp_path, encoder=trained[0], corpus=corpus)
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    table = pd.read_parquet(tmp_path / "per_query.parquet")
    assert set(figures["domains"]) == {"source", "other"}
    for domain, count in (("source", 20), ("other", 30)):
        found = figures["domains"][domain]
        for system in ("encoder", "untrained", "bm25", "fusion"):
            for measure in ("ndcg10", "recall100", "mrr10"):
                figure = found[system][measure]
                assert figure["count"] == count
                assert 0 <= figure["low"] <= figure["mean"] <= figure["high"] <= 1
                rows = table[(table.domain == domain) & (table.system == system)]
                assert rows[measure].mean() == pytest.approx(figure["mean"])
        assert found["bm25"]["ndcg10"]["mean"] > 0.9
        assert found["gain"]["ndcg10"]["mean"] == pytest.approx(
            found["encoder"]["ndcg10"]["mean"] - found["untrained"]["ndcg10"]["mean"]
        )
    source = figures["domains"]["source"]
    assert source["gain"]["ndcg10"]["mean"] > 0.05
    ranked = table[table.domain == "source"].pivot(index="query", columns="system", values="ndcg10")
    for system in ("untrained", "bm25"):
        p = paired_randomisation(
            ranked.encoder.to_numpy(), ranked[system].to_numpy(), permutations=5000, seed=1
        )  # other draws than the stage's
        assert source[f"encoder_vs_{system}_p"] == pytest.approx(p, abs=0.05)


def test_a_corpus_without_domains_is_refused(trained, tmp_path):
    with pytest.raises(DataError, match="no domain"):
        evaluate(EvaluateConfig(), out=tmp_path, encoder=trained[0], corpus=tmp_path)


def test_a_judgement_of_an_unknown_document_stops_the_evaluation(trained, tmp_path):
    write_domain(tmp_path / "retrieval/broken", splits={"test": range(5)})
    qrels = tmp_path / "retrieval/broken/qrels/test.tsv"
    qrels.write_text(qrels.read_text() + "q1\td999\t1\n")
    with pytest.raises(DataError, match=r"test.tsv:7: document 'd999' is not in corpus.jsonl"):
        evaluate(EvaluateConfig(), out=tmp_path, encoder=trained[0], corpus=tmp_path)
