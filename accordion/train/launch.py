"""The pre-training stage, on one process or several of this machine, which all start again when one of them dies."""

import os
import resource
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.multiprocessing import ProcessContext, ProcessRaisedException, get_context, start_processes
from torch.multiprocessing.spawn import ProcessException

from accordion.config.pretrain import PretrainConfig
from accordion.device import device, training_device
from accordion.errors import AccordionError, RankLost
from accordion.observe import listening, record, say
from accordion.train.pretrain import pretrain

GRACE_SECONDS = 10.0  # that the others have to end by themselves when one has failed
LOOK_SECONDS = 0.2  # between two looks at which processes have ended
FIGURES, ERROR, METRICS, MEMORY = "figures", "error", "metrics", "memory"  # what a process tells


def launch(config: PretrainConfig, *, out: Path, shards: Path, resume: Path) -> dict[str, Any]:
    """Stage: `pretrain` on `parallel.processes` processes, or in this one where a launcher has started it already.

    The processes tell their figures to this one, which hands them to its listener. When one dies, or waits in vain
    for another, all start again from the newest checkpoint, `parallel.restarts` times; errors of settings, data and
    training are raised at once. SIGTERM and SIGINT are handed on: the step at hand is finished and saved.

    Args:
        config, out, shards, resume: as of `pretrain`.

    Raises:
        AccordionError: what `pretrain` raised on any of the processes.
        RankLost: one died or hung more often than `parallel.restarts`.
    """
    count = processes(config)
    if count == 1 or "WORLD_SIZE" in os.environ:
        return pretrain(config, out=out, shards=shards, resume=resume)
    for left in range(config.parallel.restarts, -1, -1):
        try:
            return _attempt(config, count, out, shards, resume)
        except RankLost as error:
            if not left:
                raise
            say(f"pretrain: {error}; all {count} processes start again, {left} times at most")
            shutil.rmtree(out)  # what the leader may have begun to write
            out.mkdir()
    raise AssertionError  # the last round returns or raises


def processes(config: PretrainConfig) -> int:
    """How many processes train: as many as asked for, or one for each GPU."""
    wanted = config.parallel.processes
    return wanted or (torch.cuda.device_count() if training_device().type == "cuda" else 1)


def _attempt(config: PretrainConfig, count: int, out: Path, shards: Path, resume: Path) -> dict[str, Any]:
    """Start the processes once and follow them to their end."""
    pairs = [get_context("spawn").Pipe(duplex=False) for _ in range(count)]
    place = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    threads = max(1, torch.get_num_threads() // count)
    arguments = ([tell for _, tell in pairs], place, training_device().type, threads, config, out, shards, resume)
    context = start_processes(_train, arguments, nprocs=count, join=False, start_method="spawn")
    for _, tell in pairs:
        tell.close()  # so that a pipe ends with its process
    told = _Told()
    with _handed_on(context.pids()):
        try:
            _follow(context, [hear for hear, _ in pairs], told)
        except ProcessException as error:
            raise told.cause(error) from None
    if told.metrics is None:  # a second signal ended them before they had saved
        raise KeyboardInterrupt
    told.metrics["speed"] |= {"processes": count, "peak_rss_bytes_of_processes": sum(told.memory)}
    return told.metrics


def _train(
    rank: int,
    pipes: Sequence[Connection],
    place: Mapping[str, str],
    where: str,
    threads: int,
    config: PretrainConfig,
    out: Path,
    shards: Path,
    resume: Path,
) -> None:
    """What one process does."""
    os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank), OMP_NUM_THREADS=str(threads))
    torch.set_num_threads(threads)
    tell = pipes[rank]
    for other in pipes:
        if other is not tell:
            other.close()
    try:
        with device(where), listening(lambda step, figures: tell.send((FIGURES, (step, dict(figures))))):
            metrics = pretrain(config, out=out, shards=shards, resume=resume)
    except AccordionError as error:
        tell.send((ERROR, error))
        raise
    if rank == 0:
        tell.send((METRICS, metrics))
    tell.send((MEMORY, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


class _Told:
    """What the processes have told so far."""

    def __init__(self) -> None:
        self.metrics: dict[str, Any] | None = None
        self.memory: list[int] = []
        self.errors: list[AccordionError] = []

    def take(self, kind: str, what: Any) -> None:
        """One message of a process."""
        if kind == FIGURES:
            record(*what)
        elif kind == METRICS:
            self.metrics = what
        elif kind == MEMORY:
            self.memory.append(what)
        else:
            self.errors.append(what)

    def cause(self, failed: ProcessException) -> Exception:
        """The error that says why: a lost process is what the others see of one that failed for a reason of its own."""
        reasons = sorted(self.errors, key=lambda error: isinstance(error, RankLost))
        if reasons:
            return reasons[0]
        if isinstance(failed, ProcessRaisedException):  # a bug: with its stack
            return failed
        return RankLost(f"{failed.msg} (rank {failed.error_index}, process id {failed.error_pid})")


def _follow(context: ProcessContext, pipes: Sequence[Connection], told: _Told) -> None:
    """Take what the processes tell until all have ended.

    Raises:
        ProcessException: one ended with an error; the others were ended.
    """
    open_ = list(pipes)

    def listen(seconds: float) -> None:
        for pipe in wait(open_, seconds):
            assert isinstance(pipe, Connection)
            try:
                told.take(*pipe.recv())
            except (EOFError, ConnectionResetError):  # its process has ended
                open_.remove(pipe)

    try:
        while not context.join(timeout=0.0 if open_ else LOOK_SECONDS, grace_period=GRACE_SECONDS):
            if open_:
                listen(LOOK_SECONDS)
    finally:
        while open_:
            listen(0.0)


@contextmanager
def _handed_on(ids: Sequence[int]) -> Iterator[None]:
    """Hand SIGTERM and SIGINT on to the processes of these ids, which save and end; this one then ends as they do."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield
        return

    def hand_on(number: int, frame: FrameType | None) -> None:
        for process in ids:
            try:
                os.kill(process, number)
            except ProcessLookupError:
                continue

    before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {
        number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
