"""HTML fragments for the decks of single stages: the same sections as the report, or a table of the metrics."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from accordion.report.page import render_section, style_sheet
from accordion.report.run import RunFigures
from accordion.report.section import Section, Table
from accordion.report.sections import BUILDERS
from accordion.report.summary import summarise
from accordion.report.words import flat, number

# stage -> sections of the report that rest on this stage's own metrics and files
_SECTIONS = {
    "pretrain": ("pretrain", "family"),
    "analyse": ("routing",),
    "rl": ("posttrain",),
    "evaluate": ("retrieval",),
    "gate": ("gate",),
    "rollout": ("rollout",),
    "study": ("experiment",),
    "ingest": ("data",),
    "validate_data": ("quality",),
    "validate_shards": ("quality",),
}
_MOST_ROWS = 80


def deck(stage: str, metrics: Mapping[str, Any], folder: Path) -> str:
    """The deck of one stage as a fragment that carries its own style.

    Args:
        stage: the stage's name.
        metrics: what the stage returned.
        folder: its artifact folder.
    """
    run = RunFigures(metrics={stage: metrics}, timings={}, folders={stage: folder})
    names = _SECTIONS.get(stage, ())
    built = (BUILDERS[name](run, summarise(run.metrics, {})) for name in names)
    parts = [part for part in built if part is not None] or [metrics_section(stage, metrics)]
    body = Markup("").join(render_section(part) for part in parts)
    return f'<style>{style_sheet(".accordion-deck")}</style><div class="accordion-deck">{body}</div>'


def metrics_section(stage: str, metrics: Mapping[str, Any]) -> Section:
    """Every figure of a stage by its dotted name."""
    rows = [(name, number(value)) for name, value in flat(dict(metrics))]
    left = len(rows) - _MOST_ROWS
    return Section(
        anchor=stage,
        title=stage.replace("_", " ").capitalize(),
        finding=f"{len(rows)} figures were measured." if rows else "This stage measures nothing.",
        tables=[
            Table(
                caption="Figures by name",
                header=("figure", "value"),
                rows=rows[:_MOST_ROWS],
                words=("figure",),
                folded=False,
            )
        ]
        if rows
        else [],
        notes=[f"{left} more are in metrics.json."] if left > 0 else [],
    )
