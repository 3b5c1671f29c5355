"""What goes on beside the requests: tasks that end with the stack they were started on."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

from sidecar.core.errors import Reason
from sidecar.keys.ports import StoreUnavailable

_log = logging.getLogger(__name__)


class Background:
    """Starts tasks; each is cancelled, and waited for, when `stack` is left. `failed` counts rounds that failed."""

    def __init__(self, stack: AsyncExitStack, failed: Callable[[Reason], None]) -> None:
        self._stack, self._failed = stack, failed

    def repeat(self, work: Callable[[], Awaitable[None]], seconds: float) -> None:
        """`work` every `seconds`, the first time after as many. A round that fails is not the last."""

        async def forever() -> None:
            while True:
                await asyncio.sleep(seconds)
                try:
                    await work()
                except StoreUnavailable:
                    # Told by readiness, and by the requests that need the store.
                    self._failed(Reason.STORE_UNAVAILABLE)
                except Exception as error:
                    self._failed(Reason.INTERNAL)
                    _log.error("a background task failed and goes on: %s", type(error).__name__)

        self.run(forever())

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)

        async def end() -> None:
            task.cancel()
            await asyncio.wait([task])

        self._stack.push_async_callback(end)
