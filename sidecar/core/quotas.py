"""Arithmetic of quotas (fixed windows, sliding windows, buckets), and their response fields. Pure.

Every adapter of the limiter uses it.

What is counted for one subject, by window:

- fixed: an int, the units taken in the current window (`window_at`). Exact.
- sliding: `Stamps`, flat pairs of a microsecond and the units taken then. Takes within one slice (a 32nd of the
  period) share the latest one's stamp, so an allowance comes back at most a 32nd of the period late, and never early:
  no interval of one period ever contains more than the limit.
- bucket: `Debt`, what has been taken and not yet refilled, in whole token-microseconds. Exact: no interval of t seconds
  ever contains more than burst + t * limit / period.

No count is `0`, `()` or `NO_DEBT`. Clocks may jump, and a count may be from the future. It is then moved to now
unchanged (`window_of_count`, `settle_stamps`, `settle_debt`): what was taken stays taken, and nobody waits for a time
days ahead. Windows that the clock skips are past: a new one starts, as at any other window's end.

`take=False` reads without taking: the current `remaining`, and the wait for a take of `bucket.cost`. A cost above the
whole allowance never passes; its wait is until the reset, or one period if nothing was taken.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import formatdate
from math import ceil
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from sidecar.core.client_address import address_subject
from sidecar.core.model import ApiKey, Bucket, Charge, Headers, Quota, QuotaState, Subject, Window

# Which buckets a request takes from.


Plans = Mapping[str, Mapping[str, int | None]]
"""Plan to quota name to limit; None is unlimited."""

OF_A_KEY = frozenset({Subject.KEY, Subject.TENANT, Subject.ENVIRONMENT})
"""Subjects that only a request with a key has."""


def buckets_for(
    charges: Sequence[Charge], *, key: ApiKey | None, address: str, route: str, plans: Plans
) -> list[Bucket]:
    """One bucket for each charge that applies and has a limit: by key, tenant and environment only with a key."""
    return [
        Bucket(
            quota=charge.quota,
            subject=_subject(charge.quota, key, address, route),
            limit=limit,
            cost=charge.cost,
        )
        for charge in charges
        if _applies(charge.quota, key) and (limit := limit_of(charge.quota, key, plans)) is not None
    ]


def limit_of(quota: Quota, key: ApiKey | None, plans: Plans) -> int | None:
    """The key's own limit, or its plan's, or the quota's; None is unlimited."""
    if key is None:
        return quota.limit
    planned = plans.get(key.plan, {}) if key.plan else {}
    return key.quotas.get(quota.name, planned.get(quota.name, quota.limit))


def depends_on_address(charges: Sequence[Charge]) -> bool:
    return any(Subject.ADDRESS in charge.quota.by for charge in charges)


def _applies(quota: Quota, key: ApiKey | None) -> bool:
    if key is None:
        return quota.only != "key" and OF_A_KEY.isdisjoint(quota.by)
    return quota.only != "anonymous"


def _subject(quota: Quota, key: ApiKey | None, address: str, route: str) -> tuple[str, ...]:
    return tuple(_part(subject, key, address, route) for subject in quota.by)


def _part(subject: Subject, key: ApiKey | None, address: str, route: str) -> str:
    match subject:
        case Subject.ADDRESS:
            return address_subject(address)
        case Subject.ROUTE:
            return route
        case Subject.TENANT:
            # A key without a tenant is counted separately (no tenant begins with a space).
            return "" if key is None else key.tenant or f" {key.id}"
        case Subject.ENVIRONMENT:
            return "" if key is None else key.environment or f" {key.id}"
        case Subject.KEY:
            return "" if key is None else key.id


Stamps = tuple[int, ...]
"""Microsecond, units, microsecond, units, …; oldest first."""

Debt = tuple[int, int]
"""(Token-microseconds owed, the microsecond at which that was measured)."""

NO_DEBT: Debt = (0, 0)
SLICES = 32
SETBACK_SECONDS = 60
"""A clock set back by no more than this (and one period) stays in the window that it had reached.

A clock that is adjusted around a window's end must not open that window twice.
"""

_SECOND = 1_000_000
_CALENDAR = {"minute": 60, "hour": 3600, "day": 86_400, "week": 7 * 86_400, "month": 30 * 86_400}


_FIRST_MONDAY = 4 * 86_400
"""1970-01-05 in Unix seconds."""


def micros(now: float) -> int:
    """Unix seconds as the nearest whole microsecond (doubles are precise enough for centuries)."""
    return round(now * _SECOND)


def period_seconds(quota: Quota) -> int:
    """Length of the period; a month that is not a calendar month (sliding, bucket) is 30 days."""
    return quota.period if isinstance(quota.period, int) else _CALENDAR[quota.period]


def window_at(quota: Quota, now: float) -> tuple[int, int]:
    """First second of the fixed window that contains `now`, and first second after it.

    Weeks (from Monday, ISO 8601) and months are those of the UTC calendar; others begin at multiples of the period
    since 1970, which are full minutes, hours or days, and for seconds that divide a day the same times every day.
    """
    if quota.period == "month":
        first = datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        after = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
        return int(first.timestamp()), int(after.timestamp())
    length = period_seconds(quota)
    offset = _FIRST_MONDAY if quota.period == "week" else 0
    start = int((now - offset) // length) * length + offset
    return start, start + length


def window_of_count(quota: Quota, counted: tuple[int, int], now: float) -> tuple[tuple[int, int], bool]:
    """The window for `now`, given the window `counted` of earlier counts; and whether those counts still apply.

    They do within their window, and if the clock was set back before it: then they move to the current window, or,
    after a small setback, their window is kept.
    """
    start, end = counted
    if start <= now < end:
        return counted, True
    if now >= end:
        return window_at(quota, now), False
    if start - now <= min(SETBACK_SECONDS, end - start):
        return counted, True
    return window_at(quota, now), True


def policy_seconds(quota: Quota, now: float) -> int:
    """Seconds in which the whole allowance is restored: the `w` of a RateLimit-Policy."""
    if quota.window is Window.BUCKET and quota.burst is not None and quota.limit:
        return max(1, ceil(quota.burst * period_seconds(quota) / quota.limit))
    if quota.window is Window.FIXED and quota.period == "month":
        start, end = window_at(quota, now)
        return end - start
    return period_seconds(quota)


def fixed_state(bucket: Bucket, used: int, end: float, now: float, *, take: bool = True) -> QuotaState:
    """State after a take with `used` already taken in the window that ends at `end`. A refusal takes nothing."""
    limit = bucket.limit
    left = limit - used - bucket.cost
    if left >= 0:
        return QuotaState(quota=bucket.quota, limit=limit, remaining=left if take else limit - used, resets_at=end)
    return QuotaState(
        quota=bucket.quota,
        limit=limit,
        remaining=max(0, limit - used),
        resets_at=end,
        retry_after_seconds=max(1, ceil(end - now)),
    )


def settle_stamps(quota: Quota, stamps: Stamps, now: float) -> Stamps:
    """`stamps` without those older than a period, and with future ones moved to now."""
    now_us = micros(now)
    if stamps and stamps[-2] > now_us:
        cut = next(i for i in range(0, len(stamps), 2) if stamps[i] > now_us)
        stamps = (*stamps[:cut], now_us, sum(stamps[cut + 1 :: 2]))
    oldest = now_us - period_seconds(quota) * _SECOND
    first = 0
    while first < len(stamps) and stamps[first] <= oldest:
        first += 2
    return stamps[first:] if first else stamps


def add_stamp(quota: Quota, stamps: Stamps, cost: int, now: float) -> Stamps:
    """Settled `stamps` with `cost` units taken now."""
    now_us = micros(now)
    period_us = period_seconds(quota) * _SECOND
    if stamps and stamps[-2] * SLICES // period_us == now_us * SLICES // period_us:
        return (*stamps[:-2], now_us, stamps[-1] + cost)
    return (*stamps, now_us, cost)


def sliding_state(bucket: Bucket, stamps: Stamps, now: float, *, take: bool = True) -> QuotaState:
    """State after a take with the settled stamps `stamps`. A refusal takes nothing."""
    limit, period = bucket.limit, period_seconds(bucket.quota)
    used = sum(stamps[1::2])
    short = used + bucket.cost - limit
    if take and short <= 0:
        return QuotaState(quota=bucket.quota, limit=limit, remaining=-short, resets_at=now + period)
    wait = _wait(_freed_at(stamps, short, now) + period * _SECOND - micros(now)) if short > 0 else 0
    return QuotaState(
        quota=bucket.quota,
        limit=limit,
        remaining=max(0, limit - used),
        resets_at=stamps[-2] / _SECOND + period if stamps else now,
        retry_after_seconds=wait,
    )


def capacity(bucket: Bucket) -> int:
    """Size of a bucket: its burst, or its limit. A limit of 0 gives 0."""
    if bucket.limit <= 0:
        return 0
    return bucket.limit if bucket.quota.burst is None else bucket.quota.burst


def settle_debt(bucket: Bucket, debt: Debt, now: float) -> Debt:
    """`debt` minus what has been refilled until now. A debt from the future is moved to now unchanged."""
    owed, at = debt
    now_us = micros(now)
    if not owed or now_us <= at:
        return owed, now_us
    return max(0, owed - (now_us - at) * max(0, bucket.limit)), now_us


def add_debt(bucket: Bucket, debt: Debt) -> Debt:
    """Settled `debt` with the bucket's cost taken."""
    return debt[0] + bucket.cost * period_seconds(bucket.quota) * _SECOND, debt[1]


def bucket_state(bucket: Bucket, debt: Debt, *, take: bool = True) -> QuotaState:
    """State after a take with the settled debt `debt`. A refusal takes nothing.

    The state's `limit` is the bucket's size, so that `remaining` never exceeds it.
    """
    size, token, flow = capacity(bucket), period_seconds(bucket.quota) * _SECOND, max(1, bucket.limit)
    owed, now_us = debt
    short = owed + bucket.cost * token - size * token
    if take and short <= 0:
        owed += bucket.cost * token
    wait = owed or token * flow if bucket.cost > size else short
    return QuotaState(
        quota=bucket.quota,
        limit=size,
        remaining=max(0, size - -(-owed // token)),
        resets_at=(now_us - (-owed // flow)) / _SECOND,
        retry_after_seconds=_wait(-(-wait // flow)) if short > 0 else 0,
    )


def _freed_at(stamps: Stamps, units: int, now: float) -> int:
    """Microsecond of the take whose expiry frees `units`; if there is none, that of the last take, or now."""
    for i in range(0, len(stamps), 2):
        units -= stamps[i + 1]
        if units <= 0:
            return stamps[i]
    return stamps[-2] if stamps else micros(now)


def _wait(wait_us: int) -> int:
    """`wait_us` in whole seconds, rounded up, at least 1."""
    return max(1, -(-wait_us // _SECOND))


# What every limiter does with several buckets.


def merged(buckets: Sequence[Bucket]) -> Sequence[Bucket]:
    """Buckets in order, with those of one quota and subject merged: only their whole cost can be judged."""
    if len(buckets) == 1:
        return buckets
    found: dict[tuple[str, tuple[str, ...]], Bucket] = {}
    for bucket in buckets:
        name = (bucket.quota.name, bucket.subject)
        twin = found.get(name)
        found[name] = bucket if twin is None else replace(twin, cost=twin.cost + bucket.cost)
    return list(found.values()) if len(found) < len(buckets) else buckets


def longest_refusal(states: Iterable[QuotaState]) -> QuotaState | None:
    """The refused state with the longest wait; None if none is refused."""
    longest = max(states, key=lambda state: state.retry_after_seconds, default=None)
    return longest if longest is not None and longest.retry_after_seconds else None


def untold(state: QuotaState) -> QuotaState:
    """The state without a time to wait."""
    return replace(state, retry_after_seconds=0)


class QuotaUsage(Struct, frozen=True, kw_only=True, gc=False):
    """The state of a quota for a key. None if it is counted by a subject that only a request has."""

    quota: Quota
    limit: int
    state: QuotaState | None
    note: str = ""

    @property
    def used_share(self) -> float:
        """0 to 1; 1 if the next request would be refused."""
        if self.state is None or not self.state.limit:
            return 0.0 if self.state is None else 1.0
        return self.state.used / self.state.limit


def limits_of(plans: Plans) -> dict[str, set[int]]:
    """The limits of plans, by quota."""
    limits: dict[str, set[int]] = {}
    for plan in plans.values():
        for quota, limit in plan.items():
            if limit is not None:
                limits.setdefault(quota, set()).add(limit)
    return limits


# Response fields for a caller whose key has been replaced.


def ending_fields(key: ApiKey) -> Headers:
    """When the key was deprecated (RFC 9745), and when it stops working (RFC 8594); empty unless it was replaced."""
    if key.replaced_at is None or key.retires_at is None:
        return ()
    sunset = formatdate(key.retires_at // 1_000_000, usegmt=True)
    return ((b"Deprecation", b"@%d" % (key.replaced_at // 1_000_000)), (b"Sunset", sunset.encode()))


ENDING_NAMES = ("Deprecation", "Sunset")

_MAX_POLICIES = 4096


class RateLimitFields:
    """Writes quota states as header fields, in the enabled sets.

    x: `X-RateLimit-*`, for the tightest quota: the fewest remaining, among equals the lowest limit; `reset` as Unix
    seconds or as seconds from now. ietf: fields for every quota.
    """

    def __init__(self, *, x: bool, reset: Literal["unix", "delta"], ietf: bool) -> None:
        self._x, self._reset, self._ietf = x, reset, ietf
        self._policies: dict[tuple[str, int], tuple[bytes, bytes]] = {}
        """By name and limit of a quota: its name as a string of the field, and its item in the policy."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all possible fields."""
        x = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset") if self._x else ()
        return (*x, *(("RateLimit-Policy", "RateLimit") if self._ietf else ()), "Retry-After")

    def __call__(self, states: Sequence[QuotaState], *, now: float) -> Headers:
        """No fields without states. A refused state always adds `Retry-After` (RFC 9110 §10.2.3)."""
        if not states:
            return ()
        tightest, wait = states[0], states[0].retry_after_seconds
        if len(states) > 1:
            tightest, wait = min(states, key=_tightness), max([each.retry_after_seconds for each in states])
        fields: Headers = self._x_fields(tightest, now) if self._x else ()
        if self._ietf:
            fields += self._ietf_fields(states, now)
        return (*fields, (b"Retry-After", b"%d" % wait)) if wait else fields

    def _x_fields(self, state: QuotaState, now: float) -> Headers:
        at = ceil(state.resets_at) if self._reset == "unix" else _seconds_left(state, now)
        return (
            (b"X-RateLimit-Limit", b"%d" % state.limit),
            (b"X-RateLimit-Remaining", b"%d" % state.remaining),
            (b"X-RateLimit-Reset", b"%d" % at),
        )

    def _ietf_fields(self, states: Sequence[QuotaState], now: float) -> Headers:
        policies, limits = self._items(states[0], now)
        for state in states[1:]:
            policy, limit = self._items(state, now)
            policies, limits = b"%b, %b" % (policies, policy), b"%b, %b" % (limits, limit)
        return ((b"RateLimit-Policy", policies), (b"RateLimit", limits))

    def _items(self, state: QuotaState, now: float) -> tuple[bytes, bytes]:
        name, policy = self._policies.get((state.quota.name, state.limit)) or self._policy(state, now)
        return policy, b"%b;r=%d;t=%d" % (name, state.remaining, _seconds_left(state, now))

    def _policy(self, state: QuotaState, now: float) -> tuple[bytes, bytes]:
        name = _quoted(state.quota.name)
        field = (name, b"%b;q=%d;w=%d" % (name, state.limit, policy_seconds(state.quota, now)))
        if state.quota.window is Window.FIXED and state.quota.period == "month":
            return field  # Months differ in length.
        if len(self._policies) >= _MAX_POLICIES:
            self._policies.clear()
        self._policies[state.quota.name, state.limit] = field
        return field


def _tightness(state: QuotaState) -> tuple[int, int]:
    return state.remaining, state.limit


def _seconds_left(state: QuotaState, now: float) -> int:
    return max(0, ceil(state.resets_at - now))


def _quoted(name: str) -> bytes:
    """A string of RFC 9651 §3.3.3, which only contains printable ASCII; `?` replaces everything else."""
    printable = "".join(c if " " <= c <= "~" else "?" for c in name)
    return b'"%b"' % printable.replace("\\", "\\\\").replace('"', '\\"').encode("ascii")
