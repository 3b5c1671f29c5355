"""The limiter that counts in this process's memory, and can save its counts as rows."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from heapq import nlargest
from json.encoder import encode_basestring_ascii
from math import inf
from typing import Any, Final

from sidecar.core.model import Bucket, Quota, QuotaState, Subject, Taken, Window
from sidecar.core.quotas import longest_refusal, merged, micros, period_seconds, window_of_count
from sidecar.limiter.tables import DEFAULT_ENTRIES, EntryBudget, FixedTable, SubjectId, Table, table_for, used_of

# Counts as rows that a store can keep across restarts.


Row = tuple[str, str, str, int]
"""Quota name, subject (JSON), count and how it was counted (JSON), microsecond after which it is obsolete."""

Shape = tuple[str, Window, str | int, tuple[Subject, ...]]
"""What must not change for counts to keep their meaning: name, window, period, by."""

Counted = Any
"""int (fixed), Stamps (sliding) or Debt (bucket)."""

KEPT_FROM_SECONDS = 60
_UNITS = ("minute", "hour", "day", "week", "month")
_SECOND = 1_000_000


def shape_of(quota: Quota) -> Shape:
    return quota.name, quota.window, quota.period, quota.by


def rows_of(table: Table[Any], now: float) -> Iterator[Row]:
    """A row for each count of `table` that is still valid after `now`; none for quotas shorter than a minute."""
    quota = table.quota
    if period_seconds(quota) < KEPT_FROM_SECONDS:
        return
    shape = json.dumps([quota.window, quota.period, quota.by])
    window = table.window if isinstance(table, FixedTable) else None
    for subject, counted in table.all_held().items():
        if window is not None:
            expires_at = window[1] * _SECOND
            numbers = [*window, counted]
        else:
            stamp = counted[-2] if quota.window is Window.SLIDING else counted[1]
            expires_at = stamp + micros(table.lifetime)
            numbers = list(counted)
        if expires_at > now * _SECOND:
            # A list of ints looks the same in Python and JSON; json.dumps would cost more than everything else.
            parts = ", ".join(map(encode_basestring_ascii, subject))
            yield quota.name, f"[{parts}]", f'{{"by": {shape}, "count": {numbers}}}', expires_at


def read_row(row: Row, quotas: dict[Shape, Quota], now: float) -> tuple[Quota, tuple[str, ...], Counted] | None:
    """A quota of the row's shape (without its limit; cached in `quotas`), the subject and the count.

    None if malformed or past.
    """
    try:
        name, subject_json, state_json, expires_at = row
        subject, state = json.loads(subject_json), json.loads(state_json)
        quota = _quota(name, state["by"], quotas)
        counted = _count(quota, state["count"], now)
        good = bool(counted) and expires_at > now * _SECOND
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    good = good and isinstance(subject, list) and all(isinstance(part, str) for part in subject)
    return (quota, tuple(subject), counted) if good else None


def _quota(name: str, counted_by: list[Any], quotas: dict[Shape, Quota]) -> Quota:
    window, period, by = counted_by
    shape = (name, window, period, tuple(by))
    if shape not in quotas:
        if not isinstance(name, str) or not _is_period(period):
            raise ValueError(counted_by)
        subjects = tuple(Subject(part) for part in by)
        quotas[shape] = Quota(name=name, limit=0, period=period, window=Window(window), by=subjects)
    return quotas[shape]


def _count(quota: Quota, numbers: list[int], now: float) -> Counted | None:
    """The count, or None if it is past. Raises ValueError for anything that no table writes."""
    if not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(numbers)
    if quota.window is Window.SLIDING:
        if len(numbers) % 2 or numbers[::2] != sorted(numbers[::2]):
            raise ValueError(numbers)
        return tuple(numbers)
    if quota.window is Window.BUCKET:
        owed, at = numbers
        return owed, at
    start, end, used = numbers
    _, still_counts = window_of_count(quota, (start, end), now)
    return used if still_counts else None


def _is_period(period: object) -> bool:
    return period in _UNITS if isinstance(period, str) else type(period) is int and period > 0


# Who has used most of a quota: a first selection, because each subject's limit is unknown here.


_WORTH_TELLING: Final = 0.8
"""The share of a limit."""


_OF_A_TENANT: Final = frozenset({Subject.TENANT, Subject.ENVIRONMENT})


def counted_for(quota: Quota) -> Subject | None:
    """Whose counts these are: a key's, a tenant's or an environment's; None where they are of a part of one."""
    if Subject.TENANT in quota.by and _OF_A_TENANT.issuperset(quota.by):
        return Subject.TENANT
    return quota.by[0] if quota.by in ((Subject.KEY,), (Subject.ENVIRONMENT,)) else None


def top_subjects(
    counts: Iterable[tuple[Quota, Mapping[SubjectId, Any]]], *, most: int, limits: Mapping[str, Collection[int]]
) -> list[tuple[Subject, str]]:
    """Keys, tenants and environments that have used most of a limit, at most `most` for each limit of each quota.

    counts: of each quota, by subject. limits: by quota, those of plans, in addition to the quota's own. May run in
    another thread; the result may include counts that are past but not yet removed.
    """
    found: dict[tuple[Subject, str], None] = {}
    for quota, held in counts:
        if (by := counted_for(quota)) is None:
            continue
        at = quota.by.index(by)
        used = ((used_of(quota, counted), subject[at]) for subject, counted in held.items())
        tiers = sorted({quota.limit, *limits.get(quota.name, ())})
        full = [(count, name) for count, name in used if count >= _WORTH_TELLING * tiers[0]]
        for lowest, highest in zip(tiers, [*tiers[1:], inf], strict=True):
            # Counts far above a limit belong to subjects with a higher one, unless the limit was lowered.
            reach = lowest if highest < inf else inf
            band = (one for one in full if _WORTH_TELLING * lowest <= one[0] <= reach)
            found.update(dict.fromkeys((by, name) for _, name in nlargest(most, band)))
    return list(found)


_DRAINS_ON_EXPIRE = 1000
"""Entries per step: less than a millisecond of work."""


class MemoryLimiter:
    """Counts in dicts. Each take is one section without `await`, so it is atomic among the tasks of one loop.

    Subjects beyond `max_entries` evict others that were not used recently and have used little, which then start from
    zero; addresses only evict addresses (see EntryBudget), so a flood of clients costs memory only up to that bound.
    Counts survive a reload of the configuration if the quota's name, window, period and `by` stay the same; a changed
    limit applies immediately.
    """

    immediate = True

    def __init__(self, *, max_entries: int = DEFAULT_ENTRIES) -> None:
        self._room = EntryBudget(max_entries)
        self._tables: dict[Shape, Table[Any]] = {}
        self._latest: dict[str, Table[Any]] = {}
        """The table last used under each name; a cache for `_tables`, whose keys take longer to hash."""

    def __len__(self) -> int:
        """Entries in memory, including those that are past but not yet freed."""
        return self._room.held()

    @property
    def max_entries(self) -> int:
        return self._room.max_entries

    @property
    def evicted(self) -> int:
        """Valid entries that were evicted since the start."""
        return self._room.evicted

    async def take(self, buckets: Sequence[Bucket], now: float) -> Taken:
        return self.take_now(buckets, now)

    async def peek(self, buckets: Sequence[Bucket], now: float) -> Taken:
        return self.peek_now(buckets, now)

    def take_now(self, buckets: Sequence[Bucket], now: float) -> Taken:
        """Take every bucket's cost or nothing. If several refuse, `refused` is the one with the longest wait."""
        if self._room.dropped:
            self._room.drain()
        if len(buckets) != 1:
            return self._take_all(merged(buckets), now)
        bucket = buckets[0]
        state = self._table(bucket.quota, now).take(bucket, now)
        return Taken(states=(state,), refused=state if state.retry_after_seconds else None)

    def peek_now(self, buckets: Sequence[Bucket], now: float) -> Taken:
        """The result of `take`, but with the current `remaining`. Nothing is taken."""
        states = [self._table(bucket.quota, now).peek(bucket, now) for bucket in merged(buckets)]
        return Taken(states=tuple(states), refused=longest_refusal(states))

    def expire(self, now: float) -> None:
        """Remove all past counts. A take does so for its own quota; this is for unused quotas."""
        for shape, table in list(self._tables.items()):
            table.turn(now)
            if not len(table):
                del self._tables[shape]
                self._room.tables.remove(table)
                if self._latest.get(table.quota.name) is table:
                    del self._latest[table.quota.name]
        for _ in range(_DRAINS_ON_EXPIRE):
            if not self._room.dropped:
                break
            self._room.drain()

    def snapshot(self, now: float) -> list[Row]:
        """Rows for `restore`; see `rows`."""
        return list(self.rows(now))

    def rows(self, now: float) -> Iterator[Row]:
        """Counts of quotas of at least a minute that are valid at `now`; made lazily.

        At most one row for a quota and subject. Takes some microseconds per row, and may run in another thread; a count
        that is used meanwhile may then be missing.
        """
        for table in list(self._latest.values()):
            yield from rows_of(table, now)

    def top_subjects(self, *, most: int, limits: Mapping[str, Collection[int]]) -> list[tuple[Subject, str]]:
        """As the function of this name. May run in another thread."""
        counts = ((table.quota, table.all_held()) for table in list(self._latest.values()))
        return top_subjects(counts, most=most, limits=limits)

    def restore(self, rows: Iterable[Row], now: float) -> int:
        """Restore counts from `rows`. Returns how many were valid.

        Malformed and expired rows are ignored. Rows of a quota that no longer exists, or counts differently, are never
        used, and expire.
        """
        quotas: dict[Shape, Quota] = {}
        return sum([self._restore_row(row, quotas, now) for row in rows])

    def _restore_row(self, row: Row, quotas: dict[Shape, Quota], now: float) -> bool:
        read = read_row(row, quotas, now)
        if read is None:
            return False
        quota, subject, counted = read
        table = self._table(quota, now)
        if table.held(subject) is None:
            table.hold(subject, counted)
        return True

    def _table(self, quota: Quota, now: float) -> Table[Any]:
        table = self._latest.get(quota.name)
        if table is None or table.quota is not quota:
            table = self._latest[quota.name] = self._table_of_shape(quota, now)
        return table

    def _table_of_shape(self, quota: Quota, now: float) -> Table[Any]:
        shape = shape_of(quota)
        table = self._tables.get(shape)
        if table is None:
            self.expire(now)
            table = self._tables[shape] = table_for(quota, self._room, now)
        table.quota = quota
        return table

    def _take_all(self, buckets: Sequence[Bucket], now: float) -> Taken:
        before: list[tuple[Table[Any], SubjectId, Any]] = []
        states: list[QuotaState] = []
        for bucket in buckets:
            table = self._table(bucket.quota, now)
            table.turn(now)
            before.append((table, bucket.subject, table.held(bucket.subject)))
            states.append(table.take(bucket, now))
        refused = longest_refusal(states)
        if refused is not None:
            for i, (table, subject, held) in enumerate(before):
                if not states[i].retry_after_seconds:
                    table.hold(subject, held)
                    states[i] = table.peek(buckets[i], now)
        return Taken(states=tuple(states), refused=refused)
