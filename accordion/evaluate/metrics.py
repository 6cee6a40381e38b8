"""Ranking measures for each query, computed by ir-measures (pytrec_eval underneath)."""

from collections.abc import Iterable, Mapping, Sequence

import ir_measures
import numpy as np
from ir_measures import RR, R, nDCG
from numpy.typing import NDArray

from accordion.errors import DataError

MEASURES = {"ndcg10": nDCG @ 10, "recall100": R @ 100, "mrr10": RR @ 10}


def per_query(
    qrels: Mapping[str, Mapping[str, int]], run: Mapping[str, Sequence[tuple[str, float]]]
) -> dict[str, NDArray[np.float64]]:
    """Measures of a run: name -> (queries,) in the order of `qrels`.

    Every judged query counts: one the run has no documents for scores 0 (BEIR's own average skips it).

    Args:
        qrels: query id -> document id -> relevance.
        run: query id -> (document id, score), best first; ties keep the order given.

    Raises:
        DataError: the run holds a query that has no judgements.
    """
    unknown = [query for query in run if query not in qrels]
    if unknown:
        raise DataError(f"query {unknown[0]!r} of the run has no judgements; evaluate only judged queries")
    place = {query: index for index, query in enumerate(qrels)}
    values = {name: np.zeros(len(qrels)) for name in MEASURES}
    names = {measure: name for name, measure in MEASURES.items()}
    judged = [ir_measures.Qrel(q, d, score) for q, documents in qrels.items() for d, score in documents.items()]
    # Scores become minus the rank, since trec_eval would break ties by document id instead of by our order.
    ranked: Iterable[ir_measures.ScoredDoc] = [
        ir_measures.ScoredDoc(query, document, -float(rank))
        for query, documents in run.items()
        for rank, (document, _) in enumerate(documents)
    ]
    for result in ir_measures.iter_calc(list(MEASURES.values()), judged, ranked):
        values[names[result.measure]][place[result.query_id]] = result.value
    return values
