"""Statistics for the pages, limited to the keys that the administrator may see."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from aiohttp import web

from sidecar.admin.service import AdminService
from sidecar.core.model import ApiKey
from sidecar.usage.ports import DAY, HOUR, UsageFilter, UsageRow

DAY_OF_HOURS: Final = 24
_CLASSES: Final = {1: "2xx", 2: "2xx", 3: "3xx", 4: "4xx"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruments:
    """What pages need beside the service. clients: URL of the data listener, or empty. new_token: 128 random bits."""

    clients: Callable[[], str]
    new_token: Callable[[], str]


INSTRUMENTS: Final = web.AppKey("instruments", Instruments)

Points = Sequence[tuple[int, Mapping[str, int]]]
"""Start times (microseconds), and the requests by status class until the next start."""


def class_of(status_class: int) -> str:
    return _CLASSES.get(status_class, "5xx")


def last_day(now: int) -> UsageFilter:
    """Return the current hour and the 23 hours before it."""
    end = now - now % HOUR + HOUR
    return UsageFilter(since=end - DAY_OF_HOURS * HOUR, until=end)


def last_days(now: int, days: int) -> UsageFilter:
    """Return today and the days before it."""
    end = now - now % DAY + DAY
    return UsageFilter(since=end - days * DAY, until=end, by="day")


def points_of(rows: Sequence[UsageRow], wanted: UsageFilter) -> Points:
    """Return every hour or day of `wanted`, also those without requests."""
    step = DAY if wanted.by == "day" else HOUR
    at: dict[int, Counter[str]] = {start: Counter() for start in range(wanted.since, wanted.until, step)}
    for row in rows:
        found = at.get(row.at - row.at % step)
        if found is not None:
            found[class_of(row.status_class)] += row.count
    return list(at.items())


async def totals_by_key(service: AdminService, keys: Sequence[ApiKey]) -> Mapping[str, list[int]]:
    """Return the requests in each of the last 24 hours, by key id."""
    wanted = replace(last_day(service.now), key_ids=tuple(key.id for key in keys))
    totals = {key.id: [0] * DAY_OF_HOURS for key in keys}
    for row in await service.usage(None, wanted) if keys else ():
        hour = (row.at - wanted.since) // HOUR
        if row.key_id in totals and 0 <= hour < DAY_OF_HOURS:
            totals[row.key_id][hour] += row.count
    return totals
