"""What a person sees of a stage at work where there is no terminal."""

from collections.abc import Iterator

import pytest

from accordion import observe
from accordion.observe import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A clock on which ten seconds pass at each look."""
    ticks = iter(range(0, 1000, 10))
    monkeypatch.setattr(observe.time, "monotonic", lambda: float(next(ticks)))
    yield


def test_plain_lines_tell_rate_what_is_left_and_the_note(clock: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress("abc", "work", unit="step", note=lambda: "loss 2.5")) == ["a", "b", "c"]
    assert capsys.readouterr().err.splitlines() == [
        "work: 1/3 step, 0.1 step/s, 20 s left loss 2.5",
        "work: 2/3 step, 0.1 step/s, 10 s left loss 2.5",
        "work: 3/3 step, 0.1 step/s, 0 s left loss 2.5",
        "work: 3 step in 40.0 s loss 2.5",
    ]


def test_items_that_are_not_alike_count_as_what_they_are(clock: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter("ab"), "work", total=90, done=lambda count: 30.0 * count)) == ["a", "b"]
    assert capsys.readouterr().err.splitlines() == [
        "work: 30.0/90 it, 3.0 it/s, 20 s left",
        "work: 60.0/90 it, 3.0 it/s, 10 s left",
        "work: 60.0 it in 30.0 s",
    ]
