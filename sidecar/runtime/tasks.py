"""What goes on beside the requests: tasks that end with the stack they were started on."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

from sidecar.core.errors import Reason
from sidecar.keys.ports import StoreUnavailable

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
