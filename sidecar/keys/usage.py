"""Last-used times, gathered in memory and written in batches."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from sidecar.keys.store import KeyRegistry

_BATCH: Final = 1_000
"""Keys written in one transaction, so that nobody waits long for the write lock."""


class LastUsed:
    """When each key was last used; each is written at most once in `sample_seconds`.

    `clock` in Unix seconds. At most `size` keys are remembered: past it, those waiting longest are forgotten, which
    costs a time that was not written yet only where the store has been out of reach for as many keys.
    """

    def __init__(self, *, clock: Callable[[], float], sample_seconds: float = 60, size: int = 100_000) -> None:
        self._clock = clock
        self._sample = int(sample_seconds * 1_000_000)
        self._size = size
        self._unwritten: dict[str, int] = {}
        self._written: OrderedDict[str, int] = OrderedDict()

    def used(self, key_id: str, at_us: int) -> None:
        """The key was used at `at_us` (microseconds)."""
        unwritten = self._unwritten
        if at_us > unwritten.get(key_id, -1):
            unwritten[key_id] = at_us
            if len(unwritten) > self._size:
                del unwritten[next(iter(unwritten))]

    async def flush(self, registry: KeyRegistry, *, everything: bool = False) -> None:
        """Write what is due, or (at the end of the process) everything.

        Raises StoreUnavailable; what was not written then is kept for the next call.
        """
        now = int(self._clock() * 1_000_000)
        due = [
            (key_id, at)
            for key_id, at in self._unwritten.items()
            if everything or not 0 <= now - self._written.get(key_id, -self._sample) < self._sample
        ]
        for start in range(0, len(due), _BATCH):
            batch = dict(due[start : start + _BATCH])
            await registry.touch(batch)
            self._settle(batch, now)

    def _settle(self, batch: dict[str, int], now: int) -> None:
        for key_id, at in batch.items():
            # Used again while the batch was written: that time still waits.
            if self._unwritten.get(key_id) == at:
                del self._unwritten[key_id]
            self._written[key_id] = now
            self._written.move_to_end(key_id)
        while len(self._written) > self._size:
            self._written.popitem(last=False)
