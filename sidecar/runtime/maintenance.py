"""What the store is told, and asked, every few seconds."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Literal, Protocol

from sidecar.keys.ports import KeyCalendar, KeyCensus, QuotaRow, QuotaStates, StoreUnavailable
from sidecar.running.usage import UsageKeeper
from sidecar.runtime.tasks import Background
from sidecar.telemetry.metrics import Metrics

FLUSH_SECONDS = 2.0
"""How often the use of keys is written; a crash forgets at most what was used since."""
TIDY_SECONDS = 900.0
"""How often old counts of use are summed up or forgotten."""
QUOTA_SECONDS = 5.0
"""How often quota states are written; a crash forgets at most what was taken since."""
COUNT_SECONDS = 60.0
"""How often keys are counted for the metric."""
DUE_AT_MOST = 1000
"""How many keys that end soon are counted; more are shown as this many."""

_SPANS: Final = {"1d": 1, "7d": 7, "30d": 30}
_DAY: Final = 86_400_000_000


class Store(KeyCensus, KeyCalendar, QuotaStates, Protocol):
    """What is kept up."""


class Counts(Protocol):
    """A limiter whose counts are worth keeping."""

    def expire(self, now: float) -> None:
        """Let go of all that is past."""

    def snapshot(self, now: float) -> Sequence[QuotaRow]:
        """What still counts at `now`. Called in another thread."""


class Upkeep:
    """Has the use of keys written, writes quota states, and counts keys. `clock`: Unix seconds."""

    def __init__(
        self, store: Store, counts: Counts, *, usage: UsageKeeper, metrics: Metrics, clock: Callable[[], float]
    ) -> None:
        self._store, self._counts, self._usage = store, counts, usage
        self._metrics, self._clock = metrics, clock
        self._saved: frozenset[QuotaRow] = frozenset()

    async def start(self, background: Background) -> None:
        background.repeat(self._usage.flush, FLUSH_SECONDS)
        background.repeat(self._usage.tidy, TIDY_SECONDS)
        background.repeat(self._save_quotas, QUOTA_SECONDS)
        await self._count_keys()
        background.repeat(self._count_keys, COUNT_SECONDS)

    async def finish(self) -> None:
        """Write all that is not written yet, as far as the store takes it."""
        with suppress(StoreUnavailable):
            await self._usage.flush(everything=True)
            await self._save_quotas()

    async def _save_quotas(self) -> None:
        """Off the loop, and only what moved: a snapshot takes microseconds a subject, and a write more."""
        now = self._clock()
        self._counts.expire(now)
        counts, moved = await asyncio.to_thread(self._moved, now)
        if moved:
            await self._store.save_quota_states(moved)
            self._saved = counts

    def _moved(self, now: float) -> tuple[frozenset[QuotaRow], Sequence[QuotaRow]]:
        """Everything that counts, and of it what is not written yet."""
        rows = self._counts.snapshot(now)
        return frozenset(rows), [row for row in rows if row not in self._saved]

    async def _count_keys(self) -> None:
        with suppress(StoreUnavailable):
            self._metrics.set_keys(await self._store.counts())
            self._metrics.set_keys_due(await self._due("expires") | await self._due("retires"))

    async def _due(self, turn: Literal["expires", "retires"]) -> dict[tuple[str, str], int]:
        now = int(self._clock() * 1_000_000)
        until = now + max(_SPANS.values()) * _DAY
        keys = await self._store.turning(turn, since=now, until=until, tenant=None, limit=DUE_AT_MOST)
        ends = [key.expires_at if turn == "expires" else key.retires_at for key in keys]
        return {
            (turn, span): sum(end is not None and end <= now + days * _DAY for end in ends)
            for span, days in _SPANS.items()
        }
