"""How long cached keys keep working while the store does not respond (`store.grace`)."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from sidecar.core.units import counted
from sidecar.keys.ports import KeyReader, StoreUnavailable

_CHECK_SECONDS: Final = 0.5
"""How often the store is checked, so that the start of an outage is known even without requests."""
_RETRY_SECONDS: Final = 0.05
"""How often during an outage, so that changes made meanwhile take effect soon after the store is back."""
_log = logging.getLogger(__name__)


class Grace:
    """Whether the store responds and, if not, whether cached keys keep working. One for all caches of a store.

    seconds: how long, since the store last responded; 0 is not at all. time: seconds of a monotonic clock.
    """

    def __init__(self, reader: KeyReader, seconds: float, *, time: Callable[[], float]) -> None:
        self._reader, self._seconds, self._time = reader, seconds, time
        self._heard_at = time()
        self._problem = ""
        """Why the store does not respond; empty if it does."""
        self._over = False
        self._before = 0
        """Lookups before it stopped responding."""
        self.lookups = 0
        """Uses of cached keys without the store."""

    def reconfigure(self, seconds: float) -> None:
        """Use this time from now on, also for a current outage, which counts from the store's last response."""
        self._seconds = seconds

    @property
    def active(self) -> bool:
        """Whether the store does not respond, and cached keys keep working."""
        return self._problem != "" and self._left() > 0

    def covers(self, error: StoreUnavailable) -> bool:
        """Record that the store did not respond. Returns whether cached keys keep working."""
        if not self._seconds:
            return False
        if not self._problem:
            self._problem, self._over, self._before = str(error), False, self.lookups
            if self.active:
                _log.warning(
                    "sidecar: store: no answer: cached keys keep working for up to %.3g s: %s", self._left(), error
                )
        self._log_end()
        return self.active

    def remarks(self) -> Sequence[str]:
        """A line for readiness, while cached keys keep working."""
        if not self.active:
            return []
        return [f"store: no answer, cached keys keep working for {self._left():.0f} s more: {self._problem}"]

    async def watch(self) -> None:
        """Check the store repeatedly, until cancelled."""
        while True:
            if self._seconds:
                await self.check()
            await asyncio.sleep(_RETRY_SECONDS if self._problem else _CHECK_SECONDS)

    async def check(self) -> None:
        """Check the store once.

        What matters is whether keys changed: if only lookups fail, cached keys are known to be valid.
        """
        asked_at = self._time()
        try:
            await self._reader.read_generation()
        except StoreUnavailable as error:
            self.covers(error)
            return
        if self._problem:
            count = counted(self.lookups - self._before, "lookup")
            _log.warning("sidecar: store: answers again, after %.3g s and %s without it", self._silence(), count)
        self._problem, self._heard_at = "", asked_at

    def _log_end(self) -> None:
        if not self._over and not self.active:
            self._over = True
            _log.warning(
                "sidecar: store: no answer for %.3g s, store.grace is over: %s", self._silence(), self._problem
            )

    def _silence(self) -> float:
        return self._time() - self._heard_at

    def _left(self) -> float:
        return self._seconds - self._silence()
