"""The use of keys on its way from memory to the store, and past the eye for what is unusual."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Protocol

from sidecar.config.settings import UsageSettings
from sidecar.keys.ports import KeyRegistry
from sidecar.usage.detector import UnusualActivity
from sidecar.usage.ports import DAY, UnusualStore, UsageStore
from sidecar.usage.recorder import Usage
from sidecar.usage.writer import Refused, Touched, UsageWriter

_log = logging.getLogger(__name__)

_ROWS: Final = 2_000
"""Summed up or forgotten in one transaction, so that nobody waits long for the write lock."""
_PAUSE_SECONDS: Final = 0.05
"""Between two of them."""
_RESTORED: Final = 500


class Store(KeyRegistry, UsageStore, UnusualStore, Protocol):
    """Where use is kept."""


class UsageKeeper:
    """Writes what `usage` has counted, tells `unusual` of it, and forgets what is old. `clock` in Unix seconds.

    prefixes: what keys begin with, of which nothing is kept where a client puts one into its User-Agent.
    """

    def __init__(
        self,
        store: Store,
        usage: Usage,
        *,
        unusual: UnusualActivity,
        settings: UsageSettings,
        clock: Callable[[], float],
        prefixes: Iterable[str] = (),
    ) -> None:
        self._store, self._usage, self._unusual = store, usage, unusual
        self._clock = clock
        self._settings = settings
        self._writer = UsageWriter(clock=clock)
        self._writer.agents.heed(prefixes)
        self._round = asyncio.Lock()

    @property
    def dropped(self) -> int:
        """Requests that were not counted, for want of memory."""
        return self._usage.dropped + self._writer.dropped

    def heed(self, settings: UsageSettings, *, prefixes: Iterable[str] = ()) -> None:
        """Go by these from now on."""
        self._settings = settings
        self._writer.agents.heed(prefixes)
        self._unusual.heed(settings.unusual)

    async def restore(self) -> None:
        """Remember the unusual events of earlier. Raises StoreUnavailable."""
        self._unusual.events.restore(await self._store.unusual(limit=_RESTORED))

    async def flush(self, *, everything: bool = False) -> None:
        """Write what was counted; at the end of the process `everything`. Raises StoreUnavailable.

        Cancelled, it ends what it has begun all the same, since what is half written would be written twice.
        """
        writing = asyncio.get_running_loop().create_task(self._flush(everything=everything))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing])
            if not writing.cancelled() and (error := writing.exception()) is not None:
                _log.debug("a last round of writing failed: %s", type(error).__name__)
            raise

    async def tidy(self) -> None:
        """Sum up by the day, and forget, what is old enough. Raises StoreUnavailable."""
        await self._in_steps(self._store.roll_up, self._settings.hours_seconds)
        await self._in_steps(self._store.prune, self._settings.keep_seconds)

    async def _flush(self, *, everything: bool) -> None:
        async with self._round:
            for refused in await self._writer.sum_up(self._usage.taken()):
                self._refused(refused)
            await self._writer.write(self._store, self._touched, everything=everything)
            if events := self._unusual.events.fresh():
                await self._store.add_unusual(events)

    async def _in_steps(self, step: "_Step", kept_seconds: float) -> None:
        before = int((self._clock() - kept_seconds) * 1_000_000)
        done = _ROWS
        while done:
            done = await step(before - before % DAY, most=_ROWS)
            await asyncio.sleep(_PAUSE_SECONDS)

    def _touched(self, touched: Touched) -> None:
        use, earlier = touched.use, touched.earlier
        self._unusual.used(
            touched.key_id,
            use.at,
            use.address,
            idle_since=earlier.created_at if earlier.used_at is None else earlier.used_at,
            used_before=earlier.used_at is not None,
            new_networks=earlier.new_networks,
        )

    def _refused(self, refused: Refused) -> None:
        self._unusual.refused(
            refused.key_id,
            refused.at,
            refused.address,
            network=refused.network,
            reason=refused.reason,
            count=refused.count,
        )


class _Step(Protocol):
    def __call__(self, before: int, *, most: int) -> Awaitable[int]: ...
