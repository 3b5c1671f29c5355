"""The current policy, for an administrator: the outcomes of each route's requests, and the keys that reach it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import msgspec

from sidecar.admin.problems import Problem
from sidecar.admin.reading import AdminReader
from sidecar.config.build.config import Config
from sidecar.core.errors import Reason, status_of
from sidecar.core.model import ApiKey, Policy, Route
from sidecar.core.routing import NO_ROUTE
from sidecar.gate.explain import redacted, requirements
from sidecar.gate.reach import opens, scopes_used
from sidecar.keys.ports import KeyFilter
from sidecar.keys.records import COLUMNS, key_of
from sidecar.telemetry.reloads import ConfigProblem, RefusedConfig
from sidecar.usage.recorder import DAY, HOUR, UsageFilter, UsageRow, observed_reason

# Outcomes of requests.

Outcome = Literal["allowed", "malformed", "credential", "permission", "quota", "fault"]
"""Refusals by cause: the request, the credential, the rights of the key, or its quota."""
REFUSALS: Final[tuple[Outcome, ...]] = ("credential", "permission", "quota", "malformed")

_STATUSES: Final[Mapping[int, Outcome]] = {401: "credential", 403: "permission", 429: "quota"}
_REASONS: Final = {reason.value: reason for reason in Reason}
_UNSUPPORTED: Final = 501
"""`unsupported_coding` is also the client's fault."""


def outcome_of(reason: str) -> Outcome:
    """The outcome of a request that was denied for `reason`; an unknown reason is from another version."""
    if reason not in _REASONS:
        return "permission"
    if _REASONS[reason] is Reason.TOO_MANY_FAILURES:
        return "credential"
    status = status_of(_REASONS[reason])
    return "fault" if status >= 500 and status != _UNSUPPORTED else _STATUSES.get(status, "malformed")


@dataclass(slots=True, kw_only=True)
class Outcomes:
    """How many requests were allowed, and how many were refused, or not served, by reason."""

    allowed: int = 0
    server_errors: int = 0
    """The part of `allowed` to which the service itself responded with 5xx."""
    denied: Counter[str] = field(default_factory=Counter)
    would_deny: Counter[str] = field(default_factory=Counter)
    """The part of `allowed` that would have been refused if it were not only observed, by reason."""

    def count(self, outcome: Outcome) -> int:
        if outcome == "allowed":
            return self.allowed
        return sum(count for reason, count in self.denied.items() if outcome_of(reason) == outcome)

    @property
    def refused(self) -> int:
        return sum(map(self.count, REFUSALS))

    @property
    def total(self) -> int:
        return self.allowed + self.denied.total()


def outcomes_by_route(rows: Iterable[UsageRow]) -> Mapping[str, Outcomes]:
    """From stored counts with reasons. Only requests with a recognised key are stored."""
    found: dict[str, Outcomes] = {}
    for row in rows:
        outcomes = found.setdefault(row.route, Outcomes())
        observed = observed_reason(row.reason)
        if row.reason and not observed:
            outcomes.denied[row.reason] += row.count
            continue
        outcomes.allowed += row.count
        outcomes.server_errors += row.count if row.status_class == 5 else 0
        if observed:
            outcomes.would_deny[observed] += row.count
    return found


def counted_outcomes(service: AdminReader) -> Mapping[str, Outcomes] | None:
    """Outcomes by route since the start, with and without a key; None for an administrator of one tenant."""
    if service.admin.tenant is not None:
        return None
    found, observed = {}, service.running.observed_by_route()
    for route, counts in service.running.counts_by_route().items():
        denied = Counter({reason: count for reason, count in counts.items() if reason})
        found[route] = Outcomes(
            allowed=max(0, counts.get("", 0) - denied.total()),
            denied=denied,
            would_deny=Counter(observed.get(route, {})),
        )
    return found


def last_day(now: int) -> UsageFilter:
    """Outcomes in the current hour and the 23 hours before it, with reasons. now: microseconds."""
    end = now - now % HOUR + HOUR
    return UsageFilter(since=end - DAY, until=end, with_reasons=True)


# Routes.


def policy_routes(config: Config) -> Sequence[Route]:
    """The routes in the order of the file, and at the end the unmatched requests."""
    return (*config.routes, config.unmatched)


def route_named(config: Config, name: str) -> Route:
    """Raises Problem 404."""
    for route in policy_routes(config):
        if route.name == name:
            return route
    raise Problem(404, "unknown_route", "the configuration in force has no such route")


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteFilter:
    """Filters for routes. search: a part of the name, ignoring case. used: whether there were requests. Empty: any."""

    search: str = ""
    scope: str = ""
    used: Literal["any", "yes", "no"] = "any"


def fitting_routes(
    config: Config,
    wanted: RouteFilter,
    stored: Mapping[str, Outcomes],
    counted: Mapping[str, Outcomes] | None,
) -> list[Route]:
    """The routes of `policy_routes` that match. stored, counted: their known use."""
    search, used = wanted.search.casefold(), {name for name, found in stored.items() if found.total}
    used |= {name for name, found in (counted or {}).items() if found.total}
    return [
        route
        for route in policy_routes(config)
        if search in route.name.casefold()
        and wanted.scope in ("", *route.policy.any_scopes, *route.policy.all_scopes)
        and (wanted.used == "any" or (route.name in used) == (wanted.used == "yes"))
    ]


def needs(route: Route) -> str:
    """What a route requires, in words."""
    if route.name == NO_ROUTE and not route.policy.pass_through:
        return "nobody may pass"
    return requirements(route.policy)


# Which keys reach a route.

MOST_KEYS: Final = 10_000
"""The number of keys that are searched for one response, newest first."""
_AT_ONCE: Final = 1_000
_ID, _TENANT, _ENVIRONMENT, _SCOPES = (COLUMNS.index(name) for name in ("id", "tenant", "environment", "scopes"))
_MOST_NAMED: Final = 100
"""The number of tenants and scopes in one response: those with the most keys."""

Audience = Literal["everybody", "nobody", "no_key", "keys"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """The valid keys that reach a route, newest first: some of them, and the numbers by tenant and by scope.

    A key counts for each of its scopes that the route names.
    """

    keys: Sequence[ApiKey]
    next: str | None
    """The cursor of the next keys; None on the last page."""
    count: int
    looked_at: int
    whole: bool
    """Whether every key was searched."""
    tenants: Sequence[tuple[str | None, int]]
    scopes: Sequence[tuple[str, int]]


def audience(route: Route) -> Audience:
    """Who may pass a route: everybody, nobody, only requests without a key, or the keys that `reach` finds."""
    policy = route.policy
    if policy.deny or (route.name == NO_ROUTE and not policy.pass_through):
        return "nobody"
    if policy.refuses_keys is not None:
        return "no_key"
    return "everybody" if policy.public else "keys"


async def reach(
    service: AdminReader, route: Route, *, tenant: str | None = None, after: str | None = None, limit: int
) -> Reach:
    """Searches at most MOST_KEYS keys. tenant: only its keys. after: cursor of the previous page."""
    found = _Found(service.config, route.policy, limit=limit)
    wanted = KeyFilter(effective_status="active", tenant=tenant, after=after, limit=_AT_ONCE)
    while audience(route) == "keys" and (rows := await service.rows(wanted)):
        if not found.look_at(rows):
            break
        wanted = replace(wanted, after=rows[-1][_ID])
    return found.reach()


class _Found:
    """Reads rows of COLUMNS: turning each into a key would take most of the time."""

    def __init__(self, config: Config, policy: Policy, *, limit: int) -> None:
        self._config, self._policy, self._limit = config, policy, limit
        self._judged: dict[tuple[str, str | None, str | None], bool] = {}
        self._keys: list[ApiKey] = []
        self._tenants: Counter[str | None] = Counter()
        self._granted: Counter[str] = Counter()
        self._looked_at, self._whole = 0, True
        self._last: str | None = None

    def look_at(self, rows: Sequence[Sequence[Any]]) -> bool:
        """Searches these keys, up to the limit. Returns whether it searched all of them."""
        room = MOST_KEYS - self._looked_at
        for row in rows[:room]:
            if self._opens(row):
                self._take(row)
        self._looked_at += min(room, len(rows))
        self._last = rows[min(room, len(rows)) - 1][_ID] if room else self._last
        self._whole = len(rows) <= room
        return self._whole

    def _opens(self, row: Sequence[Any]) -> bool:
        """Uses the gate's rules, which treat keys with these three properties alike."""
        rights = (row[_SCOPES], row[_TENANT], row[_ENVIRONMENT])
        judged = self._judged.get(rights)
        if judged is None:
            key = key_of(row)
            judged = self._judged[rights] = opens(self._policy, key, self._config.catalogue.expand(key.scopes))
        return judged

    def _take(self, row: Sequence[Any]) -> None:
        if len(self._keys) < self._limit:
            self._keys.append(key_of(row))
        self._tenants[row[_TENANT]] += 1
        self._granted[row[_SCOPES]] += 1

    def reach(self) -> Reach:
        scopes: Counter[str] = Counter()
        for granted, count in self._granted.items():
            for scope in scopes_used(self._policy, msgspec.json.decode(granted), self._config.catalogue):
                scopes[scope] += count
        count = self._tenants.total()
        following = self._keys[-1].id if count > len(self._keys) else None if self._whole else self._last
        return Reach(
            keys=self._keys,
            next=following,
            count=count,
            looked_at=self._looked_at,
            whole=self._whole,
            tenants=self._tenants.most_common(_MOST_NAMED),
            scopes=scopes.most_common(_MOST_NAMED),
        )


# The current and the refused configuration.


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigState:
    """The configuration in force since `since` (Unix seconds), and the one that was refused or needs a restart."""

    path: str | None
    """None for an administrator of one tenant, who may not see file names."""
    sha256: str
    since: float
    needs_restart: Sequence[str]
    pending: RefusedConfig | None
    """For an administrator of one tenant, its problems are left out, and `needs_restart` is empty."""


def config_state(service: AdminReader) -> ConfigState:
    config, running, mine = service.config, service.running, service.admin.tenant is not None
    reloads = running.reloads
    return ConfigState(
        path=None if mine else config.path,
        sha256=config.sha256,
        since=running.config_since(),
        needs_restart=() if reloads is None or mine else reloads.kept,
        pending=pending_config(service),
    )


def pending_config(service: AdminReader) -> RefusedConfig | None:
    """The configuration that was refused at the newest reload, without anything that looks like a key."""
    reloads = service.running.reloads
    refused = None if reloads is None else reloads.pending
    if refused is None:
        return None
    shown = refused.problems if service.admin.tenant is None else ()
    problems = tuple(ConfigProblem(one.where, redacted(service.config, one.message)) for one in shown)
    return replace(refused, problems=problems)
