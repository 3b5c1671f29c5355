"""Numbers that the pages show beside the keys, within one administrator's reach."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from aiohttp import web

from sidecar.admin.service import AdminService
from sidecar.config.build.config import Config
from sidecar.core.errors import Fault
from sidecar.core.model import ApiKey, Bucket, Quota, QuotaState, Route, Subject
from sidecar.core.quotas import buckets_for
from sidecar.limiter.port import Limiter
from sidecar.usage.ports import DAY, HOUR, UsageFilter, UsageRow

DAY_OF_HOURS: Final = 24
_CLASSES: Final = {1: "2xx", 2: "2xx", 3: "3xx", 4: "4xx"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruments:
    """What the process counts itself, and where clients reach it.

    limiter: looked at, not taken from. refusals: by reason, since `since` (Unix seconds). fullest: ids of keys that
    have used much of a quota; is called in a thread. clients: URL of the data listener, empty where it has none.
    new_token: 128 random bits.
    """

    limiter: Limiter
    refusals: Callable[[], Mapping[str, int]]
    since: float
    fullest: Callable[[], Sequence[str]]
    clients: Callable[[], str]
    new_token: Callable[[], str]


INSTRUMENTS: Final = web.AppKey("instruments", Instruments)

Points = Sequence[tuple[int, Mapping[str, int]]]
"""Times (microseconds), and requests by class of status from then to the next."""


def class_of(status_class: int) -> str:
    return _CLASSES.get(status_class, "5xx")


def last_day(now: int) -> UsageFilter:
    """The current hour and the 23 before it."""
    end = now - now % HOUR + HOUR
    return UsageFilter(since=end - DAY_OF_HOURS * HOUR, until=end)


def last_days(now: int, days: int) -> UsageFilter:
    """Today and the days before it."""
    end = now - now % DAY + DAY
    return UsageFilter(since=end - days * DAY, until=end, by="day")


def points_of(rows: Sequence[UsageRow], wanted: UsageFilter) -> Points:
    """Every hour or day of `wanted`, those without a request too."""
    step = DAY if wanted.by == "day" else HOUR
    at: dict[int, Counter[str]] = {start: Counter() for start in range(wanted.since, wanted.until, step)}
    for row in rows:
        found = at.get(row.at - row.at % step)
        if found is not None:
            found[class_of(row.status_class)] += row.count
    return list(at.items())


async def totals_by_key(service: AdminService, keys: Sequence[ApiKey]) -> Mapping[str, list[int]]:
    """Requests in each of the last 24 hours, by key id."""
    wanted = replace(last_day(service.now), key_ids=tuple(key.id for key in keys))
    totals = {key.id: [0] * DAY_OF_HOURS for key in keys}
    for row in await service.usage(None, wanted) if keys else ():
        hour = (row.at - wanted.since) // HOUR
        if row.key_id in totals and 0 <= hour < DAY_OF_HOURS:
            totals[row.key_id][hour] += row.count
    return totals


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What is left of a quota for a key; no state where it is counted by something that only a request has."""

    quota: Quota
    limit: int
    state: QuotaState | None
    note: str = ""


async def left_of(
    limiter: Limiter, config: Config, key: ApiKey, routes: Sequence[Route], *, now: float
) -> Sequence[Left]:
    """Of each quota on `routes`, once each, in the order in which they come. `now` in Unix seconds."""
    found: dict[str, Left] = {}
    for route in routes:
        for bucket in buckets_for(route.policy.charges, key=key, address="", route=route.name, plans=config.plans):
            if bucket.quota.name not in found:
                found[bucket.quota.name] = await _left(limiter, bucket, now)
    return list(found.values())


async def _left(limiter: Limiter, bucket: Bucket, now: float) -> Left:
    by = set(bucket.quota.by)
    if by & {Subject.ADDRESS, Subject.ROUTE}:
        note = f"counted by {' and '.join(subject.value for subject in bucket.quota.by)}"
        return Left(quota=bucket.quota, limit=bucket.limit, state=None, note=note)
    try:
        one = Bucket(quota=bucket.quota, subject=bucket.subject, limit=bucket.limit)
        [state] = (await limiter.peek([one], now)).states
    except Fault:
        return Left(quota=bucket.quota, limit=bucket.limit, state=None, note="cannot be told now")
    note = "shared by all keys of the tenant" if Subject.TENANT in by else ""
    return Left(quota=bucket.quota, limit=bucket.limit, state=state, note=note)
