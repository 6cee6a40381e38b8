"""Units, one after the other or several processes at once; all save their state when the run is asked to stop."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event

import torch

from accordion.errors import Interrupted
from accordion.observe import progress, record
from accordion.study.run import Place, run_unit
from accordion.study.units import Unit
from accordion.train.guards import StopRequest, stop_requests

LISTEN_SECONDS = 1.0  # between looks for a request to stop
_asked: Event | None = None  # of a worker process: set when its run is to stop
_busy = threading.Lock()  # held while a worker process runs a unit


def run_all(place: Place, todo: Sequence[Unit], *, jobs: int, threads: int) -> bool:
    """Run the units, up to `jobs` processes at once of `threads` each; False where the deadline came first.

    Raises:
        Interrupted: SIGTERM or SIGINT came, or a process died; what was finished or saved is kept.
    """
    finished = 0
    with stop_requests() as request:
        ended = _alone(place, todo, request) if jobs == 1 else _together(place, list(todo), request, jobs, threads)
        for whole in progress(ended, "study", total=len(todo), unit="unit"):
            finished += whole
            record(finished, {"units": finished})
    if request.signal is not None:
        raise Interrupted(f"study: stopped by {request.signal}; the units at hand are saved; run it again to go on")
    return finished == len(todo)


def _alone(place: Place, todo: Sequence[Unit], request: StopRequest) -> Iterator[bool]:
    for unit in todo:
        whole = _ready(place, unit) and run_unit(place, unit, lambda: request.signal is not None)
        yield whole
        if not whole:
            return


def _together(place: Place, todo: list[Unit], request: StopRequest, jobs: int, threads: int) -> Iterator[bool]:
    context = multiprocessing.get_context("spawn")
    asked = context.Event()
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin_worker, initargs=(threads, asked)) as pool:
        try:
            yield from _drive(place, todo, request, asked, pool, jobs)
        except BrokenProcessPool:
            raise Interrupted(
                "study: a process that ran a unit was killed (often for memory); finished units are kept; run it "
                "again to go on, with fewer jobs if memory is short"
            ) from None
        finally:
            asked.set()  # whatever ends this process's part ends theirs


def _drive(
    place: Place, todo: list[Unit], request: StopRequest, asked: Event, pool: ProcessPoolExecutor, jobs: int
) -> Iterator[bool]:
    """Keep `jobs` units running, each when what it begins with is there; for each that ended, whether it is whole."""
    running: set[Future[bool]] = set()
    while todo or running:
        if request.signal is not None:
            asked.set()
        late = asked.is_set() or place.late()
        while not late and len(running) < jobs:
            unit = next((unit for unit in todo if _ready(place, unit)), None)
            if unit is None:
                break
            todo.remove(unit)
            running.add(pool.submit(_run_in_worker, place, unit))
        if not running:
            return
        ended = wait(running, timeout=LISTEN_SECONDS, return_when=FIRST_COMPLETED).done
        running -= ended
        yield from (future.result() for future in ended)


def _ready(place: Place, unit: Unit) -> bool:
    return unit.needs is None or (place.model(unit.needs) / "loader.json").is_file()


def _begin_worker(threads: int, asked: Event) -> None:
    global _asked
    _asked = asked
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the process that began this one tells it
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(threads)


def _leave_with_parent() -> None:
    """End this process when the one that began it is gone, and the unit at hand is saved: nobody would tell it to."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        with _busy:
            os._exit(1)


def _run_in_worker(place: Place, unit: Unit) -> bool:
    with _busy:
        return run_unit(place, unit, _must_stop)


def _must_stop() -> bool:
    """Whether the run was asked to stop, or the process that began this one is gone."""
    parent = multiprocessing.parent_process()
    return (_asked is not None and _asked.is_set()) or (parent is not None and not parent.is_alive())
