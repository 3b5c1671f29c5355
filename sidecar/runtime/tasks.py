"""The clock, background tasks, and a shutdown that fails no request."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any, Protocol

from sidecar.config.document import Drain
from sidecar.core.errors import Reason
from sidecar.keys.ports import StoreUnavailable


class SystemClock:
    """The `core.units.Clock` of a process."""

    # Without a Python function in between: each request calls these several times.
    seconds = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)

    def micros(self) -> int:
        return time.time_ns() // 1000


_log = logging.getLogger(__name__)


RESTART_SECONDS = 1.0
"""Pause before a loop that raised is restarted."""


class Background:
    """Starts tasks; each is cancelled and awaited when `stack` ends. `failed` counts failed rounds."""

    def __init__(self, stack: AsyncExitStack, failed: Callable[[Reason], None]) -> None:
        self._stack, self._failed = stack, failed

    def repeat(self, work: Callable[[], Awaitable[None]], seconds: float) -> None:
        """Run `work` every `seconds`, the first time after that many. A failed round is not the last."""

        async def forever() -> None:
            while True:
                await asyncio.sleep(seconds)
                await self._attempt(work)

        self._start(forever())

    def run(self, loop: Callable[[], Awaitable[None]]) -> None:
        """Run `loop`, which has its own rounds, and is restarted if it ends or raises."""

        async def forever() -> None:
            while True:
                await self._attempt(loop)
                await asyncio.sleep(RESTART_SECONDS)

        self._start(forever())

    def count_failed_callbacks(self) -> None:
        """Count exceptions of the event loop's own callbacks, above all timers, until `stack` ends."""
        loop = asyncio.get_running_loop()
        before = loop.get_exception_handler()

        def count(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            error = context.get("exception")
            if error is not None and not isinstance(error, OSError):  # Errors of the network are not our fault.
                self._failed(Reason.INTERNAL)
            loop.default_exception_handler(context)

        loop.set_exception_handler(count)
        self._stack.callback(loop.set_exception_handler, before)

    async def _attempt(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except StoreUnavailable:
            # Reported by readiness, and by requests that need the store.
            self._failed(Reason.STORE_UNAVAILABLE)
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            self._note(error)  # Something that it awaited was cancelled.
        except Exception as error:
            self._note(error)

    def _note(self, error: BaseException) -> None:
        self._failed(Reason.INTERNAL)
        _log.error("sidecar: a background task failed and goes on: %s", type(error).__name__)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)

        async def end() -> None:
            task.cancel()
            await asyncio.wait([task])

        self._stack.push_async_callback(end)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


# The shutdown: notify balancers first, then finish running requests.


class Server(Protocol):
    """A listener that serves requests."""

    def close_when_idle(self) -> None:
        """Close each connection after its next response."""

    def keep_open(self) -> None:
        """Undo `close_when_idle`."""

    async def stop(self, *, grace_seconds: float) -> None:
        """Accept no more connections, let running requests finish within `grace_seconds`, and end the rest."""


class Drainer:
    """Ends listeners together. Readiness reports `not_ready` if it is not empty. Create it inside the running loop."""

    def __init__(self) -> None:
        self._servers: list[Server] = []
        self._loop = asyncio.get_running_loop()
        self._patience = asyncio.timeout(None)
        self._hurried = False
        self._since: float | None = None
        """When readiness first told load balancers to go elsewhere."""
        self.begun = False
        """Whether the process is ending; `announce` alone does not end it."""

    def add(self, server: Server) -> None:
        self._servers.append(server)

    @property
    def not_ready(self) -> str:
        """Why it is not ready; empty if it is not draining."""
        if self.begun:
            return "shutting down"
        return "" if self._since is None else "asked for by `sidecar drain`"

    def announce(self) -> bool:
        """Notify balancers and clients, but keep serving them. False if that was already done."""
        if self._since is not None:
            return False
        self._since = self._loop.time()
        for server in self._servers:
            server.close_when_idle()
        return True

    def undo(self) -> bool:
        """Become ready again. False if nothing was announced. Must not be called once draining has `begun`."""
        if self._since is None:
            return False
        self._since = None
        for server in self._servers:
            server.keep_open()
        return True

    def delay_left(self, rules: Drain) -> float:
        """Remaining seconds of `rules.delay`, which counts from when balancers were notified."""
        elapsed = 0.0 if self._since is None else self._loop.time() - self._since
        return max(rules.delay - elapsed, 0.0)

    async def drain(self, rules: Drain, *, at_once: bool = False) -> None:
        """Accept connections for what is left of `rules.delay` (`at_once`: none), and finish requests for
        `rules.timeout`.

        Requests that take longer are cut off.
        """
        self.begun = True
        delay = self.delay_left(rules)
        self.announce()
        with suppress(TimeoutError):
            async with asyncio.timeout(0 if self._hurried else None) as self._patience:
                if not at_once:
                    await asyncio.sleep(delay)
                await self._stop(rules.timeout)
        await self._stop(0)

    def hurry(self) -> None:
        """Cut off everything in progress, now or when draining begins."""
        if self.begun and not self._hurried:
            self._patience.reschedule(self._loop.time())
        self._hurried = True

    async def _stop(self, grace_seconds: float) -> None:
        await asyncio.gather(*(server.stop(grace_seconds=grace_seconds) for server in self._servers))
