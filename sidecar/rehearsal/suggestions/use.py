"""What keys and routes were used for, from a log or stored counts, and judged by the current configuration."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Final, NamedTuple

from msgspec import Struct

from sidecar.config.build.config import Config
from sidecar.core.errors import Denied, Reason
from sidecar.core.model import EVERY, ApiKey, Charge, Policy, Principal, Route
from sidecar.core.policy import authorize_all_readings
from sidecar.core.routing import Match, MethodRules, RouteTable
from sidecar.core.target import parse_target, readings
from sidecar.core.units import microseconds
from sidecar.gate.compile import method_rules, route_table
from sidecar.rehearsal.recorded import RecordedRequest
from sidecar.rehearsal.suggestions.peaks import Peak, own_charges, peak_of
from sidecar.usage.recorder import UsageTotal, observed_reason

# A request as the gate reads it.


_SECOND: Final = 1_000_000
_YEAR_9999: Final = microseconds("9999-01-01")
_BETWEEN: Final = 1_000
"""Requests of a log between two reports of progress."""
MOST_KEYS: Final = 200_000
"""Most keys that are learnt from a log."""
_KINDS: Final = 16_384
"""Kinds of keys and requests that are cached."""
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
"""Refusals before, or by, the policy of a route. With any other reason, the policy had allowed the request.

One over its quota needs the scopes as well.
"""


class Reading(NamedTuple):
    """The routes of a request: one match for each plausible reading of its path."""

    matches: tuple[Match | None, ...]
    routes: tuple[str, ...]
    """Names of all routes that must let it pass; the first one is the logged route."""
    bound: bool
    """Whether the routes check more about the key than its scopes."""
    route: Route | None
    """The logged route."""
    charges: tuple[Charge, ...]
    """The charges of quotas that are counted by key."""


def _reading(matches: tuple[Match | None, ...]) -> Reading:
    found = [match for first in matches for match in _with_unslashed(first)]
    return Reading(
        matches=matches,
        routes=tuple(dict.fromkeys(match.route.name for match in found)),
        bound=any(match.tenant or match.environment or match.route.policy.environments for match in found),
        route=matches[0].route if matches[0] else None,
        charges=own_charges(matches[0].route) if matches[0] else (),
    )


class Router:
    """Reads requests as the gate does."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._by_name = {route.name: route for route in config.routes}
        self._plain: dict[str, Reading] = {}
        """By route, if no part of the path is compared with the key."""

    @cached_property
    def _table(self) -> RouteTable:
        return route_table(self._config)

    @cached_property
    def _methods(self) -> MethodRules:
        return method_rules(self._config)

    def named(self, name: str | None) -> Route | None:
        """The configuration's route of this name."""
        return None if name is None else self._by_name.get(name)

    def on(self, name: str | None, key: ApiKey) -> Reading | None:
        """A request of the key of which only the route is known; None if the route no longer exists."""
        route = self.named(name)
        if route is None:
            return None
        return _reading((Match(route, tenant=key.tenant or EVERY, environment=key.environment or EVERY),))

    def read(self, method: str, path: str) -> Reading | None:
        """Read a request, without its query; None if it never reaches a route."""
        try:
            self._methods.check(method)
            target = parse_target(path, "localhost")
            if target.ordinary:
                return self._of_one(self._table.match(method, target.path))
            paths = readings(target.path, keep_slash=self._config.keep_slash)
        except Denied:
            return None
        return _reading(tuple(self._table.match(method, path) for path in paths))

    def _of_one(self, match: Match | None) -> Reading:
        if match is None:
            return _NOWHERE
        if match.tenant is not None or match.environment is not None or match.unslashed is not None:
            return _reading((match,))
        found = self._plain.get(match.route.name)
        if found is None:
            found = self._plain[match.route.name] = _reading((match,))
        return found


def _with_unslashed(match: Match | None) -> Iterator[Match]:
    while match is not None:
        yield match
        match = match.unslashed


_NOWHERE: Final = Reading(matches=(None,), routes=(), bound=False, route=None, charges=())


def policies_of(reading: Reading) -> Iterator[Policy]:
    """The policies of all routes that must let the request pass."""
    for first in reading.matches:
        for match in _with_unslashed(first):
            yield match.route.policy


def passes(reading: Reading, key: ApiKey, scopes: frozenset[str]) -> bool:
    """Whether the gate's rules let the request pass with this key, if its scopes include `scopes`."""
    try:
        authorize_all_readings(reading.matches, Principal(key=key, scopes=scopes), foreign=False)
    except Denied:
        return False
    return True


# The recorded use of one key, and of all keys.


class KeyUse(Struct):
    """What a key was used for. Its size is bounded by the key's routes and quotas."""

    requests: int = 0
    """Requests that the policy also allows today."""
    readings: dict[tuple[str, ...], Reading] = {}
    """Of these requests, one for each set of routes."""
    changed: int = 0
    """Requests that passed then, and would not pass on any route today."""
    lacking: dict[str, int] = {}
    """Requests that were refused for lack of a scope, by route."""
    observed: dict[str, int] = {}
    """Requests that were forwarded despite a missing scope (`mode: observe`), by route."""
    over_quota: dict[str, int] = {}
    """Refused for a quota that is not on record, by route."""
    used_up: dict[str, int] = {}
    """Refused for a quota, by that quota."""
    by_route: dict[str, int] = {}
    peaks: dict[str, Peak] = {}
    """By quota."""


class _Held(NamedTuple):
    key: ApiKey
    scopes: frozenset[str]


NO_USE: Final = KeyUse()
"""The use of an unused key; must not be written to."""


@dataclass(slots=True)
class Use:
    """What keys and routes were used for.

    Only given keys are counted by name, so that a log full of other ids takes no memory. With `from_log`, the log is
    the only source of keys, and at most MOST_KEYS are counted.
    """

    config: Config
    from_log: bool = False
    requests: int = 0
    sampled: bool = field(init=False)
    """Whether some requests may have been left out of the log."""
    unknown_keys: int = 0
    """Requests of keys that were not given."""
    earlier: int = 0
    """Requests in a log from before the requested time."""
    first: int | None = None
    """Time of the first request of a log, in microseconds; None if no request has a time."""
    last: int | None = None
    routes: Counter[str] = field(default_factory=Counter)
    """Requests that passed, by route."""
    refused: Counter[str] = field(default_factory=Counter)
    observed: Counter[str] = field(default_factory=Counter)
    """Requests that were forwarded only because their refusal was observed; not counted in the others."""
    _router: Router = field(init=False)
    _expand: Callable[[tuple[str, ...]], frozenset[str]] = field(init=False)
    _held: dict[str, _Held] = field(default_factory=dict)
    _uses: dict[str, KeyUse] = field(default_factory=dict)
    _judged: dict[tuple[frozenset[str], tuple[str, ...]], bool] = field(default_factory=dict)
    """By scopes and routes, if nothing else is checked: as many as there are kinds of keys and requests."""

    def __post_init__(self) -> None:
        self._expand = lru_cache(maxsize=_KINDS)(self.config.catalogue.expand)
        self._router = Router(self.config)
        log = self.config.access_log
        self.sampled = log is not None and log.sample_successes < 1

    def add_key(self, key: ApiKey) -> None:
        """Count the uses of this key from now on."""
        self._held[key.id] = _Held(key, self._expand(key.scopes))

    def forget_keys(self) -> None:
        """Forget all keys and what they were used for."""
        self._held.clear()
        self._uses.clear()

    @property
    def keys(self) -> Iterator[ApiKey]:
        return (held.key for held in self._held.values())

    def of(self, key_id: str) -> KeyUse:
        return self._uses.get(key_id, NO_USE)

    def add_total(self, total: UsageTotal) -> None:
        """Add the stored counts of a key."""
        held = self._held.get(total.key_id)
        if held is None:
            self.unknown_keys += total.count
            return
        use, reading = self._of(total.key_id), self._router.on(total.route, held.key)
        observed = observed_reason(total.reason)
        if observed in _NO_POLICY_PASSED:
            if observed == Reason.INSUFFICIENT_SCOPE and reading is not None:
                _add(use.observed, total.route, total.count)
            return
        reason = observed or total.reason
        if self._count(use, held, reading, total.route, reason, total.count) and reading is not None:
            for charge in reading.charges:
                peak_of(use.peaks, charge.quota, held.key, self.config.plans).add_total(charge, total)

    def add_route_total(self, total: UsageTotal) -> None:
        """Add the stored counts of all keys together."""
        counts = self.refused if total.reason in _NO_POLICY_PASSED else self.routes
        if observed_reason(total.reason) in _NO_POLICY_PASSED:
            counts = self.observed
        counts[total.route] += total.count

    def add_log(self, requests: Iterable[RecordedRequest], *, since: int, progress: Callable[[int], None]) -> None:
        """Count the requests of a log from `since` on (microseconds). progress: receives their number."""
        for number, request in enumerate(requests):
            at = _micros(request.time)
            if at is not None and at < since:
                self.earlier += 1
            else:
                self._add_request(request, at)
            if number % _BETWEEN == 0:
                progress(number)

    def _add_request(self, request: RecordedRequest, at: int | None) -> None:
        self.requests += 1
        if at is not None:
            self._note_time(at)
        self.sampled = self.sampled or request.sampled is not None
        reading = None if request.hidden else self._router.read(request.method, request.path)
        self._count_route(request, reading)
        if request.key_id is None:
            return
        held = self._held_by(request, request.key_id)
        if held is None:
            self.unknown_keys += 1
            return
        # Even if a request cannot be replayed, its logged route is known.
        reading = reading or self._router.on(request.route, held.key)
        route = reading.routes[0] if reading is not None and reading.routes else ""
        use = self._of(request.key_id)
        if request.would_deny in _NO_POLICY_PASSED:
            if request.would_deny == Reason.INSUFFICIENT_SCOPE and route:
                _add(use.observed, route, 1)
            return
        reason = request.would_deny or request.reason or ""
        if self._count(use, held, reading, route, reason, 1, request.quota) and reading is not None:
            for charge in reading.charges:
                peak_of(use.peaks, charge.quota, held.key, self.config.plans).add(charge, (at or 0) / _SECOND)

    def _count_route(self, request: RecordedRequest, reading: Reading | None) -> None:
        route = self._router.named(request.route) if reading is None else reading.route
        if route is not None:
            counts = self.refused if request.reason in _NO_POLICY_PASSED else self.routes
            if request.would_deny in _NO_POLICY_PASSED:
                counts = self.observed
            counts[route.name] += 1

    def _note_time(self, at: int) -> None:
        self.first = at if self.first is None or at < self.first else self.first
        self.last = at if self.last is None or at > self.last else self.last

    def _held_by(self, request: RecordedRequest, key_id: str) -> _Held | None:
        held = self._held.get(key_id)
        if not self.from_log or request.config is None or (held is not None and held.key.scopes == request.scopes):
            return held
        key = request.key
        if key is None or (held is None and len(self._held) >= MOST_KEYS):
            return None
        self.add_key(key)
        return self._held[key_id]

    def _of(self, key_id: str) -> KeyUse:
        found = self._uses.get(key_id)
        if found is None:
            found = self._uses[key_id] = KeyUse()
        return found

    def _count(
        self,
        use: KeyUse,
        held: _Held,
        reading: Reading | None,
        route: str,
        reason: str,
        count: int,
        quota: str | None = None,
    ) -> bool:
        """Whether the policy let the requests pass, then and today, and quotas were taken from. quota: used up."""
        if reason in _NO_POLICY_PASSED:
            if reason == Reason.INSUFFICIENT_SCOPE and route:
                _add(use.lacking, route, count)
            return False
        if reading is None or not self._passes(use, held, reading):
            use.changed += count
            return False
        use.requests += count
        _add(use.by_route, route, count)
        if reading.routes not in use.readings:
            use.readings[reading.routes] = reading
        if reason == Reason.QUOTA_EXCEEDED and quota is None:
            _add(use.over_quota, route, count)
        elif reason == Reason.QUOTA_EXCEEDED and quota is not None and quota in self.config.quotas:
            _add(use.used_up, quota, count)
        return reason != Reason.QUOTA_EXCEEDED

    def _passes(self, use: KeyUse, held: _Held, reading: Reading) -> bool:
        if reading.bound:
            return passes(reading, held.key, held.scopes)
        if reading.routes in use.readings:
            return True
        kind = (held.scopes, reading.routes)
        found = self._judged.get(kind)
        if found is None:
            if len(self._judged) >= _KINDS:
                self._judged.clear()
            found = self._judged[kind] = passes(reading, held.key, held.scopes)
        return found


def _add(counts: dict[str, int], name: str, count: int) -> None:
    counts[name] = counts.get(name, 0) + count


def _micros(time: str) -> int | None:
    """Microseconds of a time in a log; None if it is invalid, or at the end of the calendar."""
    try:
        at = microseconds(time)
    except ValueError:
        return None
    return at if at < _YEAR_9999 else None
