"""How much of its quotas a key has used at most at a time. Pure."""

from collections.abc import Iterator
from functools import lru_cache

from msgspec import Struct

from sidecar.config.build.config import Config
from sidecar.core.model import ApiKey, Charge, Quota, Route, Subject, Window
from sidecar.core.quotas import limit_of, period_seconds, window_at
from sidecar.usage.recorder import UsageTotal

_HOUR, _DAY = 3_600, 86_400


class Peak(Struct):
    """Of one quota. Times and periods in seconds."""

    limit: int
    most: int = 0
    """No period held more than this; it may have been less."""
    _start: int = 0
    _count: int = 0
    _before: int = 0

    def add(self, quota: Quota, cost: int, at: float) -> None:
        """Count a request. Lines of a log come in the order of time, or nearly so: one that is late counts as now."""
        start, length = _window(quota, at)
        if start > self._start:
            self._before = self._count if start - self._start <= length else 0
            self._start, self._count = start, 0
        self._count += cost
        # A window that slides, or a bucket that refills meanwhile, spans two of the clock's at most.
        held = self._count if quota.window is Window.FIXED else self._count + self._before
        self.most = max(self.most, held)


class Peaks(Struct):
    """By name of the quota, of one key."""

    by_name: dict[str, Peak] = {}

    def add(self, charge: Charge, limit: int, at: float) -> None:
        self._of(charge, limit).add(charge.quota, charge.cost, at)

    def add_total(self, charge: Charge, limit: int, total: UsageTotal) -> None:
        """Count what a route took at most: routes may have had their peaks at different times."""
        self._of(charge, limit).most += charge.cost * _most_in_period(charge.quota, total)

    def _of(self, charge: Charge, limit: int) -> Peak:
        found = self.by_name.get(charge.quota.name)
        if found is None:
            found = self.by_name[charge.quota.name] = Peak(limit=limit)
        return found


def charged_to(config: Config, route: Route | None, key: ApiKey) -> Iterator[tuple[Charge, int]]:
    """The quotas that a request takes from and that are the key's own, each with the key's limit."""
    for charge in route.policy.charges if route else ():
        quota = charge.quota
        if quota.by == (Subject.KEY,) and quota.only != "anonymous":
            limit = limit_of(quota, key, config.plans)
            if limit is not None:
                yield charge, limit


def _window(quota: Quota, at: float) -> tuple[int, int]:
    """First second of the clock's window at this time, and its length."""
    if quota.period == "month":
        return _month(int(at) // _DAY, quota)
    start, end = window_at(quota, at)
    return start, end - start


@lru_cache(maxsize=1_024)
def _month(day: int, quota: Quota) -> tuple[int, int]:
    start, end = window_at(quota, float(day * _DAY))
    return start, end - start


def _most_in_period(quota: Quota, total: UsageTotal) -> int:
    """What is certainly not less than the requests of any one period."""
    period = period_seconds(quota)
    aligned = quota.window is Window.FIXED
    if period <= _HOUR:
        return total.most_in_hour * (1 if aligned and _HOUR % period == 0 else 2)
    days = -(-period // _DAY) + (0 if aligned and (period % _DAY == 0 or _DAY % period == 0) else 1)
    if quota.period == "month":
        days = 31 if aligned else days
    return min(total.count, total.most_in_day * days)
