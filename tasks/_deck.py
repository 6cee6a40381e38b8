"""The one deck of a stage: what it made, its figures, its curves, and pages it wrote (inline SVG, no scripts)."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import yaml

Curves = Mapping[str, Sequence[tuple[int, float]]]
WIDTH, HEIGHT, MOST_POINTS = 260, 70, 200
STYLE = """<style>.acc{font:14px/1.5 system-ui,sans-serif;color:#222;max-width:1000px;margin:0 auto}
.acc table{border-collapse:collapse;margin:8px 0 16px}.acc th,.acc td{padding:2px 0;border-bottom:1px solid #eee}
.acc th{font-weight:400;text-align:left;white-space:nowrap;padding-right:20px;color:#666;vertical-align:top}
.acc td{font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.acc .curves{display:grid;grid-template-columns:repeat(auto-fill,minmax(270px,1fr));gap:16px;margin:8px 0 16px}
.acc .curves figure{margin:0}.acc .curves svg{width:100%;height:70px;overflow:visible}
.acc .curves figcaption{font-size:12px;color:#666}.acc .curves b{color:#222;font-weight:600}
.acc pre{font-size:12px;line-height:1.45;overflow-x:auto}.acc summary{cursor:pointer}
.acc .accordion-deck{background:none}
.acc iframe{width:100%;height:600px;border:1px solid #ddd}</style>"""


def render(
    title: str,
    about: Mapping[str, str],
    config: str,
    figures: str,
    curves: Curves,
    pages: Sequence[Path] = (),
) -> str:
    """HTML of a stage's deck.

    Args:
        about: what the stage made and of what, by name.
        config: its settings, as JSON.
        figures: the report's HTML fragment of the stage.
        curves: (step, value) of what it recorded, by name.
        pages: HTML files that it wrote.
    """
    parts = [STYLE, f'<div class="acc"><h2>{escape(title)}</h2>', _table(about.items()), figures]
    if curves:
        drawn = "".join(_curve(name, points) for name, points in sorted(curves.items()))
        parts.append(f'<h3>Curves</h3><div class="curves">{drawn}</div>')
    parts += [f'<h3>{escape(page.name)}</h3><iframe srcdoc="{escape(page.read_text())}"></iframe>' for page in pages]
    settings = escape(yaml.safe_dump(json.loads(config), sort_keys=False, allow_unicode=True, width=110))
    parts.append(f"<details><summary>Settings</summary><pre>{settings}</pre></details>")
    return "\n".join([*parts, "</div>"])


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows)
    return f"<table>{cells}</table>"


def _curve(name: str, points: Sequence[tuple[int, float]]) -> str:
    """A line without axes; the figures below it are of all points, the line of at most so many."""
    values = [value for _, value in points]
    low, high = min(values), max(values)
    across, up = max(points[-1][0] - points[0][0], 1), max(high - low, 1e-12)
    shown = [*points[:: max(1, len(points) // MOST_POINTS)], points[-1]]
    line = " ".join(
        f"{(step - points[0][0]) / across * WIDTH:.1f},{HEIGHT - (value - low) / up * HEIGHT:.1f}"
        for step, value in shown
    )
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(name)}"><polyline fill="none" stroke="#4060c0" stroke-width="1.5" '
        f'vector-effect="non-scaling-stroke" points="{line}"/></svg><figcaption><b>{escape(name)}</b> '
        f"{values[0]:.4g} → {values[-1]:.4g} (range {low:.4g} to {high:.4g})</figcaption></figure>"
    )
