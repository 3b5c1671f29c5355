"""Finds the rules that decided on a test's request, and the routes, scopes and reasons that no test reaches."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sidecar.config.build.config import Config
from sidecar.config.errors import ConfigError
from sidecar.config.load import read_file
from sidecar.config.yaml_tree import Entries, Node, Scalar, read_nodes
from sidecar.core.errors import Reason
from sidecar.core.model import Deny, Policy, Route
from sidecar.core.policy import missing_scopes
from sidecar.core.routing import NO_ROUTE
from sidecar.gate.causes import causes
from sidecar.gate.explain import charges, refusal_of, requirements
from sidecar.rehearsal.policy_tests.comparison import forms_of, without
from sidecar.rehearsal.policy_tests.judge import Outcome


class Rule(NamedTuple):
    """A rule that decided. where: `file:line`, empty if there is none."""

    where: str
    text: str


class Places:
    """The places of sections that `Config` does not record. Reads the file when first asked."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._root: Node | None = None

    def of(self, *names: str) -> str:
        """`file:line` of the key that is reached by `names`; empty if there is none."""
        if self._root is None:
            try:
                self._root = read_nodes(read_file(self._path), self._path)
            except ConfigError:
                return ""
        node, found = self._root, None
        for name in names:
            if not isinstance(node, Entries):
                return ""
            found, node = next(((key, value) for key, value in node.entries if key.text == name), (None, node))
            if found is None:
                return ""
        return _where(found)


def _where(key: Scalar | None) -> str:
    return "" if key is None else f"{key.place.file}:{key.place.line}"


def rules(config: Config, outcome: Outcome, places: Places) -> list[Rule]:
    """The route first."""
    return list(_rules(config, outcome, places))


def _rules(config: Config, outcome: Outcome, places: Places) -> Iterator[Rule]:
    yield _of_route(outcome.decision.route, places)
    decision = refusal_of(outcome.decision)
    if decision is None:
        return
    match decision.reason:
        case Reason.QUOTA_EXCEEDED if decision.refused_quota is not None:
            quota = decision.refused_quota.quota
            yield Rule(places.of("quotas", quota.name), f"quota {quota.name}: {decision.refused_quota.limit}")
        case Reason.TOO_MANY_FAILURES:
            yield Rule(places.of("keys", "failures"), "keys.failures")
        case Reason.INSUFFICIENT_SCOPE if decision.route is not None and decision.principal is not None:
            for scope in sorted(missing_scopes(decision.route.policy, decision.principal.scopes)):
                yield Rule(places.of("scopes", scope), f"scope {scope}")


def _of_route(route: Route | None, places: Places) -> Rule:
    if route is None or route.name == NO_ROUTE:
        return Rule(places.of("unmatched") or places.of("routes"), "no route: what matches no route is denied")
    counted = charges(route.policy)
    demands = requirements(route.policy)
    return Rule(route.where, f"{route.name}: {demands}{f'; counts {counted}' if counted else ''}")


def reasons_why(config: Config, outcome: Outcome) -> Sequence[str]:
    """Sentences that say why a request is, or would be, refused; none if it is allowed. No sentence contains a key."""
    decision, key = refusal_of(outcome.decision), outcome.case.key.text
    if decision is None:
        return ()
    found = [*causes(config, outcome.case.head, key or None, decision)]
    if outcome.observed is not None:
        found.append(f"it goes on all the same, because {outcome.observed.because}")
    return [without(forms_of(config, key), sentence) if key else sentence for sentence in found]


class Gap(NamedTuple):
    """What no test reaches. kind: `route`, `scope` or `reason`. where: `file:line`, or empty."""

    kind: str
    name: str
    where: str
    missing: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """The number of things that tests should reach, how many are reached, and the rest in the configuration's order.

    A route counts twice: a test reaches it, and is let through. A scope, too: a test is let through with it, and
    another is refused for the lack of it. Each reason counts once.
    """

    config: str
    total: int
    reached: int
    gaps: Sequence[Gap]

    @property
    def percent(self) -> float:
        return 100.0 * self.reached / self.total


@dataclass(slots=True)
class Reached:
    """Records what outcomes reach, for one configuration."""

    routes: set[str] = field(default_factory=set)
    allowed: set[str] = field(default_factory=set)
    letting: set[str] = field(default_factory=set)
    lacking: set[str] = field(default_factory=set)
    reasons: set[Reason] = field(default_factory=set)

    def add(self, outcome: Outcome) -> None:
        """A refusal that is only observed counts as a refusal, not as an allowed request."""
        decision = outcome.decision
        route, principal = decision.route, decision.principal
        if route is not None:
            self.routes.add(route.name)
        if (refused := refusal_of(decision)) is not None:
            self._add_refusal(refused)
        elif route is not None:
            self.allowed.add(route.name)
            if principal is not None:
                self.letting |= _required(route.policy) & principal.scopes

    def _add_refusal(self, deny: Deny) -> None:
        route, principal = deny.route, deny.principal
        self.reasons.add(deny.reason)
        if deny.reason is Reason.INSUFFICIENT_SCOPE and route is not None and principal is not None:
            self.lacking |= missing_scopes(route.policy, principal.scopes)

    def coverage(self, config: Config) -> Coverage:
        places = Places(config.path)
        required = {scope for route in config.routes for scope in _required(route.policy) if scope}
        scopes = [scope for scope in config.catalogue.scopes if scope in required]
        lacked = [scope for scope in scopes if _can_lack(config, scope)]
        reasons = list(_reachable(config))
        gaps = [
            *self._routes(config.routes),
            *self._scopes(scopes, lacked, places),
            *(Gap("reason", str(reason), "", "no test gets it") for reason in reasons if reason not in self.reasons),
        ]
        open_routes = {route.name for route in config.routes if not route.policy.deny}
        every = {route.name for route in config.routes}
        return Coverage(
            config=config.path,
            total=len(every) + len(open_routes) + len(scopes) + len(lacked) + len(reasons),
            reached=len(every & self.routes)
            + len(open_routes & self.allowed)
            + len(self.letting.intersection(scopes))
            + len(self.lacking.intersection(lacked))
            + len(self.reasons.intersection(reasons)),
            gaps=gaps,
        )

    def _routes(self, routes: Iterable[Route]) -> Iterator[Gap]:
        for route in routes:
            if route.name not in self.routes:
                yield Gap("route", route.name, route.where, "no test reaches it")
            elif not route.policy.deny and route.name not in self.allowed:
                yield Gap("route", route.name, route.where, "no test is let through")

    def _scopes(self, scopes: Iterable[str], lacked: Collection[str], places: Places) -> Iterator[Gap]:
        for scope in scopes:
            where = places.of("scopes", scope)
            if scope not in self.letting:
                yield Gap("scope", scope, where, "no test is let through with it")
            if scope in lacked and scope not in self.lacking:
                yield Gap("scope", scope, where, "no test is refused for the lack of it")


def _required(policy: Policy) -> frozenset[str]:
    return policy.any_scopes | policy.all_scopes


def _can_lack(config: Config, scope: str) -> bool:
    """Whether a key can lack it: not if each key has exactly one scope, and all scopes include this one."""
    catalogue = config.catalogue
    return config.keys.scopes_per_key is None or any(scope not in catalogue.expand([one]) for one in catalogue.scopes)


def _reachable(config: Config) -> Iterator[Reason]:
    """The reasons for which this configuration can refuse a request, except for malformed requests and outages."""
    policies = [route.policy for route in config.routes]
    yield Reason.MISSING_CREDENTIAL
    yield from (Reason.INVALID_KEY, Reason.EXPIRED_KEY, Reason.DISABLED_KEY, Reason.REVOKED_KEY, Reason.RETIRED_KEY)
    yield Reason.NO_ROUTE
    if any(_required(policy) for policy in policies if not policy.deny):
        yield Reason.INSUFFICIENT_SCOPE
    if any(policy.tenant_param for policy in policies):
        yield Reason.WRONG_TENANT
    if any(policy.environment_param or policy.environments for policy in policies):
        yield Reason.WRONG_ENVIRONMENT
    if any(policy.refuses_keys is Reason.KEY_NOT_ACCEPTED for policy in policies):
        yield Reason.KEY_NOT_ACCEPTED
    if any(policy.charges for policy in policies):
        yield Reason.QUOTA_EXCEEDED
