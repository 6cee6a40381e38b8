"""The section of the family experiment: what elasticity costs the full model, its members, and the purse."""

import json
from collections.abc import Mapping
from typing import Any

from accordion.report.run import RunFigures
from accordion.report.section import Drawing, Section, Table
from accordion.report.summary import Summary
from accordion.study.figures import MEAN, MODALITIES, RESULTS
from accordion.study.plots import drawings

CAPTIONS = {
    "gaps": "Validation loss of each member over a run of its size from scratch, before and after recovery; for the "
    "full model, over the same model without elasticity. The dotted line is the aim.",
    "losses": "Validation loss of every size: from scratch, inside the elastic run, and cut out of a model that was "
    "trained without elasticity.",
    "variants": "Other recipes, without recovery, beside the main one.",
}


def experiment(run: RunFigures, summary: Summary) -> Section | None:
    """The family experiment; None in a run that has none."""
    path = run.file("study", RESULTS)
    if path is None:
        return None
    results = json.loads(path.read_text())
    found, made = results["summary"], results["made"]
    cost = found["cost"].get("family", {}).get("flops", {})
    share = max(cost, key=float, default=None)
    ratio = "" if share is None else f" The family costs {_of(cost[share])} of a run for every size."
    return Section(
        anchor="experiment",
        title="Family experiment",
        finding=f"Elasticity costs the full model {_of(found['tax']['text'])} nats of text and "
        f"{_of(found['tax'][MEAN])} over the modalities ({len(found['seeds'])} seeds, 95 % intervals).{ratio}",
        drawings=[
            Drawing(name=name, figure=figure, caption=CAPTIONS[name], alt=CAPTIONS[name])
            for name, figure in drawings(results).items()
        ],
        tables=[_gaps(found), _costs(found)],
        notes=[
            f"{', '.join(made['device'])}; commits {', '.join(made['commit'])}; made by {', '.join(made['command'])}."
        ],
    )


def _gaps(found: Mapping[str, Any]) -> Table:
    names = [name for name in (*MODALITIES, MEAN) if name in found["tax"]]
    rows: list[tuple[str, ...]] = [("full", "none", *(_of(found["tax"][name]) for name in names))]
    for member, judged in found["members"].items():
        stages = {"none": judged["gap"]} | {
            f"{float(share):.0%}": part["gap"] for share, part in judged["recovery"].items()
        }
        rows += [(member, share, *(_of(gap[name]) for name in names)) for share, gap in stages.items() if gap]
    return Table(
        caption="Nats over the model trained alone, by share of recovery", header=("member", "recovery", *names),
        rows=rows, words=("member", "recovery"), folded=False,
    )  # fmt: skip


def _costs(found: Mapping[str, Any]) -> Table:
    rows = [
        (label.replace("_", " "), side, f"{float(share):.0%}", _of(value))
        for label, sides in found["cost"].items() if label != "elastic_of_fixed"
        for side, shares in sides.items()
        for share, value in shares.items()
    ]  # fmt: skip
    return Table(
        caption="Cost of the elastic run and its recoveries over a run for every size",
        header=("family", "counted in", "recovery", "ratio"), rows=rows, words=("family", "counted in", "recovery"),
    )  # fmt: skip


def _of(value: Mapping[str, Any]) -> str:
    around = "" if value["low"] is None else f" [{value['low']:.3f}, {value['high']:.3f}]"
    return f"{value['mean']:.3f}{around}"
