"""The deck of a stage: what it made, every point's figures though the line has fewer, and settings that can be read."""

from pathlib import Path

from tasks._deck import MOST_POINTS, render


def test_a_deck_shows_what_was_made_its_curves_and_its_settings(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<p>own &amp; page</p>")
    points = [(step, float(step)) for step in range(3 * MOST_POINTS + 2)]
    html = render(
        "a < b", {"bytes": "3"}, '{"steps": 7, "shape": {"layers": 8}}', "<i>figures</i>", {"x": points}, [page]
    )
    assert "a &lt; b" in html and '<th scope="row">bytes</th><td>3</td>' in html and "<i>figures</i>" in html
    assert f"0 → {points[-1][1]:.4g} (range 0 to {points[-1][1]:.4g})" in html
    drawn = html.partition('points="')[2].partition('"')[0].split()
    assert len(drawn) <= MOST_POINTS + 3 and drawn[0] == "0.0,70.0" and drawn[-1] == "260.0,0.0"
    assert "steps: 7\nshape:\n  layers: 8" in html and "own &amp;amp; page" in html


def test_a_single_point_and_no_curves_at_all_are_drawn() -> None:
    assert "polyline" in render("t", {}, "{}", "", {"x": [(3, 1.5)]})
    assert "Curves" not in render("t", {}, "{}", "", {})
