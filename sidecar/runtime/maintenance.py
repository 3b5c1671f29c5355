"""What the store is told, and asked, every few seconds."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final, Literal, Protocol

from sidecar.config.document import UsageSettings
from sidecar.config.policy import KeySettings
from sidecar.core.units import rfc3339
from sidecar.keys.ports import KeyCalendar, KeyCensus, KeyConflict, KeyRegistry, QuotaRow, QuotaStates, StoreUnavailable
from sidecar.keys.transitions import retire_unused, unused_since
from sidecar.runtime.tasks import Background
from sidecar.telemetry.metrics import Metrics
from sidecar.usage.anomalies import AnomalyDetector
from sidecar.usage.ports import DAY, AnomalyStore, UsageStore
from sidecar.usage.recorder import Usage
from sidecar.usage.writer import KeyUsed, RefusalCount, UsageWriter

# The use of keys on its way from memory to the store, and past the eye for what is unusual.


_log = logging.getLogger(__name__)

_ROWS: Final = 2_000
"""Summed up or forgotten in one transaction, so that nobody waits long for the write lock."""
_PAUSE_SECONDS: Final = 0.05
"""Between two of them."""
_RESTORED: Final = 500


class UsageRegistry(KeyRegistry, UsageStore, AnomalyStore, Protocol):
    """Where use is kept."""


class UsageKeeper:
    """Writes what `usage` has counted, tells `unusual` of it, and forgets what is old. `clock` in Unix seconds.

    prefixes: what keys begin with, of which nothing is kept where a client puts one into its User-Agent.
    """

    def __init__(
        self,
        store: UsageRegistry,
        usage: Usage,
        *,
        unusual: AnomalyDetector,
        settings: UsageSettings,
        clock: Callable[[], float],
        prefixes: Iterable[str] = (),
    ) -> None:
        self._store, self._usage, self._unusual = store, usage, unusual
        self._clock = clock
        self._settings = settings
        self._writer = UsageWriter(clock=clock)
        self._writer.agents.reconfigure(prefixes)
        self._round = asyncio.Lock()

    @property
    def dropped(self) -> int:
        """Requests that were not counted, for want of memory."""
        return self._usage.dropped + self._writer.dropped

    def reconfigure(self, settings: UsageSettings, *, prefixes: Iterable[str] = ()) -> None:
        """Go by these from now on."""
        self._settings = settings
        self._writer.agents.reconfigure(prefixes)
        self._unusual.reconfigure(settings.unusual)

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

    def _touched(self, touched: KeyUsed) -> None:
        use, earlier = touched.use, touched.earlier
        self._unusual.used(
            touched.key_id,
            use.at,
            use.address,
            idle_since=earlier.created_at if earlier.used_at is None else earlier.used_at,
            used_before=earlier.used_at is not None,
            new_networks=earlier.new_networks,
        )

    def _refused(self, refused: RefusalCount) -> None:
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


# Replaced keys that nobody uses any more are retired before their overlap ends, where that is asked for.


RETIRE_SECONDS = 300.0
"""How often unused keys are looked for."""

_AT_ONCE: Final = 100
"""Keys of one round; more wait for the next."""


class RetirementStore(KeyRegistry, KeyCalendar, Protocol):
    """Where keys retire."""


class Retirement:
    """Ends overlaps as `keys.retire_unused` says. `usage` has the uses of this process; `clock` in Unix seconds."""

    def __init__(
        self, store: RetirementStore, usage: UsageKeeper, *, settings: KeySettings, clock: Callable[[], float]
    ) -> None:
        self._store, self._usage, self._clock = store, usage, clock
        self.reconfigure(settings)

    def reconfigure(self, settings: KeySettings) -> None:
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
