"""The figures of the data sections: language mix and length distributions, from a version's statistics."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from accordion.data.expectations.statistics import BINS_A_DECADE, Lengths, Statistics
from accordion.report.style import PALETTE, drawing
from accordion.report.words import count

_COLOURS = ("text", "image", "audio", "video")


def languages(mixes: Mapping[str, Mapping[str, int]]) -> Figure:
    """Share of each language, one panel a modality; categories beyond the twelve commonest are summed up."""
    with drawing():
        figure = Figure(figsize=(10, 2.6), layout="constrained")
        for axes, (name, mix) in zip(np.atleast_1d(figure.subplots(1, len(mixes))), mixes.items(), strict=True):
            ordered = sorted(mix.items(), key=lambda item: -item[1])
            bars = ordered[:12] + ([("other", sum(n for _, n in ordered[12:]))] if ordered[12:] else [])
            total = max(sum(mix.values()), 1)
            shares = [100 * number / total for _, number in bars]
            axes.bar(range(len(bars)), shares, width=0.7, color=PALETTE["audio" if "audio" in name else "text"])
            axes.set_xticks(range(len(bars)), [language for language, _ in bars])
            axes.set_title(f"{name.removesuffix(' languages')}, {count(total)} records")
            axes.set_ylabel("% of the records")
            axes.grid(axis="x", visible=False)
        return figure


def lengths(found: Mapping[str, Lengths]) -> Figure:
    """Share of the records by length, logarithmic, one panel a kind; a line at the median."""
    with drawing():
        figure = Figure(figsize=(10, 2.3), layout="constrained")
        every = np.atleast_1d(figure.subplots(1, len(found)))
        for number, (axes, (name, held)) in enumerate(zip(every, found.items(), strict=True)):
            colour = PALETTE[_COLOURS[number % len(_COLOURS)]]
            bins = np.array(sorted(map(int, held.bins)))
            share = [100 * held.bins[str(b)] / held.count for b in bins]
            left, right = 10 ** (bins / BINS_A_DECADE), 10 ** ((bins + 1) / BINS_A_DECADE)
            axes.bar(left, share, width=right - left, align="edge", color=colour)
            axes.axvline(held.quantiles["0.5"], color=PALETTE["ink"], linewidth=1, linestyle=(0, (4, 3)))
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_title(name.rpartition(", ")[0])
            axes.set_xlabel(f"{name.rpartition(', ')[2]}, median {held.quantiles['0.5']:.4g}")
            axes.grid(axis="x", visible=False)
        every[0].set_ylabel("% of the records")
        return figure


def panels(statistics: Statistics) -> tuple[dict[str, dict[str, int]], dict[str, Lengths]]:
    """What of a corpus' statistics is drawn: the language mixes, and the lengths of the modalities."""
    mixes = {name: mix for name, mix in statistics.mixes.items() if name.endswith(" languages") and mix}
    held = {name: found for name, found in statistics.lengths.items() if found.count}
    chosen = ("text, characters", "image captions, characters", "audio, seconds", "transcripts, characters")
    return mixes, {name: held[name] for name in chosen if name in held}
