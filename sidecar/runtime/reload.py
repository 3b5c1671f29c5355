"""The configuration read again: when asked to, and when its file has changed."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from sidecar.config.build.config import Config
from sidecar.config.errors import ConfigError
from sidecar.config.reload import FileIdentity, identity_of
from sidecar.core.units import Clock
from sidecar.runtime.serving import StartError
from sidecar.telemetry.metrics import Reloads

SETTLE_SECONDS = 0.1
"""A file that has changed is read when it has stood still for this long: it may be written in several steps."""


class Reloader:
    """Reads by `load` (which raises ConfigError, and may block) and hands the whole to `reconfigure`.

    adopt: takes the configuration, or raises StartError and takes nothing; gives the options that wait for a restart.
    running: the configuration in force.
    """

    def __init__(
        self,
        load: Callable[[], Config],
        reconfigure: Callable[[Config], Awaitable[Sequence[str]]],
        running: Callable[[], Config],
        *,
        reloads: Reloads,
        clock: Clock,
    ) -> None:
        self._load, self._adopt, self._running = load, reconfigure, running
        self._reloads, self._clock = reloads, clock
        self._asked = asyncio.Event()
        self._seen = identity_of(running().path)

    def ask(self) -> None:
        """Read it soon, changed or not."""
        self._asked.set()

    async def run(self) -> None:
        while True:
            if await self._is_asked() or await self._has_changed():
                await self._reload()

    async def _is_asked(self) -> bool:
        """Whether it was asked for within an interval; where the file is not watched, only that ends the wait."""
        rules = self._running().reload
        with suppress(TimeoutError):
            async with asyncio.timeout(rules.interval if rules.watch else None):
                await self._asked.wait()
        return self._asked.is_set()

    async def _has_changed(self) -> bool:
        identity = await self._identity()
        if identity == self._seen:
            return False
        await self._settled(identity)
        return True

    async def _settled(self, identity: FileIdentity) -> FileIdentity:
        """The file as it is once it has stopped changing: half of it may be valid, and say something else."""
        while True:
            await asyncio.sleep(SETTLE_SECONDS)
            before, identity = identity, await self._identity()
            if identity == before:
                return identity

    async def _identity(self) -> FileIdentity:
        return await asyncio.to_thread(identity_of, self._running().path)

    async def _read(self) -> Config:
        """Read the file, and again where it changed meanwhile."""
        while True:
            # Taken before reading: what changes meanwhile is then seen to be other than what was read.
            self._seen = await self._identity()
            failed: ConfigError | None = None
            try:
                wanted = await asyncio.to_thread(self._load)
            except ConfigError as error:
                failed = error
            if (identity := await self._identity()) != self._seen:
                await self._settled(identity)
            elif failed is not None:
                raise failed
            else:
                return wanted

    async def _reload(self) -> None:
        self._asked.clear()
        try:
            wanted = await self._read()
            kept = await self._adopt(wanted)
        except ConfigError as error:
            first, *more = error.problems
            self._reloads.refused(str(first), where=first.where, more=len(more))
        except StartError as error:
            self._reloads.refused(str(error), where="see the log")
        except Exception as error:  # A reload that failed must not be the last.
            self._reloads.refused(f"internal error: {type(error).__name__}", where="see the log")
        else:
            self._reloads.taken(wanted.path, wanted.sha256, at=self._clock.seconds(), kept=kept)
