"""Plots of the experiment: gaps before and after recovery, every size's loss, and what it cost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from accordion.study.figures import MEAN, MODALITIES

GAP_AIM = 0.02  # nats
Figures = Mapping[str, Any]


def draw(results: Figures, out: Path) -> list[Path]:
    """Write `gaps.png`, `losses.png` and, with variants, `variants.png` into `out`."""
    paths = []
    for name, figure in drawings(results).items():
        path = out / f"{name}.png"
        figure.savefig(path, dpi=120)
        paths.append(path)
    return paths


def drawings(results: Figures) -> dict[str, Figure]:
    """gaps, losses and, where other recipes were run, variants."""
    summary = results["summary"]
    drawn = {"gaps": _gaps(summary), "losses": _losses(summary)}
    if summary["variants"]:
        drawn["variants"] = _variants(summary)
    for figure in drawn.values():
        figure.suptitle(
            f"{', '.join(results['made']['device'])}, seeds {summary['seeds']}, 95 % intervals by t", fontsize=9
        )
        figure.tight_layout()
        plt.close(figure)  # it can still be saved
    return drawn


def _bars(axes: Axes, places: list[float], found: list[Figures], width: float, label: str) -> None:
    """Means with their intervals, and a dot for each seed."""
    means = [value["mean"] for value in found]
    low = [value["mean"] - value["low"] if value["low"] is not None else 0.0 for value in found]
    axes.bar(places, means, width, yerr=low, capsize=2, label=label, error_kw={"linewidth": 0.8})
    dots = [(place, seed) for place, value in zip(places, found, strict=True) for seed in value["values"]]
    axes.plot([place for place, _ in dots], [seed for _, seed in dots], "k.", markersize=3)


def _gaps(summary: Figures) -> Figure:
    """Gap of each member by share of recovery, one panel a modality, with the tax beside them."""
    shown = [name for name in (*MODALITIES, MEAN) if name in summary["tax"]]
    figure, panels = plt.subplots(1, len(shown), figsize=(3.4 * len(shown), 3.6), squeeze=False)
    for axes, name in zip(panels[0], shown, strict=True):
        _gap_panel(axes, summary, name)
    panels[0][0].set_ylabel("nats over a run from scratch")
    panels[0][-1].legend(fontsize=7)
    return figure


def _gap_panel(axes: Axes, summary: Figures, name: str) -> None:
    members = summary["members"]
    shares = list(next(iter(members.values()))["recovery"])
    stages = {"no recovery": [member["gap"] for member in members.values()]}
    for share in shares:
        found = [member["recovery"][share]["gap"] for member in members.values()]
        stages[f"{100 * float(share):g} % recovery"] = found
    width = 0.8 / len(stages)
    for index, (label, found) in enumerate(stages.items()):
        ready = [(at, gap[name]) for at, gap in enumerate(found, 1) if gap]
        _bars(axes, [at + (index - 1) * width for at, _ in ready], [value for _, value in ready], width, label)
    _bars(axes, [0.0], [summary["tax"][name]], width, "tax (full model)")
    axes.axhline(GAP_AIM, color="grey", linestyle=":", linewidth=1)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xticks(range(len(members) + 1), ["full", *members], fontsize=8)
    axes.set_title(name, fontsize=9)


def _losses(summary: Figures) -> Figure:
    """Loss of each size from scratch, inside the elastic run, and cut from the fixed model."""
    shown = [name for name in MODALITIES if name in summary["tax"]]
    figure, panels = plt.subplots(1, len(shown), figsize=(3.4 * len(shown), 3.6), squeeze=False)
    for axes, name in zip(panels[0], shown, strict=True):
        whole = summary["losses"]
        members = summary["members"]
        ways = {
            "from scratch": [whole["fixed"], *(member["scratch"] for member in members.values())],
            "elastic": [whole["elastic"], *(member["elastic"] for member in members.values())],
            "cut from fixed": [whole["fixed"], *(member["naive"] for member in members.values())],
        }
        for label, found in ways.items():
            ready = [(at, value[name]["mean"]) for at, value in enumerate(found) if value]
            axes.plot([at for at, _ in ready], [mean for _, mean in ready], "o-", label=label, markersize=4)
        axes.set_xticks(range(len(members) + 1), ["full", *members], fontsize=8)
        axes.set_title(name, fontsize=9)
    panels[0][0].set_ylabel("validation loss, nats")
    panels[0][-1].legend(fontsize=7)
    return figure


def _variants(summary: Figures) -> Figure:
    """Tax and gap without recovery of every recipe, mean over the modalities."""
    recipes = {"main": summary["tax"][MEAN]} | {
        name: found["tax"][MEAN] for name, found in summary["variants"].items() if found["tax"]
    }
    figure, axes = plt.subplots(figsize=(1.5 + 1.4 * len(recipes), 3.6))
    sizes = list(summary["members"])
    width = 0.8 / (1 + len(sizes))
    _bars(axes, [float(at) for at in range(len(recipes))], list(recipes.values()), width, "tax")
    for index, member in enumerate(sizes, 1):
        gaps = [summary["members"][member]["gap"]] + [
            summary["variants"][name]["members"][member]["gap"] for name in recipes if name != "main"
        ]
        ready = [(at, gap[MEAN]) for at, gap in enumerate(gaps) if gap]
        _bars(axes, [at + index * width for at, _ in ready], [gap for _, gap in ready], width, f"gap, {member}")
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xticks([at + 0.4 for at in range(len(recipes))], list(recipes), fontsize=8)
    axes.set_ylabel("nats, mean over modalities, no recovery")
    axes.legend(fontsize=7)
    return figure
