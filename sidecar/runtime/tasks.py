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

    # Without a function of Python between: requests ask several times each.
    seconds = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)

    def micros(self) -> int:
        return time.time_ns() // 1000


_log = logging.getLogger(__name__)


RESTART_SECONDS = 1.0
"""After which a loop that raised is started again."""


class Background:
    """Starts tasks; each is cancelled, and waited for, when `stack` is left. `failed` counts rounds that failed."""

    def __init__(self, stack: AsyncExitStack, failed: Callable[[Reason], None]) -> None:
        self._stack, self._failed = stack, failed

    def repeat(self, work: Callable[[], Awaitable[None]], seconds: float) -> None:
        """`work` every `seconds`, the first time after as many. A round that fails is not the last."""

        async def forever() -> None:
            while True:
                await asyncio.sleep(seconds)
                await self._attempt(work)

        self._start(forever())

    def run(self, loop: Callable[[], Awaitable[None]]) -> None:
        """`loop`, which has its own rounds, and is started again where it ends or raises."""

        async def forever() -> None:
            while True:
                await self._attempt(loop)
                await asyncio.sleep(RESTART_SECONDS)

        self._start(forever())

    def count_failed_callbacks(self) -> None:
        """Count what the event loop's own callbacks raise, timers above all, until `stack` is left."""
        loop = asyncio.get_running_loop()
        before = loop.get_exception_handler()

        def count(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            error = context.get("exception")
            if error is not None and not isinstance(error, OSError):  # The network's, which are no fault of ours.
                self._failed(Reason.INTERNAL)
            loop.default_exception_handler(context)

        loop.set_exception_handler(count)
        self._stack.callback(loop.set_exception_handler, before)

    async def _attempt(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except StoreUnavailable:
            # Told by readiness, and by the requests that need the store.
            self._failed(Reason.STORE_UNAVAILABLE)
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            self._note(error)  # Something that it waited for was cancelled.
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


# The shutdown: balancers are told first, then what has begun is finished.


class Server(Protocol):
    """A listener that answers requests."""

    def close_when_idle(self) -> None:
        """Make every answer its connection's last."""

    def keep_open(self) -> None:
        """Undo `close_when_idle`."""

    async def stop(self, *, grace_seconds: float) -> None:
        """Take no more connections, finish what has begun for at most `grace_seconds`, and end the rest."""


class Drainer:
    """Ends listeners together. While `not_ready` says why, readiness is to say so. To be made where its loop runs."""

    def __init__(self) -> None:
        self._servers: list[Server] = []
        self._loop = asyncio.get_running_loop()
        self._patience = asyncio.timeout(None)
        self._hurried = False
        self._since: float | None = None
        """When load balancers were first told, by readiness, to go elsewhere."""
        self.begun = False
        """Whether the process ends; `announce` alone does not end it."""

    def add(self, server: Server) -> None:
        self._servers.append(server)

    @property
    def not_ready(self) -> str:
        """Why; empty where nothing is drained."""
        if self.begun:
            return "shutting down"
        return "" if self._since is None else "asked for by `sidecar drain`"

    def announce(self) -> bool:
        """Tell balancers and clients, and go on serving them; False where that was done before."""
        if self._since is not None:
            return False
        self._since = self._loop.time()
        for server in self._servers:
            server.close_when_idle()
        return True

    def undo(self) -> bool:
        """Be ready again; False where nothing was announced. Not to be called once draining has `begun`."""
        if self._since is None:
            return False
        self._since = None
        for server in self._servers:
            server.keep_open()
        return True

    def delay_left(self, rules: Drain) -> float:
        """Seconds of `rules.delay` that are not over yet: it counts from when balancers were told."""
        told = 0.0 if self._since is None else self._loop.time() - self._since
        return max(rules.delay - told, 0.0)

    async def drain(self, rules: Drain, *, at_once: bool = False) -> None:
        """Accept connections for what is left of `rules.delay` (`at_once`: none), and finish requests for
        `rules.timeout`.

        What takes longer is cut off.
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
        """Cut off everything that is under way, now or when draining begins."""
        if self.begun and not self._hurried:
            self._patience.reschedule(self._loop.time())
        self._hurried = True

    async def _stop(self, grace_seconds: float) -> None:
        await asyncio.gather(*(server.stop(grace_seconds=grace_seconds) for server in self._servers))
