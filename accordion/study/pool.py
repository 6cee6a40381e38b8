"""Units, one after the other or several processes at once; all save their state when the run is asked to stop."""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from types import FrameType

import torch

from accordion.errors import Interrupted
from accordion.observe import progress
from accordion.study.live import Ended, Expected, Report, Watch
from accordion.study.place import Place
from accordion.study.run import run_unit, work_on
from accordion.study.units import Unit
from accordion.train.guards import StopRequest, stop_requests

LISTEN_SECONDS = 1.0  # between looks for reports and for a request to stop
_asked: Event | None = None  # of a worker process: set when its run is to stop
_reports: "Queue[Report] | None" = None  # of a worker process: where its reports go
_busy = threading.Lock()  # held while a worker process runs a unit
_ending = threading.Event()  # of a worker process: it was sent SIGTERM


def run_all(place: Place, expected: Mapping[Unit, Expected], *, jobs: int, threads: int, peak: float) -> bool:
    """Run the units of `expected`, up to `jobs` processes at once of `threads` each; False where the deadline came.

    Args:
        expected: the units in order, and the work that each is expected to be.
        peak: operations a second that all processes together could do.

    Raises:
        Interrupted: SIGTERM or SIGINT came, or a process died; what was finished or saved is kept.
    """
    todo = list(expected)
    watch = Watch({unit.name: work for unit, work in expected.items()}, peak)
    with stop_requests() as request:
        events = _alone(place, todo, request) if jobs == 1 else _together(place, todo, request, jobs, threads)
        for event in progress(events, "study", total=100, unit="%", note=watch.note, done=lambda _: watch.percent):
            watch.hear(event)
    if request.signal is not None:
        raise Interrupted(f"study: stopped by {request.signal}; the units at hand are saved; run it again to go on")
    return watch.finished == len(expected)


def _alone(place: Place, todo: Sequence[Unit], request: StopRequest) -> Iterator[Report | Ended]:
    for unit in todo:
        whole = _ready(place, unit) and (yield from work_on(place, unit, lambda: request.signal is not None))
        yield Ended(unit.name, whole)
        if not whole:
            return


def _together(
    place: Place, todo: list[Unit], request: StopRequest, jobs: int, threads: int
) -> Iterator[Report | Ended]:  # fmt: skip
    context = multiprocessing.get_context("spawn")
    asked, reports = context.Event(), context.Queue()
    given = (threads, asked, reports)
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin_worker, initargs=given) as pool:
        try:
            yield from _drive(place, todo, request, asked, reports, pool, jobs)
        except BrokenProcessPool:  # which sends the other processes SIGTERM
            if request.signal is None:
                raise Interrupted(
                    "study: a process that ran a unit was killed (often for memory); the other units at hand are "
                    "saved, finished ones kept; run it again to go on, with fewer jobs if memory is short"
                ) from None
        finally:
            asked.set()  # whatever ends this process's part ends theirs


def _drive(
    place: Place,
    todo: list[Unit],
    request: StopRequest,
    asked: Event,
    reports: "Queue[Report]",
    pool: ProcessPoolExecutor,
    jobs: int,
) -> Iterator[Report | Ended]:
    """Keep `jobs` units running, each when what it begins with is there; what they report, and that they ended."""
    running: dict[Future[bool], Unit] = {}
    while todo or running:
        if request.signal is not None:
            asked.set()
        late = asked.is_set() or place.late()
        while not late and len(running) < jobs:
            unit = next((unit for unit in todo if _ready(place, unit)), None)
            if unit is None:
                break
            todo.remove(unit)
            running[pool.submit(_run_in_worker, place, unit)] = unit
        if not running:
            return
        ended = wait(running, timeout=LISTEN_SECONDS, return_when=FIRST_COMPLETED).done
        yield from _waiting(reports)
        for future in ended:
            yield Ended(running.pop(future).name, future.result())


def _waiting(reports: "Queue[Report]") -> Iterator[Report]:
    """The reports that have come."""
    while True:
        try:
            yield reports.get_nowait()
        except queue.Empty:
            return


def _ready(place: Place, unit: Unit) -> bool:
    """Whether the unit that it begins with is finished; weights without its figures are of an earlier run."""
    return unit.needs is None or place.result(unit.needs).is_file()


def _begin_worker(threads: int, asked: Event, reports: "Queue[Report]") -> None:
    global _asked, _reports
    _asked, _reports = asked, reports
    reports.cancel_join_thread()  # a report that nobody reads any more must not keep this process alive
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the process that began this one tells it
    signal.signal(signal.SIGTERM, _end)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(threads)


def _end(number: int, frame: FrameType | None) -> None:
    """A scheduler wants the machine back, or another process of the pool died: end, after saving the unit at hand."""
    _ending.set()
    if not _busy.locked():
        os._exit(1)


def _leave_with_parent() -> None:
    """End this process when the one that began it is gone, and the unit at hand is saved: nobody would tell it to."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        with _busy:
            os._exit(1)


def _run_in_worker(place: Place, unit: Unit) -> bool:
    try:
        with _busy:
            return run_unit(place, unit, _must_stop, _tell)
    finally:
        if _ending.is_set():
            os._exit(1)


def _tell(report: Report) -> None:
    if _reports is not None:
        _reports.put(report)  # a thread of this process sends it, so that training never waits for a reader


def _must_stop() -> bool:
    """Whether the run was asked to stop, or the process that began this one is gone."""
    parent = multiprocessing.parent_process()
    asked = _ending.is_set() or (_asked is not None and _asked.is_set())
    return asked or (parent is not None and not parent.is_alive())
