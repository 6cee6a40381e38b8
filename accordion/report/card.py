"""The model card (Markdown) of a registered version: what it is, where it comes from, how good it is, its limits."""

from collections.abc import Mapping, Sequence

from accordion.report.summary import SYSTEMS, Summary
from accordion.report.words import interval, number

_NAMES = {"encoder": "this model", "untrained": "before training", "bm25": "BM25", "fusion": "this model + BM25"}


def model_card(summary: Summary, *, name: str, lineage: str, encoder: Mapping[str, object]) -> str:
    """The card of one version.

    Args:
        summary: the run's figures; what it lacks is left out of the card.
        name: of the registered model.
        lineage: what it was made from, as plain lines (the tree that `accordion inspect` prints).
        encoder: the encoder's contract (dimension, pooling, prefixes, most tokens, ...), as in contract.json.
    """
    parts = [
        f"# {name}",
        "A text encoder for retrieval: it turns queries and passages into vectors whose cosine says how well they fit. "
        "It is a sub-model cut out of an elastic mixture-of-experts model, then distilled on one retrieval domain.",
        "## How to feed it",
        _table(("setting", "value"), [(key.replace("_", " "), _plain(value)) for key, value in encoder.items()]),
    ]
    if summary.retrieval:
        parts += ["## Retrieval, mean and 95% interval over queries", _retrieval(summary)]
        parts.append("Trained on the first domain only, with queries that the evaluation does not use.")
    if summary.gate is not None:
        verdict = "passed" if summary.gate.passed else "failed"
        rows = [
            (check.name, "missing" if check.value is None else number(check.value), "yes" if check.passed else "no")
            for check in summary.gate.checks
        ]
        parts += [f"## Gate: {verdict}", _table(("check", "measured", "passed"), rows)]
    if summary.pretrain is not None:
        full, unigram = summary.pretrain.val_loss_full, summary.pretrain.val_loss_unigram
        rows = [(modality, f"{full[modality]:.4f}", f"{unigram[modality]:.4f}") for modality in full]
        parts += [
            "## The model it comes from",
            "Validation loss in nats: text a token, image and video a bit, audio a code.",
        ]
        parts.append(_table(("modality", "full model", "unigram"), rows))
    parts += ["## Lineage", f"```\n{lineage}\n```"]
    parts += [
        "## Limits",
        "Small, and trained on the small sample of data that the repository ships unless the lineage says otherwise: "
        "compare it with BM25 in the table above before relying on it. It has learnt one domain; on others it is "
        "zero-shot. Text longer than its limit is cut.",
    ]
    return "\n\n".join(parts) + "\n"


def _retrieval(summary: Summary) -> str:
    rows = [
        (domain, _NAMES[system], interval(figures.ndcg10[system]), interval(figures.recall100[system]))
        for domain, figures in (summary.retrieval or {}).items()
        for system in SYSTEMS
        if system in figures.ndcg10
    ]
    return _table(("domain", "system", "nDCG@10", "recall@100"), rows)


def _plain(value: object) -> str:
    return (f"`{value}`" if value else "none") if isinstance(value, str) else number(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
