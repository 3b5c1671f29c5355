"""`sidecar serve --workers`: what the parent creates before it starts processes, and what each process runs."""

import asyncio
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Final, Literal

import click

from sidecar.app import working
from sidecar.config.build.config import Config
from sidecar.config.store_url import is_file
from sidecar.http.accepting import BACKLOG, bound
from sidecar.limiter.shared import SharedLimiter
from sidecar.runtime.descriptors import raise_limit
from sidecar.runtime.serving import StartError, taken_port
from sidecar.runtime.supervisor import HURRY, Seat, Supervisor
from sidecar.runtime.workers import Common, Worker, Workers
from sidecar.telemetry.standard_error import QueuedText

_QUOTA: Final = "/sys/fs/cgroup/cpu.max"
"""Microseconds of a core, or `max`, and the period (cgroup v2)."""


def count_of(workers: int | Literal["auto"]) -> int:
    """`auto` is one per core that the process may use, by its affinity and its container's limit."""
    if workers != "auto":
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open(_QUOTA, encoding="ascii") as file:
            quota, period = file.read().split()
        return max(1, min(cores, -(-int(quota) // int(period))))
    except (OSError, ValueError):
        return cores


def common_of(config: Config, workers: int) -> Common:
    """Bind the data listener. Raises StartError."""
    if not hasattr(os, "memfd_create"):
        raise StartError("workers: more than one needs Linux: this system has no memfd_create")
    if is_file(config.store):
        raise StartError("workers: must be 1 here, or be left out: keys in a file are served by one process")
    try:
        limiter = SharedLimiter(max_entries=config.limiter.entries)
    except (OSError, ValueError, OverflowError):
        raise StartError(f"limiter.entries: there is no room for {config.limiter.entries} counts in memory") from None
    with taken_port("listen"):
        sockets, addresses = bound(config.listen, BACKLOG)
    return Common(
        workers=workers,
        sockets=sockets,
        addresses=addresses,
        limiter=limiter,
        log_lock=os.memfd_create("sidecar-log", os.MFD_CLOEXEC),
        stderr_lock=os.memfd_create("sidecar-stderr", os.MFD_CLOEXEC),
    )


def supervise(common: Common, run: Callable[[Seat], int]) -> int:
    """Run the control process and workers, each with `run`, until all have ended. Returns the exit status."""
    raise_limit()

    def release() -> None:
        for listening in common.sockets:
            listening.close()

    def log(line: str) -> None:
        if select.select([], [sys.stderr.fileno()], [], 0)[1]:  # The reader may be stuck, and the parent must not wait.
            click.echo(line, err=True)

    return Supervisor(common.workers, run, release=release, log=log).serve()


async def wait_for_workers(workers: Workers, stopping: asyncio.Event) -> None:
    """Let the parent start them, and wait until each serves, or this process is to stop."""
    workers.tell_in_force()
    workers.tell_parent("up")
    tasks = [asyncio.ensure_future(workers.all_up()), asyncio.ensure_future(stopping.wait())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    workers.tell_parent("all up")


def end_with_parent(life: int, end: Callable[[], None]) -> None:
    """Call `end` when the parent has died for any reason."""
    loop = asyncio.get_running_loop()

    def ended() -> None:
        loop.remove_reader(life)
        end()

    loop.add_reader(life, ended)


async def work(seat: Seat, common: Common, stderr: QueuedText) -> None:
    """Run a worker until SIGTERM or SIGINT. Reloads come from the control process."""
    loop, stopping, at_once = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def interrupt() -> None:
        at_once.set()
        stopping.set()

    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.add_signal_handler(signal.SIGINT, interrupt)
    end_with_parent(seat.life, interrupt)
    worker = Worker(seat.ends[0])
    begin = asyncio.ensure_future(worker.begin())
    stopped = asyncio.ensure_future(stopping.wait())
    await asyncio.wait([begin, stopped], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not begin.done():
        begin.cancel()
        return
    async with working(worker, begin.result(), common, log_dropped=lambda: stderr.dropped) as app:
        await stopping.wait()
        loop.add_signal_handler(HURRY, app.hurry)
        await app.drain(at_once=at_once.is_set())
