"""Replaced keys that nobody uses any more are retired before their overlap ends, where that is asked for."""

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from sidecar.config.settings import KeySettings
from sidecar.core.units import rfc3339
from sidecar.keys.ports import KeyCalendar, KeyConflict, KeyRegistry
from sidecar.keys.retiring import retire_unused, unused_since
from sidecar.running.usage import UsageKeeper

RETIRE_SECONDS = 300.0
"""How often unused keys are looked for."""

_AT_ONCE: Final = 100
"""Keys of one round; more wait for the next."""

_log = logging.getLogger(__name__)


class Store(KeyRegistry, KeyCalendar, Protocol):
    """Where keys retire."""


class Retirement:
    """Ends overlaps as `keys.retire_unused` says. `usage` has the uses of this process; `clock` in Unix seconds."""

    def __init__(self, store: Store, usage: UsageKeeper, *, settings: KeySettings, clock: Callable[[], float]) -> None:
        self._store, self._usage, self._clock = store, usage, clock
        self.heed(settings)

    def heed(self, settings: KeySettings) -> None:
        """Go by these from now on."""
        seconds = settings.retire_unused_seconds
        self._unused = None if seconds is None else int(seconds * 1_000_000)

    async def round(self) -> None:
        """Retire what is unused. Raises StoreUnavailable; what is left then is left for the next round."""
        unused = self._unused
        if unused is None:
            return
        now = self._now()
        for key in await self._store.unused(before=now - unused, now=now, limit=_AT_ONCE):
            # What this process still has in memory, sampled or new, must be in the row that is decided on.
            await self._usage.flush(everything=True)
            with suppress(KeyConflict):
                await self._retire(key.id, unused)

    async def _retire(self, key_id: str, unused: int) -> None:
        key = await retire_unused(self._store, key_id, unused, self._now())
        since = rfc3339(unused_since(key))
        _log.warning(
            "sidecar: keys: %s (%r) retired before its overlap ended: unused since %s", key.id, key.name, since
        )

    def _now(self) -> int:
        return int(self._clock() * 1_000_000)
