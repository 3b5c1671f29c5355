"""Counts of one quota by subject, for the memory limiter, and the budget that all of them share."""

from collections.abc import Mapping
from typing import Any, Final, Generic, TypeVar

from sidecar.core.model import Bucket, Quota, QuotaState, Subject, Window
from sidecar.core.quotas import (
    NO_DEBT,
    Debt,
    Stamps,
    add_debt,
    add_stamp,
    bucket_state,
    capacity,
    fixed_state,
    micros,
    period_seconds,
    settle_debt,
    settle_stamps,
    sliding_state,
    window_of_count,
)

SubjectId = tuple[str, ...]
"""The subject of a bucket: `Bucket.subject`."""

Counted = TypeVar("Counted")

DEFAULT_ENTRIES: Final = 100_000
"""Up to 600 bytes each, while they are saved: 60 MB, which fit into the 256 MiB of the manifests."""

_DRAINED_AT_ONCE = 4
"""More than one take can add, so that dropped entries are freed before as many new ones appear."""
_KEPT_FOR_STRANGERS = 10
"""A tenth of all entries is reserved for addresses, so that many keys and tenants cannot leave them uncounted."""
_SPARED_AT_ONCE = 8
"""Entries that are spared because much of their quota is used, before one of them is evicted anyway."""
_MUCH = 0.5
"""The share of the quota's limit."""


def is_of_strangers(quota: Quota) -> bool:
    """Whether clients determine the number of its subjects: addresses of clients without a key."""
    return Subject.KEY not in quota.by and Subject.TENANT not in quota.by


def used_of(quota: Quota, counted: Any) -> float:
    """The used units of `quota` in a count; for a bucket, as of its last use."""
    match quota.window:
        case Window.FIXED:
            return float(counted)
        case Window.SLIDING:
            return float(sum(counted[1::2]))
        case Window.BUCKET:
            return float(counted[0] / micros(period_seconds(quota)))


class EntryBudget:
    """The budget of entries of all tables together, including dropped ones that are not yet freed.

    Freeing a dict of a million entries takes a tenth of a second, so each take removes a few entries instead. If the
    budget is used up, counts by address are evicted first: the owner of an IPv6 /46 can create more than fit into any
    memory, and must not reset the counts of others' keys.
    """

    def __init__(self, max_entries: int) -> None:
        self.tables: list[Table[Any]] = []
        self.dropped: list[dict[SubjectId, Any]] = []
        self.max_entries = max_entries
        self.evicted = 0
        """Valid entries that were evicted."""
        self._of_keys = max_entries - max(1, max_entries // _KEPT_FOR_STRANGERS)
        self._spare = 0
        """At least this many are free, for any subject; recounted when used up."""

    def held(self) -> int:
        return sum([len(table) for table in self.tables]) + sum([len(entries) for entries in self.dropped])

    def enter(self, table: "Table[Any]") -> None:
        """Make room for one new entry of `table`."""
        if self._spare <= 0:
            self._spare = min(self.max_entries - self.held(), self._of_keys - self._held_of_keys())
        if self._spare > 0:
            self._spare -= 1
        else:
            self._make_room(strangers=table.of_strangers)

    def _make_room(self, *, strangers: bool) -> None:
        keys_are_full = not strangers and self._held_of_keys() >= self._of_keys
        if self.held() < self.max_entries and not keys_are_full:
            return
        if self.dropped and not keys_are_full:
            self.drain()
            return
        self.evicted += 1
        max([table for table in self.tables if table.of_strangers is not keys_are_full], key=len).evict()

    def _held_of_keys(self) -> int:
        return sum([len(table) for table in self.tables if not table.of_strangers])

    def drop(self, entries: dict[SubjectId, Any]) -> None:
        if entries:
            self.dropped.append(entries)

    def drain(self) -> None:
        entries = self.dropped[-1]
        for _ in range(min(_DRAINED_AT_ONCE, len(entries))):
            entries.popitem()
        if not entries:
            self.dropped.pop()


class Table(Generic[Counted]):
    """Counts by subject, in two generations: used entries move to the young one, the old one is dropped as a whole.

    A generation lasts as long as a count can be valid, so no valid count is dropped, and no scan is needed.
    """

    def __init__(self, quota: Quota, room: EntryBudget) -> None:
        self.quota = quota
        self.of_strangers = is_of_strangers(quota)
        self._room = room
        self._young: dict[SubjectId, Counted] = {}
        self._old: dict[SubjectId, Counted] = {}
        self._since = float("-inf")
        self.lifetime: float = period_seconds(quota)
        """Seconds after which an unused count equals no count."""
        room.tables.append(self)

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def take(self, bucket: Bucket, now: float) -> QuotaState:
        """State after the take; a refused one has `retry_after_seconds`, and takes nothing."""
        raise NotImplementedError

    def peek(self, bucket: Bucket, now: float) -> QuotaState:
        """The current state, refused if a take would be."""
        raise NotImplementedError

    def turn(self, now: float) -> None:
        """Drop past counts. If the clock was set back, the generation starts again."""
        age = now - self._since
        if age < 0:
            self._since = now
        elif age >= self.lifetime:
            self._room.drop(self._old)
            self._old = self._young
            self._young = {}
            self._since = now
            if age >= 2 * self.lifetime:
                self.clear()

    def held(self, subject: SubjectId) -> Counted | None:
        found = self._young.get(subject)
        return self._old.get(subject) if found is None else found

    def hold(self, subject: SubjectId, counted: Counted | None) -> None:
        """Set the count of one subject; None: no count."""
        if subject not in self._young and self._old.pop(subject, None) is None and counted is not None:
            self._room.enter(self)
        if counted is None:
            self._young.pop(subject, None)
        else:
            self._young[subject] = counted

    def all_held(self) -> Mapping[SubjectId, Counted]:
        """A copy, made in two steps that are safe with takes in another thread; a moving count may be missing."""
        old, young = self._old, self._young
        entries = dict(old)
        entries.update(young)
        return entries

    def evict(self) -> None:
        """Evict an entry that was not used recently, preferably with a low count: who is refused stays refused."""
        for left in reversed(range(_SPARED_AT_ONCE)):
            if not self._old:
                self._old = self._young
                self._young = {}
            subject, counted = self._old.popitem()
            if not left or used_of(self.quota, counted) < _MUCH * self.quota.limit:
                return
            self._young[subject] = counted

    def clear(self) -> None:
        self._room.drop(self._young)
        self._room.drop(self._old)
        self._young = {}
        self._old = {}


class FixedTable(Table[int]):
    """Units used in the current window, which is common to all subjects: its end drops all counts."""

    def __init__(self, quota: Quota, room: EntryBudget) -> None:
        super().__init__(quota, room)
        self.window = (0, 0)
        self._start, self._end = 0.0, 0.0

    def turn(self, now: float) -> None:
        if self._start <= now < self._end:
            return
        self.window, still_count = window_of_count(self.quota, self.window, now)
        self._start, self._end = float(self.window[0]), float(self.window[1])
        if not still_count:
            self.clear()

    def take(self, bucket: Bucket, now: float) -> QuotaState:
        if not self._start <= now < self._end:
            self.turn(now)
        subject = bucket.subject
        known = self._young.get(subject)
        used = self._old.get(subject, 0) if known is None else known
        state = fixed_state(bucket, used, self._end, now)
        now_used = used if state.retry_after_seconds else used + bucket.cost
        if known is None:
            self.hold(subject, now_used or None)
        else:
            self._young[subject] = now_used
        return state

    def peek(self, bucket: Bucket, now: float) -> QuotaState:
        self.turn(now)
        return fixed_state(bucket, self.held(bucket.subject) or 0, self._end, now, take=False)


class SlidingTable(Table[Stamps]):
    """Stamps of the last period."""

    def take(self, bucket: Bucket, now: float) -> QuotaState:
        stamps = self._settled(bucket, now)
        state = sliding_state(bucket, stamps, now)
        if not state.retry_after_seconds:
            stamps = add_stamp(bucket.quota, stamps, bucket.cost, now)
        self.hold(bucket.subject, stamps or None)
        return state

    def peek(self, bucket: Bucket, now: float) -> QuotaState:
        stamps = self._settled(bucket, now)
        self.hold(bucket.subject, stamps or None)
        return sliding_state(bucket, stamps, now, take=False)

    def _settled(self, bucket: Bucket, now: float) -> Stamps:
        self.turn(now)
        return settle_stamps(bucket.quota, self.held(bucket.subject) or (), now)


class BucketTable(Table[Debt]):
    """Debts, which are valid until they are refilled; longest for the subject with the lowest limit."""

    def take(self, bucket: Bucket, now: float) -> QuotaState:
        debt = self._settled(bucket, now)
        state = bucket_state(bucket, debt)
        self._hold_debt(bucket, debt if state.retry_after_seconds else add_debt(bucket, debt))
        return state

    def peek(self, bucket: Bucket, now: float) -> QuotaState:
        debt = self._settled(bucket, now)
        self._hold_debt(bucket, debt)
        return bucket_state(bucket, debt, take=False)

    def _hold_debt(self, bucket: Bucket, debt: Debt) -> None:
        self.hold(bucket.subject, debt if debt[0] else None)

    def _settled(self, bucket: Bucket, now: float) -> Debt:
        self.turn(now)
        if bucket.limit > 0:
            self.lifetime = max(self.lifetime, period_seconds(bucket.quota) * capacity(bucket) / bucket.limit)
        return settle_debt(bucket, self.held(bucket.subject) or NO_DEBT, now)


def table_for(quota: Quota, room: EntryBudget, now: float) -> Table[Any]:
    """An empty table for the window of `quota`."""
    kinds: dict[Window, type[Table[Any]]] = {
        Window.FIXED: FixedTable,
        Window.SLIDING: SlidingTable,
        Window.BUCKET: BucketTable,
    }
    table = kinds[quota.window](quota, room)
    table.turn(now)
    return table
