"""What keys and routes were used for, told by a log or by stored counts, and judged by the present configuration."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec import field as default

from sidecar.config.build.config import Config
from sidecar.core.errors import Denied, Reason
from sidecar.core.model import EVERY, ApiKey, Policy, Principal, Route
from sidecar.core.policy import authorize_all_readings
from sidecar.core.routing import Match
from sidecar.core.target import parse_target, readings
from sidecar.gate.compile import method_rules, route_table
from sidecar.rehearsal.peaks import Peaks, charged_to
from sidecar.usage.recorder import UsageTotal

# A request as the gate reads it.


_READ: Final = 65_536
"""Pairs of method and path that are remembered."""
_NO_POLICY_PASSED: Final = frozenset(
    {
        Reason.BAD_REQUEST,
        Reason.BAD_TARGET,
        Reason.AMBIGUOUS_TARGET,
        Reason.BAD_HEADER,
        Reason.METHOD_NOT_ALLOWED,
        Reason.HEADERS_TOO_LARGE,
        Reason.MISSING_CREDENTIAL,
        Reason.MALFORMED_CREDENTIAL,
        Reason.INVALID_KEY,
        Reason.EXPIRED_KEY,
        Reason.DISABLED_KEY,
        Reason.REVOKED_KEY,
        Reason.RETIRED_KEY,
        Reason.NO_ROUTE,
        Reason.INSUFFICIENT_SCOPE,
        Reason.WRONG_TENANT,
        Reason.WRONG_ENVIRONMENT,
        Reason.KEY_NOT_ACCEPTED,
        Reason.TOO_MANY_FAILURES,
        Reason.STORE_UNAVAILABLE,
    }
)
"""Refusals before, or by, the policy of a route. Of all others the policy had let the request pass: what was over its
quota needs the scopes as well."""


class Reading(NamedTuple):
    """What routes a request leads to: one match for each plausible reading of its path."""

    matches: tuple[Match | None, ...]
    routes: tuple[str, ...]
    """Names of all routes that have to let it pass, the first one being that which is logged."""
    bound: bool
    """Whether the routes compare parts of the path with the key."""

    @property
    def route(self) -> Route | None:
        return self.matches[0].route if self.matches[0] else None


class Router:
    """Reads requests as the gate does."""

    def __init__(self, config: Config) -> None:
        self._config, self._table, self._methods = config, route_table(config), method_rules(config)
        self._by_name = {route.name: route for route in config.routes}
        self.read = lru_cache(maxsize=_READ)(self._read)
        """Of method and path, without a query; None for what no route is asked about."""

    def on(self, name: str, key: ApiKey) -> Reading | None:
        """A request of which the route alone is known, and that belongs to the key; None for a route that is gone."""
        route = self._by_name.get(name)
        if route is None:
            return None
        match = Match(route, tenant=key.tenant or EVERY, environment=key.environment or EVERY)
        return Reading((match,), (name,), bound=True)

    def _read(self, method: str, path: str) -> Reading | None:
        try:
            self._methods.check(method)
            target = parse_target(path, "localhost")
            paths = (target.path,) if target.ordinary else self._readings(target.path)
        except Denied:
            return None
        matches = tuple(self._table.match(method, path) for path in paths)
        found = [match for first in matches for match in _with_unslashed(first)]
        bound = any(match.tenant is not None or match.environment is not None for match in found)
        return Reading(matches, tuple(dict.fromkeys(match.route.name for match in found)), bound)

    def _readings(self, path: str) -> tuple[str, ...]:
        return readings(path, keep_slash=self._config.keep_slash)


def _with_unslashed(match: Match | None) -> Iterator[Match]:
    while match is not None:
        yield match
        match = match.unslashed


def policies_of(reading: Reading) -> Iterator[Policy]:
    """Of every route that has to let the request pass."""
    for first in reading.matches:
        for match in _with_unslashed(first):
            yield match.route.policy


def passes(reading: Reading, key: ApiKey, scopes: frozenset[str]) -> bool:
    """Whether the gate's rules let the request pass with this key, if its scopes amount to `scopes`."""
    try:
        authorize_all_readings(reading.matches, Principal(key=key, scopes=scopes), foreign=False)
    except Denied:
        return False
    return True


# What is recorded of one key, and of all.


class KeyUse(Struct):
    """What a key was used for. It takes no more room than the key has routes and quotas."""

    requests: int = 0
    """That the policy lets pass today as well."""
    readings: dict[tuple[str, ...], Reading] = {}
    """Of these requests, one for all that lead to the same routes."""
    changed: int = 0
    """That passed then, and today no route would let pass."""
    lacking: Counter[str] = default(default_factory=Counter)
    """Refused for lack of a scope, by route."""
    over_quota: Counter[str] = default(default_factory=Counter)
    """Refused for a quota, by route."""
    by_route: Counter[str] = default(default_factory=Counter)
    peaks: Peaks = default(default_factory=Peaks)


class _Held(NamedTuple):
    key: ApiKey
    scopes: frozenset[str]
    use: KeyUse


@dataclass(slots=True)
class Use:
    """What keys and routes were used for.

    Only keys that were given are counted by name, so that a log full of other ids takes no memory.
    """

    config: Config
    unknown_keys: int = 0
    """Requests of keys that were not given."""
    routes: Counter[str] = field(default_factory=Counter)
    """Requests by route that were let pass."""
    refused: Counter[str] = field(default_factory=Counter)
    _router: Router = field(init=False)
    _held: dict[str, _Held] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._router = Router(self.config)

    def add_key(self, key: ApiKey, scopes: frozenset[str]) -> None:
        """Count the uses of this key from here on. scopes: what those of the key amount to."""
        self._held[key.id] = _Held(key, scopes, KeyUse())

    def of(self, key_id: str) -> KeyUse:
        return self._held[key_id].use

    def add_total(self, total: UsageTotal) -> None:
        """Count what is stored of a key."""
        held = self._held.get(total.key_id)
        if held is None:
            self.unknown_keys += total.count
            return
        reading = self._router.on(total.route, held.key)
        passed = self._count(held, reading, total.route, total.reason, total.count)
        if passed and reading is not None and total.reason != Reason.QUOTA_EXCEEDED:
            for charge, limit in charged_to(self.config, reading.route, held.key):
                held.use.peaks.add_total(charge, limit, total)

    def add_route_total(self, total: UsageTotal) -> None:
        """Count what is stored of all keys together."""
        counts = self.refused if total.reason in _NO_POLICY_PASSED else self.routes
        counts[total.route] += total.count

    def add_request(self, key_id: str | None, method: str, path: str, reason: str | None, at: float) -> None:
        """Count a line of a log. path: without a query. at: Unix seconds."""
        reading = self._router.read(method, path)
        if reading is None:
            return
        name = reading.routes[0] if reading.routes else ""
        if reading.route is not None:
            (self.refused if reason in _NO_POLICY_PASSED else self.routes)[reading.route.name] += 1
        if key_id is None:
            return
        held = self._held.get(key_id)
        if held is None:
            self.unknown_keys += 1
        elif self._count(held, reading, name, reason or "", 1) and reason != Reason.QUOTA_EXCEEDED:
            for charge, limit in charged_to(self.config, reading.route, held.key):
                held.use.peaks.add(charge, limit, at)

    def _count(self, held: _Held, reading: Reading | None, route: str, reason: str, count: int) -> bool:
        """Whether the policy let the requests pass, then and today."""
        use = held.use
        if reason == Reason.INSUFFICIENT_SCOPE and route:
            use.lacking[route] += count
        if reason in _NO_POLICY_PASSED:
            return False
        if reason == Reason.QUOTA_EXCEEDED:
            use.over_quota[route] += count
        if reading is None or not self._passes(held, reading):
            use.changed += count
            return False
        use.requests += count
        use.by_route[route] += count
        use.readings.setdefault(reading.routes, reading)
        return True

    def _passes(self, held: _Held, reading: Reading) -> bool:
        if not reading.bound and reading.routes in held.use.readings:
            return True
        return passes(reading, held.key, held.scopes)
