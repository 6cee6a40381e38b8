"""Expectations on what ingest took out: records it could not read, exact copies, near copies.

The figures are ingest's own (metrics.json and quarantine.jsonl of the corpus); records that were taken out are not
in the tables, so that nothing else can count them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from accordion.config.data import ValidateConfig
from accordion.data.expectations.statistics import Statistics
from accordion.data.expectations.suite import Suite, expect
from accordion.errors import DataError

METRICS, QUARANTINE = "metrics.json", "quarantine.jsonl"


def ingested(corpus: Path, config: ValidateConfig, statistics: Statistics) -> tuple[list[Suite], list[str]]:
    """The suite of what was taken out, and a note when the corpus does not say; counts go to `statistics`."""
    path = corpus / METRICS
    if not path.is_file():
        return [], [f"What ingest took out is not known: the corpus has no {METRICS}."]
    try:
        metrics = json.loads(path.read_text())
        kept = {name: sum(splits.values()) for name, splits in metrics["rows"].items()}
        copies = copies_removed(metrics)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not ingest's figures ({error!r}); run `ingest` again") from None
    refused = _lines(corpus / QUARANTINE)
    statistics.counts["quarantined records"] = refused
    rows = [{"id": "unreadable records", "removed": refused, "of": refused + sum(kept.values()),
             "allowed": config.quarantined_share}]  # fmt: skip
    for sort, allowed in (("exact", config.copies_share), ("near", config.near_copies_share)):
        for part, count in copies.get(sort, {}).items():
            whole = kept.get(part, sum(kept.values())) + count
            rows.append({"id": f"{sort} copies, {part}", "removed": count, "of": whole, "allowed": allowed})
            statistics.counts[f"{sort} copies, {part}"] = count
    table = pd.DataFrame(rows)
    table["share"] = table["removed"] / table["of"].clip(lower=1)
    few = expect("column_pair_values_a_to_be_greater_than_b", column_A="allowed", column_B="share", or_equal=True)
    return [Suite("taken out by ingest", table, [few])], []


def copies_removed(metrics: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """`exact` and `near` -> part of the corpus -> copies that ingest removed."""
    found = metrics.get("duplicates", {})
    sorts = found if {*found} & {"exact", "near"} else {"exact": found}
    return {
        sort: {part: int(n) for part, n in counts.items()} if isinstance(counts, Mapping) else {"corpus": int(counts)}
        for sort, counts in sorts.items()
        if sort in ("exact", "near")
    }


def _lines(path: Path) -> int:
    return sum(bool(line.strip()) for line in path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0
