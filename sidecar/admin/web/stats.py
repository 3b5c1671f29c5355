"""Statistics for the pages, limited to the keys that the administrator may see."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote, urlencode

from aiohttp import web
from msgspec import structs

from sidecar.admin.service import AdminService
from sidecar.admin.web.charts import Chart, Point, chart
from sidecar.admin.web.formatting import MICROSECONDS, moment, percent
from sidecar.admin.web.view_models import CountRow, LatestRefusals, Option, RefusalRow
from sidecar.core.apikey import looks_secret
from sidecar.core.errors import Reason
from sidecar.core.model import ApiKey
from sidecar.core.units import microseconds, rfc3339
from sidecar.telemetry.refusals import KEPT, Refusal, RefusalFilter
from sidecar.usage.recorder import DAY, HOUR, UsageFilter, UsageRow

DAY_OF_HOURS: Final = 24
_PATTERNS: Final = {"hour": "%b %-d, %H:%M", "day": "%b %-d"}
_CLASSES: Final = {1: "2xx", 2: "2xx", 3: "3xx", 4: "4xx"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruments:
    """What pages need besides the service. clients: URL of the data listener, or empty. new_token: 128 random bits."""

    clients: Callable[[], str]
    new_token: Callable[[], str]


INSTRUMENTS: Final = web.AppKey("instruments", Instruments)

Points = Sequence[tuple[int, Counter[str]]]
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


# The chart of requests. Each bar links to its hour or day.


def slot_of(request: web.Request, wanted: UsageFilter) -> UsageFilter | None:
    """The hour or day of `wanted` that the address asks for (`at`, RFC 3339), or None."""
    step = DAY if wanted.by == "day" else HOUR
    try:
        at = microseconds(request.query.get("at", ""))
    except ValueError:
        return None
    start = at - at % step
    return replace(wanted, since=start, until=start + step) if wanted.since <= start < wanted.until else None


def slot_text(slot: UsageFilter | None) -> str:
    """The hour or day, for people; empty for None."""
    return "" if slot is None else _label(slot.since, _PATTERNS[slot.by] + " UTC")


def usage_chart(
    rows: Sequence[UsageRow], wanted: UsageFilter, span: str, *, link: Callable[[str], str], slot: UsageFilter | None
) -> Chart:
    """A bar for each hour or day of `wanted`, with labels at the start, the middle and the end.

    link: the address that shows the hour or day that begins then (RFC 3339). slot: the one that is shown.
    """
    pattern = "%b %-d" if wanted.by == "day" else "%H:%M"
    points = [
        Point(
            label=_label(at, f"{pattern} UTC"),
            counts=counts,
            link=link(rfc3339(at)) if counts.total() else "",
            chosen=slot is not None and at == slot.since,
        )
        for at, counts in points_of(rows, wanted)
    ]
    ticks = [_label(at, pattern) for at in (wanted.since, (wanted.since + wanted.until) // 2)]
    return chart(points, ticks=[*ticks, "now"], span=span)


def _label(at: int, pattern: str) -> str:
    return datetime.fromtimestamp(at // MICROSECONDS, UTC).strftime(pattern)


# Refusals.

_REFUSALS_SHOWN: Final = 50
_NO_PAGE: Final = frozenset({"", ".", ".."})
"""Request ids that an address cannot contain: browsers treat the dots as folders."""


def count_rows(counts: Mapping[str, int], link: Callable[[str], str]) -> tuple[CountRow, ...]:
    """A row for each reason, the largest count first."""
    largest = max(counts.values(), default=0)
    most_first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(
        CountRow(name=name, count=f"{count:,}", percent=percent(count, largest), link=link(name))
        for name, count in most_first
    )


def latest_refusals(
    service: AdminService, request: web.Request, *, key_id: str | None, slot: UsageFilter | None, of_route: str = ""
) -> LatestRefusals:
    """The newest refusals, of all keys or of one, in this hour or day, as the address of the page filters them.

    of_route: only of this route, whatever the address says.
    """
    # Text from an address is shown again, but not a key that somebody put there.
    given = {name: value for name, value in request.query.items() if not looks_secret(value)}
    reason, route = given.get("reason", ""), "" if of_route else given.get("route", "")
    found = service.refusals(RefusalFilter(key_id=key_id, route=of_route or None))
    wanted = RefusalFilter(reason=reason or None, route=route or None)
    if slot is not None:
        wanted = structs.replace(wanted, since=slot.since, until=slot.until)
    shown = [one for one in found if wanted.fits(one)]
    return LatestRefusals(
        action=request.rel_url.raw_path,
        rows=tuple(_refusal(one, service.now) for one in shown[:_REFUSALS_SHOWN]),
        total=f"{len(shown):,} of the newest {KEPT}",
        reasons=_choices("Any reason", {one.reason.value for one in found}, reason),
        routes=() if of_route else _choices("Any route", {one.route for one in found}, route),
        slot=slot_text(slot),
        kept=tuple((name, given[name]) for name in ("span", "at") if name in given),
        filtered=bool(reason or route or slot),
        with_key=key_id is None,
    )


def _choices(every: str, names: Set[str], chosen: str) -> tuple[Option, ...]:
    known = sorted(names | {chosen} - {""})
    return Option(value="", label=every), *(Option(value=name, label=name, chosen=name == chosen) for name in known)


def explain_link(one: Refusal) -> str:
    """The address that explains the same request; empty if no request could be read."""
    given = {"method": one.method, "target": one.path}
    if one.key_id or one.reason is Reason.MISSING_CREDENTIAL:
        given["key"] = one.key_id
    return f"/explain?{urlencode(given)}" if one.method else ""


def _refusal(one: Refusal, now: int) -> RefusalRow:
    return RefusalRow(
        moment=moment(one.at, now),
        reason=one.reason.value if one.cause is None else f"{one.reason} ({one.cause})",
        observed=one.observed,
        status=one.status,
        request=f"{one.method} {one.path}" if one.method else "Malformed: no request could be read",
        route=one.route,
        address=one.address or "Not known",
        key_id=one.key_id,
        prefix=one.prefix,
        why="" if one.request_id in _NO_PAGE else f"/refusals/{quote(one.request_id, safe='')}",
        explain=explain_link(one),
    )
