"""Compares an OpenAPI document with a configuration, and finds what is missing or different on either side."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sidecar.config.build.config import Config
from sidecar.config.errors import Place, Problem, did_you_mean
from sidecar.core.model import EVERY, Policy, Route
from sidecar.core.patterns import Pattern, parse_pattern
from sidecar.core.policy import missing_scopes
from sidecar.core.routing import NO_ROUTE, RouteTable, overlaps
from sidecar.gate.compile import route_table
from sidecar.rehearsal.openapi.description import Description
from sidecar.rehearsal.openapi.draft import route_text
from sidecar.rehearsal.openapi.requirements import Endpoint, Operation, Requirement, ScopeNames, endpoints_of
from sidecar.rehearsal.openapi.tree import short

Kind = Literal["uncovered", "unmatched", "security", "ambiguous", "remark"]
_ANYTHING = "\0"
"""A segment that no route names."""
_MOST_LISTED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One finding, with its place in the document, and in the configuration if it concerns a route.

    A remark is not a warning: it says that something in the document is read differently from how it is written.
    """

    kind: Kind
    message: str
    place: Place
    operation: str = ""
    route: Route | None = None

    @property
    def is_warning(self) -> bool:
        return self.kind != "remark"

    def __str__(self) -> str:
        """One line: where, and what."""
        word = "warning" if self.is_warning else "note"
        message = f"{word}: {self.message}"
        line, column = self.place.line, self.place.column
        return str(Problem(file=self.place.file, line=line, column=column, path="", message=message))


def compare(
    description: Description, config: Config, *, progress: Callable[[int], None] = lambda _: None
) -> list[Finding]:
    """Yields findings in the order of the document, then routes that match no operation, in the order of the
    configuration.

    progress: called with the number of operations so far.
    """
    endpoints = endpoints_of(description.operations)
    comparison = _Comparison(config, ScopeNames(description.scopes), endpoints)
    for number, endpoint in enumerate(endpoints):
        progress(number)
        comparison.add(endpoint)
    found = [*comparison.found, *_remarks(description, endpoints), *comparison.ambiguous(endpoints)]
    if endpoints and not comparison.met:
        message = "no route covers any operation: if paths begin with something else, name it with --base-path"
        found.append(Finding(kind="remark", message=message, place=Place(description.file)))
    found.sort(key=lambda finding: (finding.place.line, finding.place.column, not finding.is_warning))
    return [*found, *comparison.unmatched(endpoints)]


class _Comparison:
    def __init__(self, config: Config, names: ScopeNames, endpoints: Sequence[Endpoint]) -> None:
        self.config = config
        # Names of scopes depend on the order in which they are requested: use that of the draft.
        self.requirements = {id(endpoint): endpoint.requirement(names) for endpoint in endpoints}
        self.endpoints = endpoints
        self.table: RouteTable = route_table(config)
        self.found: list[Finding] = []
        self.met: dict[int, Route] = {}
        """Routes that match an operation, by identity."""
        self.unknown: set[str] = set()
        """Scopes that were already reported."""

    def add(self, endpoint: Endpoint) -> None:
        routes: dict[int, Route] = {}
        missed = False
        for path in _samples(endpoint.pattern):
            route = self.route(endpoint.method, path)
            if route is None or route.policy.deny:
                missed = True
            if route is not None:
                self.met[id(route)] = routes[id(route)] = route
        if missed:
            self.found.append(self.uncovered(endpoint, list(routes.values())))
        for route in routes.values():
            if not route.policy.deny and route.policy.refuses_keys is None and not self.is_anothers(route, endpoint):
                self.found.extend(self.security(endpoint, route))

    def is_anothers(self, route: Route, endpoint: Endpoint) -> bool:
        """Whether a route for a part of an endpoint's paths belongs to another operation, or to the paths that both
        share.
        """
        pattern = parse_pattern(route.pattern)
        if pattern.shape == endpoint.pattern.shape or not pattern.within(endpoint.pattern):
            return False
        # A route for GET also matches HEAD.
        methods = {"HEAD", "GET"} if endpoint.method == "HEAD" else {endpoint.method}
        others = [each for each in self.endpoints if each.method in methods and pattern.within(each.pattern)]
        opened = any(self.requirements[id(each)].public for each in others)
        return len(others) > 1 and (opened or not route.policy.public)

    def route(self, method: str, path: str) -> Route | None:
        match = self.table.match(method, path)
        return None if match is None or match.route.name == NO_ROUTE else match.route

    def uncovered(self, endpoint: Endpoint, routes: Sequence[Route]) -> Finding:
        operation = endpoint.operations[0]
        denying = next((route for route in routes if route.policy.deny), None)
        if denying is not None:
            message = f"`{_shown(operation)}` is denied by `{denying.name}` ({denying.where})"
        else:
            part = "only a part of its paths is" if routes else "no route covers it"
            part = f"{part} covered, by `{routes[0].name}` ({routes[0].where})" if routes else part
            entry = route_text(f"{endpoint.method} {endpoint.pattern}", self.requirements[id(endpoint)])
            message = f"`{_shown(operation)}`: {part}: add `{entry}`{self.near(endpoint)}"
        return Finding(
            kind="uncovered", message=message, place=operation.place, operation=operation.name, route=denying
        )

    def near(self, endpoint: Endpoint) -> str:
        """A route that differs by a slash at its end, or by its methods."""
        path = next(_samples(endpoint.pattern))
        other = path[:-1] if path.endswith("/") else f"{path}/"
        route = self.route(endpoint.method, other) if other else None
        if route is not None and not route.policy.deny:
            return f"; but for the slash at its end, `{route.name}` ({route.where}) does"
        methods = self.table.methods([path])
        return f"; the path has routes for {', '.join(methods)}" if methods else ""

    # Security.

    def security(self, endpoint: Endpoint, route: Route) -> Iterator[Finding]:
        said = [operation for operation in endpoint.operations if operation.public or operation.security is not None]
        if len(said) < len(endpoint.operations):
            return
        requirement = self.requirements[id(endpoint)]
        operation = said[0]
        where = f"`{route.name}` ({route.where})"
        difference = self.disagreement(requirement, route.policy, operation, where)
        if difference:
            message = f"`{_shown(operation)}`: {difference}"
            yield Finding(
                kind="security", message=message, place=operation.place, operation=operation.name, route=route
            )

    def disagreement(self, wanted: Requirement, policy: Policy, operation: Operation, where: str) -> str:
        """Empty if both let the same callers in."""
        if wanted.public and policy.public:
            return ""
        if wanted.public:
            return f"the document opens it to everybody, but {where} needs a key"
        if policy.public:
            return f"the document requires credentials, but {where} is public"
        if wanted.from_tag:
            return ""
        unknown = sorted((wanted.any_scopes | wanted.all_scopes) - self.config.catalogue.scopes.keys())
        if unknown:
            return self.unknown_scopes(unknown, where)
        return self.scopes(wanted, policy, where)

    def unknown_scopes(self, unknown: Sequence[str], where: str) -> str:
        """Each scope is reported once, however many operations name it."""
        new = [name for name in unknown if name not in self.unknown]
        self.unknown.update(new)
        if not new:
            return ""
        hints = [f"'{name}'{did_you_mean(name, self.config.catalogue.scopes)}" for name in new]
        return f"the document requires {', '.join(hints)}, which is not in `scopes`; {where} covers it"

    def scopes(self, wanted: Requirement, policy: Policy, where: str) -> str:
        expand = self.config.catalogue.expand
        for granted in _grants(wanted.policy):
            if missing := missing_scopes(policy, expand(granted)):
                return f"{_listed(granted)} is enough for the document, but {where} requires {_listed(missing)}"
        for granted in _grants(policy):
            if missing := missing_scopes(wanted.policy, expand(granted)):
                held = _listed(granted) if granted else "no scope at all"
                return f"the document requires {_listed(missing)}, but for {where} {held} is enough"
        return ""

    # Overlaps, and routes of no operation.

    def ambiguous(self, endpoints: Sequence[Endpoint]) -> Iterator[Finding]:
        """Paths that two templates match and for which the configuration has no route of their own."""
        by_name = {f"{endpoint.method} {endpoint.pattern}": endpoint for endpoint in endpoints}
        made = [_as_route(endpoint, name) for name, endpoint in by_name.items()]
        for overlap in overlaps(made, case_sensitive=self.config.case_sensitive):
            one, other = by_name[overlap.route.name], by_name[overlap.other.name]
            for name in overlap.missing:
                method, _, text = name.partition(" ")
                if (deciding := self.deciding(method, parse_pattern(text), one, other)) is not None:
                    yield _ambiguous(name, one.operations[0], other.operations[0], deciding)

    def deciding(self, method: str, shared: Pattern, one: Endpoint, other: Endpoint) -> Route | None:
        """The route that decides on the paths that two operations share; None if it is the right one."""
        method = method.partition("|")[0]
        route = self.route(method, next(_samples(shared)))
        own = [self.route(each.method, next(_samples(each.pattern))) for each in (one, other)]
        if route is None or (own[0] is route and own[1] is route):
            return None
        # A route for less than both operations shows that its author considered the overlap.
        pattern = parse_pattern(route.pattern)
        return route if any(each.pattern.within(pattern) for each in (one, other)) else None

    def unmatched(self, endpoints: Sequence[Endpoint]) -> Iterator[Finding]:
        """The document need not have routes that deny, or to which the sidecar itself responds."""
        for route in self.config.routes:
            if id(route) in self.met or route.policy.deny or route.policy.respond is not None:
                continue
            pattern = self.folded(parse_pattern(route.pattern))
            if not any(
                _takes(route, endpoint.method) and pattern.meets(self.folded(endpoint.pattern))
                for endpoint in endpoints
            ):
                file, _, line = route.where.rpartition(":")
                message = f"`{route.name}` matches no operation of the document"
                yield Finding(kind="unmatched", message=message, place=Place(file, int(line), 1), route=route)

    def folded(self, pattern: Pattern) -> Pattern:
        return pattern if self.config.case_sensitive else pattern.lower()


def _samples(pattern: Pattern) -> Iterator[str]:
    """Sample paths of a pattern, made of segments that no pattern names."""
    stem = pattern.example(_ANYTHING)
    for tail in ((_ANYTHING,), (_ANYTHING, _ANYTHING)) if pattern.rest else ((),):
        yield "/" + "/".join((*stem, *tail))


def _takes(route: Route, method: str) -> bool:
    return method in route.methods or EVERY in route.methods


def _as_route(endpoint: Endpoint, name: str) -> Route:
    methods = frozenset({"GET", "HEAD"} if endpoint.method == "GET" else {endpoint.method})
    return Route(name=name, methods=methods, pattern=str(endpoint.pattern), policy=Policy())


def _grants(policy: Policy) -> Iterator[frozenset[str]]:
    """The fewest scopes with which a key may pass."""
    for scope in sorted(policy.any_scopes) or ("",):
        yield policy.all_scopes | ({scope} if scope else set())


def _listed(scopes: Iterable[str]) -> str:
    return " and ".join(f"'{scope}'" for scope in sorted(scopes))


def _shown(operation: Operation) -> str:
    return short(operation.name)


def _ambiguous(name: str, one: Operation, other: Operation, route: Route) -> Finding:
    where = f"{one.place.file}:{one.place.line}"
    message = (
        f"`{_shown(other)}` and `{_shown(one)}` ({where}) share paths, and neither is more specific: "
        f"`{route.name}` ({route.where}) decides; add `{name}`"
    )
    return Finding(kind="ambiguous", message=message, place=other.place, operation=other.name, route=route)


def _remarks(description: Description, endpoints: Sequence[Endpoint]) -> Iterator[Finding]:
    for problem in description.remarks:
        yield Finding(kind="remark", message=problem.message, place=_place(problem))
    for endpoint in endpoints:
        operation, *others = endpoint.operations
        if others:
            listed = ", ".join(f"`{_shown(each)}` (line {each.place.line})" for each in others[:_MOST_LISTED])
            message = f"`{_shown(operation)}` is one path to a router with {listed}"
            yield Finding(kind="remark", message=message, place=operation.place, operation=operation.name)
        for remark in operation.remarks:
            message = f"`{_shown(operation)}`: {remark}"
            yield Finding(kind="remark", message=message, place=operation.place, operation=operation.name)


def _place(problem: Problem) -> Place:
    return Place(problem.file, problem.line, problem.column)
