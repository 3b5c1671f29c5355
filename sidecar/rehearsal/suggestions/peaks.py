"""The peak use of quotas by a key. Pure."""

from functools import lru_cache

from msgspec import Struct

from sidecar.core.model import ApiKey, Charge, Quota, Route, Subject, Window
from sidecar.core.quotas import Plans, limit_of, period_seconds, window_at
from sidecar.usage.recorder import UsageTotal

_HOUR, _DAY = 3_600, 86_400


class Peak(Struct):
    """The peak use of one quota. Times and periods in seconds."""

    limit: int | None
    """None is unlimited."""
    most: int = 0
    """An upper bound of the use in any period."""
    _start: int = 0
    _count: int = 0
    _before: int = 0

    def add_total(self, charge: Charge, total: UsageTotal) -> None:
        """Add the peak of a route: routes may have had their peaks at different times."""
        self.most += charge.cost * _most_in_period(charge.quota, total)

    def add(self, charge: Charge, at: float) -> None:
        """Count a request at `at` (Unix seconds). One that is out of order in time counts as the latest."""
        start, length = _window(charge.quota, at)
        if start > self._start:
            self._before = self._count if start - self._start <= length else 0
            self._start, self._count = start, 0
        self._count += charge.cost
        # A sliding window, or a bucket that refills meanwhile, spans at most two clock windows.
        held = self._count if charge.quota.window is Window.FIXED else self._count + self._before
        if held > self.most:
            self.most = held


def own_charges(route: Route) -> tuple[Charge, ...]:
    """The quotas that a request with a key takes from and that are counted only by key."""
    return tuple(
        charge
        for charge in route.policy.charges
        if charge.quota.by == (Subject.KEY,) and charge.quota.only != "anonymous"
    )


def peak_of(peaks: dict[str, Peak], quota: Quota, key: ApiKey, plans: Plans) -> Peak:
    """The key's peak; a new one is added to `peaks`."""
    found = peaks.get(quota.name)
    if found is None:
        found = peaks[quota.name] = Peak(limit=limit_of(quota, key, plans))
    return found


def _window(quota: Quota, at: float) -> tuple[int, int]:
    """First second of the clock window at this time, and its length."""
    if quota.period == "month":
        return _month(int(at) // _DAY, quota)
    start, end = window_at(quota, at)
    return start, end - start


@lru_cache(maxsize=1_024)
def _month(day: int, quota: Quota) -> tuple[int, int]:
    start, end = window_at(quota, float(day * _DAY))
    return start, end - start


def _most_in_period(quota: Quota, total: UsageTotal) -> int:
    """An upper bound of the requests in any one period."""
    period = period_seconds(quota)
    aligned = quota.window is Window.FIXED
    if period <= _HOUR:
        return total.most_in_hour * (1 if aligned and _HOUR % period == 0 else 2)
    days = -(-period // _DAY) + (0 if aligned and (period % _DAY == 0 or _DAY % period == 0) else 1)
    if quota.period == "month":
        days = 31 if aligned else days
    return min(total.count, total.most_in_day * days)
