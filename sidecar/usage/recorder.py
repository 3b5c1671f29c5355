"""Uses of keys: what is stored about them, and how a request counts them (one step in one dict)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from sidecar.core.errors import Reason
from sidecar.core.model import Allow, Deny, RequestHead
from sidecar.core.routing import NO_ROUTE
from sidecar.core.units import Clock

HOUR: Final = 3_600_000_000
DAY: Final = 24 * HOUR
"""In microseconds."""
_WOULD_DENY: Final = "would_deny:"
"""Precedes the reason of a refusal that was only observed; stored with the reasons of enforced refusals."""


def observed_reason(reason: str) -> str:
    """Why a request with this stored `reason` would have been refused; empty if it was not observed."""
    return reason.removeprefix(_WOULD_DENY) if reason.startswith(_WOULD_DENY) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """How often a key was presented on a route with responses of one class (2 for 200 to 299)."""

    key_id: str
    """Empty in a sum over keys."""
    at: int
    """Start of the hour or day, in microseconds."""
    route: str
    """Name as configured, or `(none)`."""
    status_class: int
    count: int
    reason: str = ""
    """Why the requests were refused or not served; empty for others, and if reasons were not asked for.

    For requests that were served only because their refusal is observed: the form that `observed_reason` parses.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageTotal:
    """How often a key was presented on a route in a period, by `reason` as in a UsageRow.

    Counts that are too old to be kept by the hour belong to the first hour of their day.
    """

    key_id: str
    """Empty in a sum over all keys."""
    route: str
    reason: str
    count: int
    most_in_hour: int
    most_in_day: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageFilter:
    """Which counts to read: from the hour or day that contains `since`, and later ones that begin before `until`.

    Both in microseconds.
    """

    key_id: str | None = None
    """Counts of this key. If this and `key_ids` are None: the sum over all keys."""
    key_ids: tuple[str, ...] | None = None
    """Counts of each of these keys."""
    tenant: str | None = None
    """Only counts of keys of this tenant."""
    since: int
    until: int
    with_reasons: bool = False
    """Keep counts by reason apart; otherwise they are summed up."""
    by: Literal["hour", "day"] = "hour"
    """If hourly, a count that is too old to be kept by the hour has the start of its day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastUse:
    """When (microseconds), from which address and by which program a key was last used; empty: unknown."""

    at: int
    address: str = ""
    agent: str = ""
    networks: tuple[str, ...] = ()
    """Networks from which the key was used since its last use was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What was stored about a key before its newest use. Times in microseconds."""

    used_at: int | None
    created_at: int
    new_networks: tuple[str, ...]
    """Networks of the use that were not known; empty if no network was known at all, or very many are."""


class UsageSink(Protocol):
    """Where uses are written. Each call is one transaction. Both raise StoreUnavailable."""

    async def touch(self, last_uses: Mapping[str, LastUse]) -> Mapping[str, Earlier]:
        """Write the last use of each key id, never backwards. Returns what was stored before, for each known key."""

    async def add(self, rows: Sequence[UsageRow]) -> None:
        """Add hourly counts to the stored ones."""


_HOUR_SECONDS: Final = 3600
_USER_AGENT: Final = b"user-agent"
_AGENT_BYTES: Final = 200

Place = tuple[str, str, int, str, str]
"""Key id, name of the route, class of the status, client address, reason (empty where the request was served)."""
RefusedPlace = tuple[str, str, int, str, Reason]
"""The same for refusals. The key id is empty if no key was recognised."""


class UsageCounter:
    """Requests of one place in one hour. Mutable, so that a request creates no object."""

    __slots__ = ("agent", "at", "count")

    def __init__(self, agent: bytes) -> None:
        self.count = 0
        self.at = 0.0
        """Unix seconds of the newest request."""
        self.agent = agent
        """The User-Agent field of the first request, truncated."""


class UsageHour:
    """Counts of an hour or part of one."""

    __slots__ = ("allowed", "at", "refused")

    def __init__(self, at: int) -> None:
        self.at = at
        """Its start, in microseconds."""
        self.allowed: dict[Place, UsageCounter] = {}
        self.refused: dict[RefusedPlace, UsageCounter] = {}


class Usage:
    """Collects counts until `taken` hands them over.

    At most `size` places are counted between two calls of `taken`; requests of further places are `dropped`. That
    takes `size` different requests within a few seconds, or a store that is slow for minutes.
    """

    def __init__(self, *, clock: Clock, size: int = 200_000) -> None:
        self.dropped = 0
        self._clock = clock
        self._size = size
        self._over: list[UsageHour] = []
        self._ends = 0.0
        self._begin(clock.seconds())

    def used(self, allow: Allow, head: RequestHead, status: int, now: float, reason: str = "") -> None:
        """Count an allowed request, with the status of its response at `now` (Unix seconds).

        reason: of a fault that kept it from being served. In that case, an observed refusal is not recorded.
        """
        principal = allow.principal
        if principal is None:
            return
        if allow.would_deny is not None and not reason:
            reason = f"{_WOULD_DENY}{allow.would_deny.reason}"
        if now >= self._ends:
            self._begin(now)
        place = (principal.key.id, allow.route.name, status // 100, allow.client_address, reason)
        counter = self._allowed.get(place)
        if counter is None:
            if len(self._allowed) >= self._size:
                self.dropped += 1
                return
            counter = self._allowed[place] = UsageCounter(_agent(head))
        counter.count += 1
        counter.at = now

    def refused(self, deny: Deny, status: int, now: float) -> None:
        """Count a refused request."""
        if now >= self._ends:
            self._begin(now)
        key_id = deny.key.id if deny.key is not None else ""
        route = deny.route.name if deny.route is not None else NO_ROUTE
        place = (key_id, route, status // 100, deny.client_address, deny.reason)
        counter = self._refused.get(place)
        if counter is None:
            if len(self._refused) >= self._size:
                self.dropped += 1
                return
            counter = self._refused[place] = UsageCounter(b"")
        counter.count += 1
        counter.at = now

    def taken(self) -> Sequence[UsageHour]:
        """Hand over the counts so far; they do not change afterwards."""
        over, self._over = self._over, []
        self._begin(self._clock.seconds())
        return [hour for hour in over if hour.allowed or hour.refused]

    def add(self, hours: Sequence[UsageHour]) -> None:
        """Add counts that `taken` of another process returned, or that could not be handed over."""
        room = self._size - sum(len(hour.allowed) + len(hour.refused) for hour in self._over)
        for hour in hours:
            room -= len(hour.allowed) + len(hour.refused)
            if room >= 0:
                self._over.insert(0, hour)
            else:
                self.dropped += sum(each.count for each in (*hour.allowed.values(), *hour.refused.values()))

    def _begin(self, now: float) -> None:
        hours = int(now // _HOUR_SECONDS)
        self._ends = float((hours + 1) * _HOUR_SECONDS)
        hour = UsageHour(hours * HOUR)
        self._allowed, self._refused = hour.allowed, hour.refused
        self._over.append(hour)


def _agent(head: RequestHead) -> bytes:
    for name, value in head.headers:
        if len(name) == len(_USER_AGENT) and name.lower() == _USER_AGENT:
            return value[:_AGENT_BYTES]
    return b""
