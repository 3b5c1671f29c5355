"""A shutdown that fails no request: balancers are told first, then what has begun is finished."""

import asyncio
from contextlib import suppress
from typing import Protocol

from sidecar.config.document import Drain


class Server(Protocol):
    """A listener that answers requests."""

    def close_when_idle(self) -> None:
        """Make every answer its connection's last."""

    async def stop(self, *, grace_seconds: float) -> None:
        """Take no more connections, finish what has begun for at most `grace_seconds`, and end the rest."""


class Drainer:
    """Ends listeners together. Once `begun`, readiness is to say so. To be made where its loop runs."""

    def __init__(self) -> None:
        self._servers: list[Server] = []
        self._patience = asyncio.timeout(None)
        self._hurried = False
        self.begun = False

    def add(self, server: Server) -> None:
        self._servers.append(server)

    async def drain(self, rules: Drain, *, at_once: bool = False) -> None:
        """Accept connections for `rules.delay` more (`at_once`: none), and finish requests for `rules.timeout`.

        What takes longer is cut off.
        """
        self.begun = True
        for server in self._servers:
            server.close_when_idle()
        with suppress(TimeoutError):
            async with asyncio.timeout(0 if self._hurried else None) as self._patience:
                if not at_once:
                    await asyncio.sleep(rules.delay)
                await self._stop(rules.timeout)
        await self._stop(0)

    def hurry(self) -> None:
        """Cut off everything that is under way, now or when draining begins."""
        if self.begun and not self._hurried:
            self._patience.reschedule(asyncio.get_running_loop().time())
        self._hurried = True

    async def _stop(self, grace_seconds: float) -> None:
        await asyncio.gather(*(server.stop(grace_seconds=grace_seconds) for server in self._servers))
