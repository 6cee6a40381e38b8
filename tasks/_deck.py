"""The one deck of a stage: what it made, its figures, its curves, and pages it wrote (inline SVG, no scripts)."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

Curves = Mapping[str, Sequence[tuple[int, float]]]
WIDTH, HEIGHT, MOST_POINTS = 260, 70, 200
STYLE = """<style>.acc{font:14px/1.5 system-ui,sans-serif;color:#222;max-width:1000px}
.acc table{border-collapse:collapse;margin:8px 0 16px}.acc td{padding:2px 14px 2px 0;border-bottom:1px solid #eee}
.acc td+td{font-variant-numeric:tabular-nums}.acc figure{display:inline-block;margin:0 16px 12px 0}
.acc td{overflow-wrap:anywhere}
.acc figcaption{font-size:12px;color:#666}.acc iframe{width:100%;height:600px;border:1px solid #ddd}</style>"""


def render(
    title: str,
    about: Mapping[str, str],
    figures: str,
    curves: Curves,
    pages: Sequence[Path] = (),
) -> str:
    """HTML of a stage's deck; `figures` is the report's HTML fragment of the stage."""
    parts = [STYLE, f'<div class="acc"><h2>{escape(title)}</h2>', _table(about.items())]
    if curves:
        parts.append("<h3>Curves</h3>" + "".join(_curve(name, points) for name, points in sorted(curves.items())))
    parts.append(figures)
    parts += [f'<h3>{escape(page.name)}</h3><iframe srcdoc="{escape(page.read_text())}"></iframe>' for page in pages]
    return "\n".join([*parts, "</div>"])


def _table(rows: Any) -> str:
    cells = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{cells}</table>"


def _curve(name: str, points: Sequence[tuple[int, float]]) -> str:
    points = points[:: max(1, len(points) // MOST_POINTS)]
    steps, values = [p[0] for p in points], [p[1] for p in points]
    low, high = min(values), max(values)
    across, up = max(steps[-1] - steps[0], 1), max(high - low, 1e-12)
    line = " ".join(f"{(s - steps[0]) / across * WIDTH:.1f},{HEIGHT - (v - low) / up * HEIGHT:.1f}" for s, v in points)
    return (
        f'<figure><svg width="{WIDTH}" height="{HEIGHT}" style="overflow:visible" role="img" '
        f'aria-label="{escape(name)}"><polyline fill="none" stroke="#4060c0" stroke-width="1.5" points="{line}"/></svg>'
        f"<figcaption>{escape(name)}: {values[0]:.4g} → {values[-1]:.4g} (range {low:.4g} to {high:.4g})</figcaption>"
        "</figure>"
    )
