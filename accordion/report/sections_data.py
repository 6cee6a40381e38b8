"""The sections on the corpus and on what was expected of the data: expectations, drift, what was taken out."""

import json
from collections.abc import Mapping
from typing import Any

from accordion.data.expectations.ingested import copies_removed
from accordion.data.expectations.statistics import Statistics
from accordion.report import plots_data, samples
from accordion.report.run import RunFigures
from accordion.report.section import Drawing, Section, Table, absent
from accordion.report.summary import Summary
from accordion.report.words import mark, number

DECONTAMINATION = {
    "cut": "training texts that lost a passage",
    "dropped": "training texts of which nothing was left",
    "passages": "passages cut out",
}
STAGES = {"validate_data": "raw data", "validate_shards": "shards"}


def data(run: RunFigures, summary: Summary) -> Section:
    folder = run.folders.get("ingest")
    if folder is None or not folder.is_dir():
        return absent("data", "Data", "The corpus of this run is no longer in the store.")
    overview = samples.overview(folder)
    tables = [
        Table(
            caption="What the corpus holds",
            header=("part", "train", "validation", "amount", "languages", "sources", "licences"),
            rows=overview.rows,
            words=("part", "amount", "languages", "sources", "licences"),
            folded=False,
        )
    ]
    removed = _removed(run.metrics.get("ingest", {}), overview.refused)
    if removed:
        tables.append(
            Table(caption="What ingest took out or noticed", header=("what", "part", "amount"), rows=removed,
                  words=("what", "part"), folded=False)
        )  # fmt: skip
    refused = (
        f" Records that could not be read and were set aside in quarantine.jsonl: {overview.refused:,}."
        if overview.refused
        else " Every record could be read."
    )
    return Section(
        anchor="data", title="Data", finding=overview.sentence + refused, drawings=_drawings(run), tables=tables
    )


def _removed(ingest: Mapping[str, Any], refused: int) -> list[tuple[str, str, str]]:
    rows = [
        (f"{sort} copies", part, f"{count:,}")
        for sort, parts in copies_removed(ingest).items()
        for part, count in parts.items()
        if count
    ]
    removed = ingest.get("decontamination", {}).get("removed", {})
    rows += [
        ("decontamination", meaning, f"{removed[name]:,}")
        for name, meaning in DECONTAMINATION.items()
        if name in removed
    ]
    rows += [
        ("declared another language than identified", f"{kind}, {language}", f"{found['mismatch_share']:.1%}")
        for kind, by_language in ingest.get("language_check", {}).items()
        for language, found in by_language.items()
        if found["mismatch_share"]
    ]
    return [*rows, ("unreadable, quarantined", "all", f"{refused:,}")] if rows else []


def _drawings(run: RunFigures) -> list[Drawing]:
    path = run.file("validate_data", "statistics.json")
    statistics = Statistics.read(path.parent) if path is not None else None
    if statistics is None:
        return []
    mixes, lengths = plots_data.panels(statistics)
    found = []
    if mixes:
        told = "; ".join(f"{name}: " + ", ".join(f"{k} {v:,}" for k, v in mix.items()) for name, mix in mixes.items())
        caption = "Share of each language in the records of a modality."
        found.append(Drawing(name="languages", figure=plots_data.languages(mixes), caption=caption, alt=told))
    if lengths:
        told = "; ".join(f"{name}: median {held.quantiles['0.5']:.4g}" for name, held in lengths.items())
        caption = "Lengths of the records, on a logarithmic scale; the dashed line is the median."
        found.append(Drawing(name="lengths", figure=plots_data.lengths(lengths), caption=caption, alt=told))
    return found


def quality(run: RunFigures, summary: Summary) -> Section:
    """Expectations and drift of both validations."""
    stages = {stage: run.metrics[stage] for stage in STAGES if stage in run.metrics}
    if not stages:
        return absent("quality", "Data quality", "No data was validated in this run.")
    total = sum(figures.get("expectations", 0) for figures in stages.values())
    warned = sum(figures.get("warned", 0) for figures in stages.values())
    verdict = f"{total - warned} of {total} Great Expectations hold" + (
        f", {warned} are warnings that do not stop the run." if warned else "."
    )
    moved = [_moved(STAGES[stage], figures) for stage, figures in stages.items() if "drift" in figures]
    tables = [_suites(stages), *_shifts(stages), *_observed(run, stages)]
    notes = [
        f"{STAGES[stage].capitalize()}: {note}" for stage, each in stages.items() for note in each.get("notes", [])
    ]
    return Section(
        anchor="quality", title="Data quality", finding=" ".join([verdict, *moved]), tables=tables, notes=notes
    )


def _moved(what: str, figures: Mapping[str, Any]) -> str:
    drift = figures["drift"]
    if drift["previous"] is None:
        return f"Of the {what} there is no previous version to compare with."
    kind, _, digest = drift["previous"].partition(":")
    accepted = ", and that is accepted in the profile" if drift["accepted"] else ""
    return (
        f"Against {kind} {digest[:16]}, {drift['outside']} of {len(drift['shifts'])} distances of the {what} "
        f"are outside their bounds{accepted}."
    )


def _suites(stages: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [
        (STAGES[stage], name, f"{suite['rows']:,}", suite["expectations"],
         mark(True) if not suite.get("warned") else f"{suite['warned']} warnings")
        for stage, figures in stages.items()
        for name, suite in figures.get("suites", {}).items()
    ]  # fmt: skip
    return Table(
        caption="Suites of expectations",
        header=("data", "suite", "rows", "expectations", "verdict"),
        rows=rows,
        words=("data", "suite", "verdict"),
    )


def _shifts(stages: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    rows = [
        (
            STAGES[stage], shift["figure"], shift["measure"], number(shift["value"]),
            f"{number(shift['low'])} to {number(shift['high'])}",
            mark(shift["within"], "within" if shift["within"] else "outside"), shift["told"],
        )
        for stage, figures in stages.items()
        for shift in figures.get("drift", {}).get("shifts", [])
    ]  # fmt: skip
    header = ("data", "figure", "measure", "distance", "bounds", "verdict", "before → now")
    words = ("data", "figure", "measure", "bounds", "verdict", "before → now")
    caption = "Drift against the previous version"
    return [Table(caption=caption, header=header, rows=rows, words=words)] if rows else []


def _observed(run: RunFigures, stages: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Every expectation with what was observed, from result.json."""
    rows = []
    for stage in stages:
        path = run.file(stage, "result.json")
        for each in json.loads(path.read_text())["expectations"] if path is not None else []:
            bounds = ", ".join(f"{key} {value}" for key, value in each["arguments"].items() if value is not None)
            rows.append((each["suite"], each["type"].removeprefix("expect_").replace("_", " "), each["column"],
                         _short(bounds), _seen(each), mark(each["success"])))  # fmt: skip
    header = ("suite", "expectation", "column", "bounds", "observed", "verdict")
    return [Table(caption=f"All {len(rows)} expectations", header=header, rows=rows, words=header)] if rows else []


def _seen(outcome: Mapping[str, Any]) -> str:
    observed = outcome["observed"]
    if observed is None:
        return f"{outcome['failed'] or 0} of {outcome['checked']} rows fail"
    if isinstance(observed, dict) and "values" in observed:
        return ", ".join(number(value) for value in observed["values"])
    return _short(", ".join(map(str, observed)) if isinstance(observed, list) else number(observed))


def _short(text: str, most: int = 90) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
