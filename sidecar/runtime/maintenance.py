"""What is written to the store, and read from it, every few seconds."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final, Literal

from sidecar.config.document import UsageSettings
from sidecar.config.policy import KeySettings
from sidecar.core.units import Clock, rfc3339
from sidecar.keys.ports import KeyConflict, KeyRegistry, KeyStatistics, QuotaRow, StoreUnavailable
from sidecar.keys.transitions import retire_unused, unused_since
from sidecar.limiter.shared import EmbeddedLimiter
from sidecar.runtime.control import Sharing
from sidecar.runtime.tasks import Background
from sidecar.store.usage import StoredAnomalies, StoredQuotas, StoredUsage
from sidecar.telemetry.metrics import Metrics
from sidecar.usage.anomalies import AnomalyDetector, AnomalyLog
from sidecar.usage.recorder import DAY, Usage
from sidecar.usage.writer import KeyUsed, RefusalCount, UsageWriter

# The use of keys goes from memory to the store, and through the detector of anomalies.


_log = logging.getLogger(__name__)

_ROWS: Final = 2_000
"""Rows merged or deleted in one transaction, so that no other writer waits long."""
_PAUSE_SECONDS: Final = 0.05
"""Pause between two of these transactions."""
_RESTORED: Final = 500


class UsageKeeper:
    """Writes the counts of `usage`, passes them to `detector`, and deletes old counts.

    prefixes: those of keys; a key that a client puts into its User-Agent is not stored.
    """

    def __init__(
        self,
        counts: StoredUsage,
        anomalies: StoredAnomalies,
        usage: Usage,
        *,
        detector: AnomalyDetector,
        settings: UsageSettings,
        clock: Clock,
        prefixes: Iterable[str] = (),
    ) -> None:
        self._counts, self._anomalies = counts, anomalies
        self._usage, self._detector = usage, detector
        self._clock = clock
        self._settings = settings
        self._writer = UsageWriter(clock=clock)
        self._writer.agents.reconfigure(prefixes)
        self._round = asyncio.Lock()
        self.gather: Callable[[], Awaitable[None]] | None = None
        """Collects the counts of other processes."""

    @property
    def events(self) -> AnomalyLog:
        """Where unusual events are reported."""
        return self._detector.events

    @property
    def dropped(self) -> int:
        """Requests that were not counted for lack of memory."""
        return self._usage.dropped + self._writer.dropped

    def reconfigure(self, settings: UsageSettings, *, prefixes: Iterable[str] = ()) -> None:
        """Use these settings from now on."""
        self._settings = settings
        self._writer.agents.reconfigure(prefixes)
        self._detector.reconfigure(settings.unusual)

    async def restore(self) -> None:
        """Load the unusual events from before the start. Raises StoreUnavailable."""
        self._detector.events.restore(await self._anomalies.newest(limit=_RESTORED))

    async def flush(self, *, everything: bool = False) -> None:
        """Write the counts; at the end of the process, `everything`. Raises StoreUnavailable.

        A write completes even if this is cancelled: otherwise half of it would be written twice.
        """
        if everything and self.gather is not None:
            await self.gather()
        writing = asyncio.get_running_loop().create_task(self._flush(everything=everything))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing])
            if not writing.cancelled() and (error := writing.exception()) is not None:
                _log.debug("a last round of writing failed: %s", type(error).__name__)
            raise

    async def tidy(self) -> None:
        """Merge old counts into days, and delete older ones. Raises StoreUnavailable."""
        await self._in_steps(self._counts.roll_up, self._settings.hours_seconds)
        await self._in_steps(self._counts.prune, self._settings.keep_seconds)

    async def _flush(self, *, everything: bool) -> None:
        async with self._round:
            for refused in await self._writer.sum_up(self._usage.taken()):
                self._refused(refused)
            await self._writer.write(self._counts, self._touched, everything=everything)
            if events := self._detector.events.fresh():
                await self._anomalies.add(events)

    async def _in_steps(self, step: Callable[[int, int], Awaitable[int]], kept_seconds: float) -> None:
        before = int((self._clock.seconds() - kept_seconds) * 1_000_000)
        done = _ROWS
        while done:
            done = await step(before - before % DAY, _ROWS)
            await asyncio.sleep(_PAUSE_SECONDS)

    def _touched(self, touched: KeyUsed) -> None:
        use, earlier = touched.use, touched.earlier
        self._detector.used(
            touched.key_id,
            use.at,
            use.address,
            idle_since=earlier.created_at if earlier.used_at is None else earlier.used_at,
            used_before=earlier.used_at is not None,
            new_networks=earlier.new_networks,
        )

    def _refused(self, refused: RefusalCount) -> None:
        self._detector.refused(
            refused.key_id,
            refused.at,
            refused.address,
            network=refused.network,
            reason=refused.reason,
            count=refused.count,
        )


# Replaced keys that are no longer used retire before their overlap ends, if so configured.


RETIRE_SECONDS = 300.0
"""How often unused keys are searched for."""

_AT_ONCE: Final = 100
"""Keys in one round; more wait for the next."""


class Retirement:
    """Ends overlaps as `keys.retire_unused` says. `usage` has the uses of this process."""

    def __init__(
        self,
        keys: KeyRegistry,
        statistics: KeyStatistics,
        usage: UsageKeeper,
        *,
        settings: KeySettings,
        clock: Clock,
    ) -> None:
        self._keys, self._statistics, self._usage, self._clock = keys, statistics, usage, clock
        self.reconfigure(settings)

    def reconfigure(self, settings: KeySettings) -> None:
        """Use these settings from now on."""
        seconds = settings.retire_unused_seconds
        self._unused = None if seconds is None else int(seconds * 1_000_000)

    async def round(self) -> None:
        """Retire unused keys. Raises StoreUnavailable; the rest waits for the next round."""
        unused = self._unused
        if unused is None:
            return
        now = self._now()
        for key in await self._statistics.unused(before=now - unused, now=now, limit=_AT_ONCE):
            # Uses that are still in this process's memory must be in the row on which the decision is based.
            await self._usage.flush(everything=True)
            with suppress(KeyConflict):
                await self._retire(key.id, unused)

    async def _retire(self, key_id: str, unused: int) -> None:
        key = await retire_unused(self._keys, key_id, unused, self._now())
        since = rfc3339(unused_since(key))
        _log.warning(
            "sidecar: keys: %s (%r) retired before its overlap ended: unused since %s", key.id, key.name, since
        )

    def _now(self) -> int:
        return self._clock.micros()


# Keys that are older than allowed without rotation are reported, once each.


OLD_KEYS_SECONDS = 300.0
"""How often old keys are searched for."""
_ANNOUNCED: Final = 50
"""Keys in one round; more wait for the next."""


class OldKeys:
    """Reports each key that is older than `keys.max_age`, once for all processes of the store."""

    def __init__(self, anomalies: StoredAnomalies, events: AnomalyLog, *, settings: KeySettings, clock: Clock) -> None:
        self._anomalies, self._events, self._clock = anomalies, events, clock
        self.reconfigure(settings)

    def reconfigure(self, settings: KeySettings) -> None:
        """Use these settings from now on."""
        seconds = settings.max_age_seconds
        self._age = None if seconds is None else int(seconds * 1_000_000)

    async def round(self) -> None:
        """Report some keys. Raises StoreUnavailable."""
        if self._age is None:
            return
        now = self._clock.micros()
        found = await self._anomalies.add_old_keys(before=now - self._age, now=now, limit=_ANNOUNCED, describe=_too_old)
        for event in found:
            self._events.announce(event)


def _too_old(created_at: int) -> str:
    return f"issued at {rfc3339(created_at)}, longer ago than keys.max_age: rotate it"


FLUSH_SECONDS = 2.0
"""How often the use of keys is written; a crash loses at most this much."""
TIDY_SECONDS = 900.0
"""How often old usage counts are merged or deleted."""
QUOTA_SECONDS = 5.0
"""How often quota states are written; a crash loses at most this much."""
_REPORT_SECONDS: Final = 3600.0
COUNT_SECONDS = 60.0
"""How often keys are counted for the metric."""
DUE_AT_MOST = 1000
"""Up to how many keys that end soon are counted; more are shown as this number."""

_SPANS: Final = {"1d": 1, "7d": 7, "30d": 30}
_DAY: Final = 86_400_000_000


class Upkeep:
    """Writes the use of keys and quota states, and counts keys, at intervals.

    Quota states belong to this process alone: if others use the store, too, none are saved, so that no process restores
    the counts of another.
    """

    def __init__(
        self,
        statistics: KeyStatistics,
        quotas: StoredQuotas,
        limiter: EmbeddedLimiter,
        sharing: Sharing,
        *,
        usage: UsageKeeper,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._statistics, self._quotas, self._limiter, self._usage = statistics, quotas, limiter, usage
        self._sharing, self._metrics, self._clock = sharing, metrics, clock
        self._saves = True
        self._saved: set[int] = set()
        self._evicted = 0
        self._reported_at = float("-inf")

    async def start(self, background: Background) -> None:
        background.repeat(self._usage.flush, FLUSH_SECONDS)
        background.repeat(self._usage.tidy, TIDY_SECONDS)
        background.repeat(self._save_quotas, QUOTA_SECONDS)
        with suppress(StoreUnavailable):
            await self._count_keys()
        background.repeat(self._count_keys, COUNT_SECONDS)

    async def finish(self) -> None:
        """Write what is still unwritten, unless the store is unavailable."""
        with suppress(StoreUnavailable):
            await self._usage.flush(everything=True)
            await self._save_quotas()

    async def _save_quotas(self) -> None:
        now = self._clock.seconds()
        self._limiter.expire(now)
        if not await self._sharing.look():
            await self._write_quotas(now)
        elif self._saves:
            await self._quotas.forget()
            self._saves, self._saved = False, set()
        await self._report_evicted(now)

    async def _write_quotas(self, now: float) -> None:
        """Write only changed states, in batches that another thread makes: a row takes some microseconds."""
        self._saves = True
        rows, seen = self._limiter.rows(now), set[int]()
        while changed := await asyncio.to_thread(self._changed, rows, seen):
            await self._quotas.save(changed)
        self._saved = seen

    def _changed(self, rows: Iterator[QuotaRow], seen: set[int]) -> Sequence[QuotaRow]:
        """The next unwritten rows. Adds the hash of each row to `seen`; a row itself takes 400 bytes."""
        changed: list[QuotaRow] = []
        for row in rows:
            known = hash(row)
            seen.add(known)
            if known not in self._saved:
                changed.append(row)
                if len(changed) == _ROWS:
                    break
        return changed

    async def _report_evicted(self, now: float) -> None:
        """If counts were evicted: report it, at most once an hour, and trim the store to the size of memory."""
        limiter = self._limiter
        if limiter.evicted == self._evicted:
            return
        self._evicted = limiter.evicted
        await self._quotas.trim(most=limiter.max_entries)
        if not 0 <= now - self._reported_at < _REPORT_SECONDS:
            self._reported_at = now
            _log.warning(
                "sidecar: limiter: its %d entries are full: the least used counts by address start from zero. Raise "
                "limiter.entries (600 bytes each), or look for a flood of addresses",
                limiter.max_entries,
            )

    async def _count_keys(self) -> None:
        self._metrics.set_keys(await self._statistics.counts())
        self._metrics.set_keys_due(await self._upcoming("expires") | await self._upcoming("retires"))

    async def _upcoming(self, date: Literal["expires", "retires"]) -> dict[tuple[str, str], int]:
        now = self._clock.micros()
        until = now + max(_SPANS.values()) * _DAY
        keys = await self._statistics.keys_between(date, since=now, until=until, tenant=None, limit=DUE_AT_MOST)
        ends = [key.expires_at if date == "expires" else key.retires_at for key in keys]
        return {
            (date, span): sum(end is not None and end <= now + days * _DAY for end in ends)
            for span, days in _SPANS.items()
        }
