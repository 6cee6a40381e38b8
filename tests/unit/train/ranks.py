"""Runs a function on several gloo processes, which a server forks after it has imported what is slow to import."""

import faulthandler
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.unit.train.rank_work"])
SECONDS = 120  # after which a process is taken to hang, and says where


def on_ranks(count: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What `work(*args)` returns on each of `count` processes that a launcher like torchrun would start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes, processes = [], []
    for rank in range(count):
        ours, theirs = _context.Pipe(duplex=False)
        process = _context.Process(target=_one, args=(theirs, rank, count, port, work, args))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        answers = [
            pipe.recv() if pipe.poll(SECONDS) else (f"rank {rank} hangs", None) for rank, pipe in enumerate(pipes)
        ]
    finally:
        for process in processes:  # one that ends by itself takes along what it has started
            process.join(10)
            process.kill()
    wrong = [trouble for trouble, _ in answers if trouble]
    assert not wrong, "\n".join(wrong)
    return [answer for _, answer in answers]


def _one(pipe: Any, rank: int, count: int, port: int, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(SECONDS - 5)
    try:
        pipe.send((None, work(*args)))
    except BaseException:
        pipe.send((traceback.format_exc(), None))
