"""How a stage shows its progress and its curves without knowing who watches.

A stage calls `progress` and `record`; whoever runs the stage (a Flyte task, the command line, a test)
may install a listener with `listening`. Without one, figures go nowhere and progress to the terminal.
"""

import contextvars
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")
Listener = Callable[[int, Mapping[str, float]], None]
_listener: contextvars.ContextVar[Listener | None] = contextvars.ContextVar("listener", default=None)
PLAIN_INTERVAL_SECONDS = 10.0


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send every `record` made inside the block to `listener(step, figures)`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def record(step: int, figures: Mapping[str, float]) -> None:
    """Hand the figures of one step (name -> value) to the listener, if there is one."""
    listener = _listener.get()
    if listener is not None:
        listener(step, figures)


def say(message: str) -> None:
    """One plain line for a person reading the terminal or the log."""
    print(message, file=sys.stderr, flush=True)


def progress(
    items: Iterable[Item],
    label: str,
    *,
    total: int | None = None,
    unit: str = "it",
    note: Callable[[], str] = str,
    done: Callable[[int], float] = int,
) -> Iterator[Item]:
    """Pass `items` through, showing rate and remaining time.

    A bar in a terminal; otherwise a plain line at most every ten seconds and one at the end. `note()` is
    shown after the count, for example the current loss. Where items are not alike, `done(count)` says how much of
    `total` is done after so many of them.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    show = _bar if sys.stderr.isatty() else _lines
    return show(items, _Shown(label, total, unit, note, done))


@dataclass(frozen=True)
class _Shown:
    """What is told of the items that pass, see `progress`."""

    label: str
    total: int | None
    unit: str
    note: Callable[[], str]
    done: Callable[[int], float]


def _bar(items: Iterable[Item], shown: _Shown) -> Iterator[Item]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(shown.label, total=shown.total, rate="", note="")
        start = time.monotonic()
        for count, item in enumerate(items, 1):
            yield item
            done = shown.done(count)
            rate = done / max(time.monotonic() - start, 1e-9)
            bar.update(task, completed=done, rate=f"{_number(rate)} {shown.unit}/s", note=shown.note())


def _lines(items: Iterable[Item], shown: _Shown) -> Iterator[Item]:
    start = last = time.monotonic()
    count = 0
    for item in items:
        yield item
        count += 1
        now = time.monotonic()
        if now - last >= PLAIN_INTERVAL_SECONDS:
            last = now
            say(_line(shown, shown.done(count), now - start))
    spent = time.monotonic() - start
    say(f"{shown.label}: {_amount(shown.done(count))} {shown.unit} in {spent:.1f} s {shown.note()}".rstrip())


def _line(shown: _Shown, done: float, seconds: float) -> str:
    """How far the work has come in so many seconds."""
    rate = done / seconds
    of = f"/{shown.total}" if shown.total else ""
    left = f", {(shown.total - done) / rate:.0f} s left" if shown.total and rate else ""
    at = f"{shown.label}: {_amount(done)}{of} {shown.unit}, {_number(rate)} {shown.unit}/s"
    return f"{at}{left} {shown.note()}".rstrip()


def _amount(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.1f}"


def _number(rate: float) -> str:
    """A rate with a digit after the point, or with two digits that count where it is below one."""
    return f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"
