"""Waiting for events without a notification: another process's state, or pending work of the loop.

Polls with a pause in between, and a timeout. Where a line is printed, a connection ends or a future is set, wait for
that instead.
"""

import asyncio
import time
from collections.abc import Callable
from itertools import count

from tests.harness.processes import READY_SECONDS

PATIENCE_SECONDS = 30.0
_PAUSE_SECONDS = 0.02
"""Polling a sidecar's metrics more often would take CPU from the awaited work."""
_TURN_SECONDS = 0.001
_TURNS_AT_ONCE = 100


def until(holds: Callable[[], object], *, within: float = READY_SECONDS) -> float:
    """How many seconds it took; fails past `within`."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < within, "it never came"
        time.sleep(_PAUSE_SECONDS)
    return time.monotonic() - began


async def eventually(holds: Callable[[], object], *, within_seconds: float = PATIENCE_SECONDS) -> None:
    """Let the loop turn until `holds()`; fails past the time."""
    turns = count()
    async with asyncio.timeout(within_seconds):
        while not holds():
            # Slow steps happen elsewhere: in the kernel, in a thread, or by time.
            await asyncio.sleep(0 if next(turns) < _TURNS_AT_ONCE else _TURN_SECONDS)
