"""The figures of the report: plain data in, a matplotlib Figure out (Agg; no global state)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from accordion.report.style import PALETTE, SEQUENTIAL, drawing
from accordion.report.summary import MODALITIES, Domain, Posttrain, Pretrain, StageTiming
from accordion.report.words import count, duration

Curves = Mapping[str, Sequence[tuple[int, float]]]
UNITS = {"text": "a token", "image": "a bit", "video": "a bit", "audio": "a code"}
SYSTEM_NAMES = {"encoder": "encoder", "untrained": "untrained", "bm25": "BM25", "fusion": "fusion"}
_SYSTEM_COLOURS = {"encoder": "accent", "untrained": "faint", "bm25": "quiet", "fusion": "video"}
_MARKERS = "osD^vPX*"


def losses(curves: Curves, pretrain: Pretrain) -> Figure:
    """Training loss of each modality by step, its unigram line, and the full model's validation loss at the end."""
    with drawing():
        figure = Figure(figsize=(10, 2.7), layout="constrained")
        for axes, modality in zip(figure.subplots(1, 4), MODALITIES, strict=True):
            colour = PALETTE[modality]
            points = curves.get(f"loss/{modality}", ())
            unigram, full = pretrain.val_loss_unigram[modality], pretrain.val_loss_full[modality]
            steps, values = _columns(points)
            axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
            axes.plot(steps, _smooth(values), color=colour)
            axes.axhline(unigram, color=PALETTE["quiet"], linestyle=(0, (4, 3)), linewidth=1)
            last = float(steps[-1]) if steps.size else 0.0
            axes.plot([last], [full], "o", color=colour, markersize=5, clip_on=False)
            low = min([full, unigram, *np.quantile(values, [0.02])] if values.size else [full, unigram])
            high = max(full, unigram)  # a model that has learnt little is above the line
            span = max(high - low, 0.02 * unigram)
            axes.set_ylim(low - 0.25 * span, high + 0.6 * span)
            axes.annotate(
                f"unigram {unigram:.3f}", (0.98, unigram), xycoords=("axes fraction", "data"), fontsize=8,
                color=PALETTE["quiet"], ha="right", va="bottom", xytext=(0, 2), textcoords="offset points",
            )  # fmt: skip
            axes.set_title(f"{modality}: {full:.3f} nats {UNITS[modality]}")
            axes.set_xlabel("step")
            _calm(axes)
        return figure


def family(pretrain: Pretrain) -> Figure:
    """Validation loss of each member of the elastic family against its active parameters, by modality."""
    with drawing():
        figure = Figure(figsize=(10, 2.9), layout="constrained")
        for axes, modality in zip(figure.subplots(1, 4), MODALITIES, strict=True):
            for index, member in enumerate(pretrain.submodels):
                axes.plot(
                    [member.active_parameters], [member.val_loss[modality]], _MARKERS[index % len(_MARKERS)],
                    color=PALETTE[modality], markersize=6.5, label=member.name, linestyle="none",
                    markerfacecolor=PALETTE[modality] if member.name == "full" else PALETTE["ground"],
                )  # fmt: skip
            axes.margins(0.14, 0.18)
            axes.set_title(modality)
            axes.set_xlabel("active parameters")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
            _calm(axes)
            axes.xaxis.set_major_locator(MaxNLocator(3))
        figure.axes[0].set_ylabel("validation loss, nats")
        names = [member.name for member in pretrain.submodels]
        legend = figure.legend(
            figure.axes[0].get_lines(), names, loc="outside upper left", ncols=len(names), handletextpad=0.2
        )
        for name, handle in zip(names, legend.get_lines(), strict=True):
            handle.set_color(PALETTE["quiet"])
            handle.set_markerfacecolor(PALETTE["quiet"] if name == "full" else PALETTE["ground"])
        return figure


@dataclass(frozen=True, kw_only=True)
class RoutingLayer:
    """Where one layer's router sends each modality.

    Attributes:
        name: the title of its heat map.
        modalities: the rows.
        frequency: (modalities, experts) share of a modality's choices that went to an expert; a row sums to 1.
        note: shown under the title, for example the overlap between modalities.
    """

    name: str
    modalities: Sequence[str]
    frequency: np.ndarray
    note: str


def routing(layers: Sequence[RoutingLayer]) -> Figure:
    """Heat maps of expert choice by modality, one a layer, on one colour scale."""
    colours = LinearSegmentedColormap.from_list("accordion", SEQUENTIAL)
    top = max(float(layer.frequency.max()) for layer in layers)
    with drawing():
        figure = Figure(figsize=(10, 2.5), layout="constrained")
        every = np.atleast_1d(figure.subplots(1, len(layers), sharey=True))
        for axes, layer in zip(every, layers, strict=True):
            rows, experts = layer.frequency.shape
            axes.pcolormesh(
                layer.frequency, cmap=colours, vmin=0, vmax=top, rasterized=layer.frequency.size > 2000,
                edgecolors="face" if experts > 40 else PALETTE["ground"], linewidth=0 if experts > 40 else 1,
            )  # fmt: skip
            axes.set_yticks(np.arange(rows) + 0.5, layer.modalities)
            axes.set_xticks(np.arange(0, experts, max(1, experts // 8)) + 0.5, range(0, experts, max(1, experts // 8)))
            axes.invert_yaxis()
            axes.grid(False)
            axes.spines[:].set_visible(False)
            axes.set_xlabel("expert")
            axes.set_title(layer.name, pad=18)
            axes.text(0, 1.04, layer.note, transform=axes.transAxes, fontsize=8, color=PALETTE["quiet"])
        bar = figure.colorbar(every[0].collections[0], ax=list(every), shrink=0.9, aspect=14, pad=0.015)
        bar.outline.set_visible(False)
        bar.set_label("share of choices")
        return figure


@dataclass(frozen=True, kw_only=True)
class RoutingMember:
    """Routing of one member of the family in three of its layers.

    Attributes:
        overlap, chance: mean IoU of the busiest experts over pairs of groups, by layer, and what chance would give.
        information, null: I(expert; group) in nats by layer, and with shuffled labels.
        load: the most used expert's load over the mean, by layer.
    """

    name: str
    overlap: Sequence[float]
    chance: Sequence[float]
    information: Sequence[float]
    null: Sequence[float]
    load: Sequence[float]


def routing_members(members: Sequence[RoutingMember]) -> Figure:
    """Three figures of routing for each member, a mark for its first, middle and last layer, with chance levels."""
    panels = (
        ("Overlap of busiest experts (IoU)", "overlap", "chance"),
        ("I(expert; group), nats", "information", "null"),
        ("Busiest expert’s load over mean", "load", None),
    )
    with drawing():
        figure = Figure(figsize=(10, 2.7), layout="constrained")
        for axes, (title, values, chance) in zip(figure.subplots(1, 3), panels, strict=True):
            for row, member in enumerate(members):
                for place, value in enumerate(getattr(member, values)):
                    axes.plot([value], [row], _MARKERS[place], color=PALETTE["accent"], markersize=5,
                              fillstyle="none" if place < 2 else "full")  # fmt: skip
                for level in getattr(member, chance) if chance else ():
                    axes.plot([level], [row], "|", color=PALETTE["bad"], markersize=11)
            axes.set_title(title)
            axes.margins(0.08, 0.1)
            _calm(axes)
            axes.set_xlim(left=0)
            axes.set_yticks(range(len(members)), [member.name for member in members])
            axes.invert_yaxis()
        return figure


def reinforcement(curves: Curves, posttrain: Posttrain) -> Figure:
    """Mean reward by step, and the pass rate before and after with its 95 % interval."""
    with drawing():
        figure = Figure(figsize=(10, 2.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
        steps, values = _columns(curves.get("reward/mean", ()))
        left.plot(steps, values, color=PALETTE["accent"], alpha=0.3, linewidth=0.8)
        left.plot(steps, _smooth(values), color=PALETTE["accent"])
        left.set_title("Mean reward of the rollouts")
        left.set_xlabel("step")
        _calm(left)
        rates = {
            "before": (posttrain.pass_before, *posttrain.pass_before_interval),
            "after": (posttrain.pass_after, *posttrain.pass_after_interval),
        }
        for row, (name, (rate, low, high)) in enumerate(rates.items()):
            colour = PALETTE["accent" if name == "after" else "quiet"]
            _whisker(right, row, rate, low, high, colour)
            right.annotate(f"{rate:.1%}", (rate, row), xytext=(0, 7), textcoords="offset points", ha="center",
                           fontsize=9, color=colour, fontweight="bold")  # fmt: skip
        right.set_yticks(range(2), rates)
        right.set_ylim(1.6, -0.7)
        right.set_xlim(0, 1)
        right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        right.grid(axis="y", visible=False)
        right.set_title(f"Pass rate on {posttrain.count:,} held-out problems")
        return figure


def retrieval(domains: Mapping[str, Domain]) -> Figure:
    """nDCG@10 of every system in every domain, a dot with its 95 % interval."""
    with drawing():
        figure = Figure(figsize=(10, 2.3), layout="constrained")
        every = np.atleast_1d(figure.subplots(1, len(domains), sharex=True, sharey=True))
        for axes, (name, domain) in zip(every, domains.items(), strict=True):
            for row, (system, interval) in enumerate(domain.ndcg10.items()):
                _whisker(axes, row, interval.mean, interval.low, interval.high, PALETTE[_SYSTEM_COLOURS[system]])
                axes.annotate(f"{interval.mean:.3f}", (interval.mean, row), xytext=(0, 6), ha="center", fontsize=8.5,
                              textcoords="offset points", color=PALETTE["ink"])  # fmt: skip
            axes.set_yticks(range(len(domain.ndcg10)), [SYSTEM_NAMES[system] for system in domain.ndcg10])
            axes.set_ylim(len(domain.ndcg10) - 0.5, -0.8)
            axes.margins(x=0.1)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.grid(axis="y", visible=False)
            axes.set_title(name)
            axes.set_xlabel("nDCG@10")
        every[0].set_xlim(left=0)
        return figure


def rollout(timeline: Sequence[Mapping[str, object]]) -> Figure:
    """The events of a rollout from top to bottom, each at its second, with the time to the next."""
    seconds = np.array([float(str(event["at"])) for event in timeline])
    seconds = seconds - seconds[0]
    with drawing():
        figure = Figure(figsize=(10, 0.6 + 0.27 * len(timeline)), layout="constrained")
        axes = figure.subplots()
        rows = np.arange(len(timeline))
        ends = np.append(seconds[1:], seconds[-1])
        axes.barh(rows, ends - seconds, left=seconds, height=0.34, color=PALETTE["faint"])
        axes.plot(seconds, rows, "o", color=PALETTE["accent"], markersize=5, clip_on=False)
        axes.set_xlim(-0.012 * seconds[-1], max(seconds[-1], 1e-3))
        axes.set_yticks(rows, [str(event["event"]).replace("_", " ") for event in timeline])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("seconds since the start")
        return figure


def stage_times(timings: Mapping[str, StageTiming]) -> Figure:
    """Seconds of each stage in DAG order; cached stages are hollow."""
    with drawing():
        figure = Figure(figsize=(10, 0.6 + 0.25 * len(timings)), layout="constrained")
        axes = figure.subplots()
        longest = max([timing.seconds for timing in timings.values()] + [1e-3])
        for row, timing in enumerate(timings.values()):
            colour = PALETTE["faint" if timing.cached else "accent"]
            axes.barh(row, timing.seconds, height=0.62, facecolor="none" if timing.cached else colour, edgecolor=colour)
            label = f"{duration(timing.seconds)}{'  from the cache' if timing.cached else ''}"
            axes.annotate(label, (timing.seconds, row), xytext=(4, 0), textcoords="offset points", va="center",
                          fontsize=8, color=PALETTE["quiet"])  # fmt: skip
        axes.set_yticks(range(len(timings)), [name.replace("_", " ") for name in timings])
        axes.set_ylim(len(timings) - 0.4, -0.6)
        axes.set_xlim(0, longest * 1.14)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("seconds")
        return figure


def _whisker(axes: Axes, row: int, middle: float, low: float, high: float, colour: str) -> None:
    axes.plot([low, high], [row, row], color=colour, linewidth=2.2, alpha=0.55, solid_capstyle="round")
    axes.plot([middle], [row], "o", color=colour, markersize=6)


def _calm(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="x", visible=False)


def _columns(points: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(points, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred running mean over a twentieth of the curve, shorter at its ends."""
    reach = max(1, values.size // 40)
    return np.array([values[max(0, i - reach) : i + reach + 1].mean() for i in range(values.size)])
