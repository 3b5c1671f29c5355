"""Waiting for what tells nobody when it comes: another process's state, or what the loop has yet to do.

It is asked for again and again, with a pause in between, and never for ever. What prints a line, ends a connection or
sets a future is waited for by that instead.
"""

import asyncio
import time
from collections.abc import Callable
from itertools import count

from tests.harness.processes import READY_SECONDS

PATIENCE_SECONDS = 30.0
_PAUSE_SECONDS = 0.02
"""Whoever asks a sidecar for its metrics more often takes a core from what is waited for."""
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
            # What takes long is done by others: by the kernel, by a thread, by time.
            await asyncio.sleep(0 if next(turns) < _TURNS_AT_ONCE else _TURN_SECONDS)
