"""The plot of a search: every judged member, the Pareto front, the members written, the limit."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from accordion.report.style import PALETTE, drawing
from accordion.report.words import count

LABELS = {
    "active_parameters": "parameters active for a token",
    "parameters": "parameters",
    "bytes": "bytes of weights",
    "latency_ms": "milliseconds a sequence, measured",
}


def pareto(document: Mapping[str, Any]) -> Figure:
    """Relative loss against the cost, from the contents of `search.json`."""
    cost, trials = document["cost"], document["trials"]
    limit = document["budget"].get(cost)
    front = [trials[index] for index in document["front"]]
    with drawing():
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(*_columns(trials, cost), "o", color=PALETTE["faint"], markersize=4, linestyle="none", label="judged")
        axes.plot(*_columns(front, cost), "o-", color=PALETTE["accent"], markersize=4.5, linewidth=1, label="front")
        for member in document["members"]:
            where = (member["costs"][cost], member["relative_loss"])
            axes.plot(*where, "s", color=PALETTE["good"], markersize=7, fillstyle="none", markeredgewidth=1.4)
            axes.annotate(
                member["name"], where, xytext=(6, 6), textcoords="offset points", fontsize=8, color=PALETTE["good"]
            )
        if limit is not None:
            axes.axvline(limit, color=PALETTE["bad"], linestyle=(0, (4, 3)), linewidth=1, label="limit")
        axes.set_xlabel(LABELS[cost])
        axes.set_ylabel("loss over the full model’s")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
        axes.margins(0.08)
        axes.legend(loc="best")
        return figure


def _columns(members: list[Mapping[str, Any]], cost: str) -> tuple[list[float], list[float]]:
    return [member["costs"][cost] for member in members], [member["relative_loss"] for member in members]
