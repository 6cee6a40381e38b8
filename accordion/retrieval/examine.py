"""Stage evaluate: the encoder on every domain, beside itself untrained, BM25 and the fusion with BM25."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from accordion.config.release import EvaluateConfig
from accordion.data.tokenizers.text import TextTokenizer
from accordion.evaluate.metrics import per_query
from accordion.evaluate.statistics import bootstrap, paired_randomisation
from accordion.observe import say
from accordion.retrieval.beir import Collection, Ranking, domains, read_collection
from accordion.retrieval.bm25 import Bm25
from accordion.retrieval.encoder import Encoder, load_encoder
from accordion.retrieval.index import FlatIndex, fuse

Scores = dict[str, NDArray[np.float64]]  # measure -> (queries,), in the order of the qrels


def evaluate(config: EvaluateConfig, *, out: Path, encoder: Path, corpus: Path) -> dict[str, Any]:
    """Stage: nDCG@10, Recall@100 and MRR@10 with 95 % intervals of four systems on the test queries of each domain.

    Writes `figures.json` (the returned figures) and `per_query.parquet` (domain, query, system, measures).
    Every judged query counts, also one a system found nothing for.

    Raises:
        ArtifactError: the encoder is incomplete.
        DataError: a domain cannot be read; the text names file and line.
    """
    trained, tokenizer = load_encoder(encoder)
    untrained, _ = load_encoder(encoder, encoder / "untrained" / "model.safetensors")
    figures: dict[str, Any] = {}
    tables = []
    for name in domains(corpus):
        collection = read_collection(corpus / "retrieval" / name, "test")
        started = time.monotonic()
        runs = rank(config, collection, tokenizer, trained, untrained)
        scores = {system: per_query(collection.qrels, run) for system, run in runs.items()}
        figures[name] = summarise(config, collection, scores)
        tables += [
            pd.DataFrame({"domain": name, "query": list(collection.qrels), "system": system, **measures})
            for system, measures in scores.items()
        ]
        shown = ", ".join(f"{system} {figures[name][system]['ndcg10']['mean']:.3f}" for system in scores)
        say(f"evaluate: {name}: nDCG@10 {shown} ({time.monotonic() - started:.1f} s)")
    pd.concat(tables).to_parquet(out / "per_query.parquet", index=False)
    (out / "figures.json").write_text(json.dumps({"domains": figures}, indent=1) + "\n")
    return {"domains": figures}


def rank(
    config: EvaluateConfig, collection: Collection, tokenizer: TextTokenizer, trained: Encoder, untrained: Encoder
) -> dict[str, dict[str, Ranking]]:
    """System -> query id -> the best `config.depth` documents."""
    runs: dict[str, dict[str, Ranking]] = {}
    for system, encoder in (("encoder", trained), ("untrained", untrained)):
        documents = encoder.encode(
            tokenizer, list(collection.documents.values()), "document", f"{collection.name} documents, {system}"
        )
        queries = encoder.encode(tokenizer, list(collection.queries.values()), "query")
        found = FlatIndex.build(list(collection.documents), documents).search(queries, config.depth)
        runs[system] = dict(zip(collection.queries, found, strict=True))
    lexical = Bm25(collection.documents, k1=config.bm25_k1, b=config.bm25_b)
    runs["bm25"] = lexical.search(collection.queries, config.depth)
    runs["fusion"] = fuse([runs["encoder"], runs["bm25"]], config.depth)
    return runs


def summarise(config: EvaluateConfig, collection: Collection, scores: dict[str, Scores]) -> dict[str, Any]:
    """Figures of one domain: each system's measures with intervals, and the paired comparisons.

    `gain` is encoder minus untrained, query by query; the p values are of paired randomisation on nDCG@10.
    """

    def estimate(values: NDArray[np.float64]) -> dict[str, Any]:
        return bootstrap(values, resamples=config.bootstrap, seed=config.seed).to_json()

    def p_against(system: str) -> float:
        return paired_randomisation(
            scores["encoder"]["ndcg10"], scores[system]["ndcg10"], permutations=config.permutations, seed=config.seed
        )

    figures: dict[str, Any] = {
        system: {measure: estimate(values) for measure, values in measures.items()}
        for system, measures in scores.items()
    }
    figures["gain"] = {
        measure: estimate(values - scores["untrained"][measure]) for measure, values in scores["encoder"].items()
    }
    figures["encoder_vs_untrained_p"] = p_against("untrained")
    figures["encoder_vs_bm25_p"] = p_against("bm25")
    figures["documents"] = len(collection.documents)
    figures["queries"] = len(collection.queries)
    return figures
