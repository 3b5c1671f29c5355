"""The limiter that counts in this process's memory, and lets its counts outlive it as rows."""

from collections.abc import Iterable, Sequence
from heapq import nlargest
from typing import Any, Final

from msgspec.structs import replace

from sidecar.core.model import Bucket, Quota, QuotaState, Subject, Taken, Window
from sidecar.core.quotas import micros, period_seconds
from sidecar.limiter.snapshot import Row, Shape, read_row, rows_of, shape_of
from sidecar.limiter.tables import EntryBudget, SubjectId, Table, table_for

# Who has used most of a quota: a first sieve, because the limit of each subject is not known here.


_WORTH_TELLING: Final = 0.5
"""Of the quota's own limit; a plan may give more, and hardly ever gives less than this."""


def top_keys(tables: Iterable[Table[Any]], *, most: int) -> list[str]:
    """Ids of the keys with the largest counts, at most `most` of each quota by key.

    May run in another thread; counts that are past, and not yet let go, may be among them.
    """
    found: dict[str, None] = {}
    for table in tables:
        quota = table.quota
        if quota.by != (Subject.KEY,):
            continue
        used = ((_used(quota, counted), subject[0]) for subject, counted in table.all_held().items())
        full = ((count, key_id) for count, key_id in used if count >= _WORTH_TELLING * quota.limit)
        found.update(dict.fromkeys(key_id for _, key_id in nlargest(most, full)))
    return list(found)


def _used(quota: Quota, counted: Any) -> float:
    match quota.window:
        case Window.FIXED:
            return float(counted)
        case Window.SLIDING:
            return float(sum(counted[1::2]))
        case Window.BUCKET:
            return float(counted[0] / micros(period_seconds(quota)))


_DRAINS_ON_EXPIRE = 1000
"""Less than a millisecond's."""


class MemoryLimiter:
    """Counts in dicts. Each take is one section without `await`, so it is atomic among the tasks of one loop.

    Subjects past `max_entries` push out others that were not touched lately, which then start anew: a stranger's
    flood costs memory up to that bound and no more. What a count is worth is kept across a reload of the
    configuration as long as the quota's name, window, period and `by` stay; a changed limit counts at once.
    """

    def __init__(self, *, max_entries: int = 1_000_000) -> None:
        self._room = EntryBudget(max_entries)
        self._tables: dict[Shape, Table[Any]] = {}
        self._latest: dict[str, Table[Any]] = {}
        """The table last used under each name; in front of `_tables`, whose keys take longer to hash."""

    def __len__(self) -> int:
        """Entries in memory, those that are past but not yet freed included."""
        return self._room.held()

    async def take(self, buckets: Sequence[Bucket], now: float) -> Taken:
        """Take every bucket's cost or nothing. Where several are short, `refused` is the one with the longest wait."""
        if self._room.dropped:
            self._room.drain()
        if len(buckets) != 1:
            return self._take_all(_merged(buckets), now)
        bucket = buckets[0]
        state = self._table(bucket.quota, now).take(bucket, now)
        return Taken(states=(state,), refused=state if state.retry_after_seconds else None)

    async def peek(self, buckets: Sequence[Bucket], now: float) -> Taken:
        """What `take` would say, with `remaining` as it stands now. Nothing is taken."""
        states = [self._table(bucket.quota, now).peek(bucket, now) for bucket in _merged(buckets)]
        return Taken(states=tuple(states), refused=_refused(states))

    def expire(self, now: float) -> None:
        """Let go of all that is past. Takes do so for their own quota; this is for the quotas that nobody asks for."""
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
        """Rows from which `restore` takes up counting: of quotas of a minute and longer, what still counts at `now`.

        At most one row for a quota and subject. Takes some microseconds a row, and may run in another thread; a count
        that is taken from meanwhile may then be missing.
        """
        return [row for table in list(self._latest.values()) for row in rows_of(table, now)]

    def top_keys(self, *, most: int) -> list[str]:
        """Ids of the keys that have used most of a quota, see limiter/heaviest.py. May run in another thread."""
        return top_keys(list(self._latest.values()), most=most)

    def restore(self, rows: Iterable[Row], now: float) -> int:
        """Take up counting from `rows`; how many were good.

        Malformed and expired rows are ignored. Rows of a quota that is no longer, or counts in another way, are never
        asked for, and let go in their time.
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
        refused = _refused(states)
        if refused is not None:
            for i, (table, subject, held) in enumerate(before):
                if not states[i].retry_after_seconds:
                    table.hold(subject, held)
                    states[i] = table.peek(buckets[i], now)
        return Taken(states=tuple(states), refused=refused)


def _refused(states: Iterable[QuotaState]) -> QuotaState | None:
    longest = max(states, key=lambda state: state.retry_after_seconds, default=None)
    return longest if longest is not None and longest.retry_after_seconds else None


def _merged(buckets: Sequence[Bucket]) -> Sequence[Bucket]:
    """Buckets in order, those of one quota and subject made one: only its whole cost can be judged."""
    merged: dict[tuple[str, SubjectId], Bucket] = {}
    for bucket in buckets:
        name = (bucket.quota.name, bucket.subject)
        twin = merged.get(name)
        merged[name] = bucket if twin is None else replace(twin, cost=twin.cost + bucket.cost)
    return list(merged.values()) if len(merged) < len(buckets) else buckets
