"""The committed results of the family experiment: what today's code says of their units, drawn and told by it."""

import json
from typing import Any

import pytest

from accordion.config.study import StudyConfig
from accordion.home import REPOSITORY
from accordion.report.page import render_section
from accordion.report.run import RunFigures
from accordion.report.sections_study import experiment
from accordion.report.summary import Summary
from accordion.study.figures import RESULTS, summarise
from accordion.study.plots import draw

FOLDER = REPOSITORY / "docs" / "results"


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return json.loads((FOLDER / RESULTS).read_text())


def test_their_summary_is_what_is_said_of_their_units_today(results):
    again = json.loads(json.dumps(summarise(StudyConfig.parse(results["settings"]), results["units"])))
    assert rounded(again) == rounded(results["summary"])


def rounded(figures: Any) -> Any:
    """Floats to nine places: sums may be taken in another order elsewhere."""
    if isinstance(figures, dict):
        return {name: rounded(value) for name, value in figures.items()}
    if isinstance(figures, list):
        return [rounded(value) for value in figures]
    return round(figures, 9) if isinstance(figures, float) else figures


def test_every_plot_beside_them_can_be_drawn_again(results, tmp_path):
    names = {path.name for path in draw(results, tmp_path)}
    assert names == {"gaps.png", "losses.png", "variants.png"}
    assert all((FOLDER / name).is_file() for name in names)


def test_the_report_tells_of_them():
    section = experiment(RunFigures(metrics={}, timings={}, folders={"study": FOLDER}), Summary(stages={}))
    assert section is not None
    assert section.finding.startswith("Elasticity costs the full model 0.036 [-0.010, 0.082] nats of text and 0.012")
    assert [drawing.name for drawing in section.drawings] == ["gaps", "losses", "variants"]
    assert ("small", "10%", "0.015 [-0.062, 0.091]") in {tuple(row[:3]) for row in section.tables[0].rows}
    assert "commits c4d38ca" in section.notes[0] and "accordion.study run --profile study-cpu" in section.notes[0]
    assert "Family experiment" in render_section(section)
