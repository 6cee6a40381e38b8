"""How figures look: palette, matplotlib settings, and figures as inline SVG that follows the page's theme.

Figures are drawn in the light palette. In the inline SVG every palette colour becomes the CSS variable of
the same name, so that one drawing serves the light page, the dark page and the printer.
"""

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure

# name of the CSS variable -> colour on a light ground (the dark ground's are in template.html)
PALETTE = {
    "ink": "#1c2430",
    "quiet": "#5d6877",
    "rule": "#d5dae1",
    "ground": "#ffffff",
    "text": "#1f6fb2",
    "image": "#c9761a",
    "video": "#14866d",
    "audio": "#a3508f",
    "accent": "#2f5fd0",
    "good": "#1c7f4b",
    "bad": "#b3372e",
    "faint": "#b9c3d0",
}
SEQUENTIAL = ("#f1f5fa", "#a9c6e3", "#4b8cc4", "#1f5c94", "#0d2f52")  # low -> high, readable on both grounds

_SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.labelcolor": PALETTE["quiet"],
    "axes.titlecolor": PALETTE["ink"],
    "axes.edgecolor": PALETTE["rule"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALETTE["rule"],
    "grid.linewidth": 0.6,
    "text.color": PALETTE["ink"],
    "xtick.color": PALETTE["quiet"],
    "ytick.color": PALETTE["quiet"],
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "figure.facecolor": "none",
    "svg.fonttype": "none",
}


@contextmanager
def drawing() -> Iterator[None]:
    """matplotlib settings of this project, for the length of the block."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def to_svg(figure: Figure, name: str, alt: str) -> Markup:
    """The figure as an inline `<svg>` with an accessible name, no metadata and ids unique to `name`."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.02)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\1{name}-", text)
    text = re.sub(r'font: ((?:[a-z0-9]+ )*[\d.]+px) [^;"]+', r"font: \1 var(--sans)", text)
    for variable, colour in PALETTE.items():
        text = text.replace(colour, f"var(--{variable})")
    text = re.sub(r"\s*\n\s*", "\n", text)
    size = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', text)
    assert size is not None, "matplotlib writes the size of an SVG in points"
    opening = f'role="img" aria-label="{escape(alt)}" style="--width:{float(size[1]) * 4 / 3:.0f}px"'
    return Markup(text.replace(size[0], opening, 1))


def save_png(figure: Figure, path: Path) -> None:
    """The figure as a PNG on white, for MLflow, model cards and anything that shows no SVG."""
    with drawing():
        figure.savefig(path, format="png", dpi=150, bbox_inches="tight", pad_inches=0.08, facecolor="white")


def data_uri(data: bytes, media_type: str) -> str:
    """Bytes as a `data:` address, so that a page needs no second file."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
