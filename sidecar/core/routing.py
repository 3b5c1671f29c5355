"""The compiled route table: method and path to route, most specific first, independent of order.

Of two routes that match a request, the more specific is the one whose paths all belong to the other as well; of two
with the same paths, the one with fewer methods. If two overlap and neither is more specific, they need a third route
for exactly what they share, or are refused at load. So one matching route is always more specific than all others. A
search finds it first if it prefers literals to parameters, more fixed text to less, and both to `**`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from types import MappingProxyType
from typing import NamedTuple

from sidecar.core.errors import Denied, Reason
from sidecar.core.model import EVERY, Policy, Route
from sidecar.core.patterns import Parts, Pattern, parse_pattern, parts_of

# Methods: any token may be one, and case matters (RFC 9110 section 9.1). A service that ignores case treats `get` as
# GET, and would serve under one method's policy what another one protects. So only known methods and those that a route
# names pass, in their exact spelling; `*` means these.


STANDARD_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE")
"""RFC 9110 section 9.3, and RFC 5789. Metrics and spans name no others."""

KNOWN_METHODS = frozenset(STANDARD_METHODS) | {
    "ACL", "BASELINE-CONTROL", "BIND", "CHECKIN", "CHECKOUT", "COPY", "LABEL", "LINK", "LOCK", "MERGE", "MKACTIVITY",
    "MKCALENDAR", "MKCOL", "MKREDIRECTREF", "MKWORKSPACE", "MOVE", "ORDERPATCH", "PRI", "PROPFIND", "PROPPATCH",
    "QUERY", "REBIND", "REPORT", "SEARCH", "UNBIND", "UNCHECKOUT", "UNLINK", "UNLOCK", "UPDATE", "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
    "M-SEARCH", "NOTIFY", "SUBSCRIBE", "UNSUBSCRIBE", "PURGE", "SOURCE",
}  # fmt: skip
"""IANA's registry of methods, then those of UPnP, of caches and of Icecast."""

NEVER_ROUTED = frozenset({"CONNECT", "TRACE"})
"""Methods that are refused before routing."""

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_KNOWN_BY_FOLDED = {method.upper(): method for method in KNOWN_METHODS}


def is_token(text: str) -> bool:
    """RFC 9110 section 5.6.2."""
    return _TOKEN.fullmatch(text) is not None


def known_spelling(method: str) -> str | None:
    """The known method that equals `method`, ignoring case; None if there is none."""
    return _KNOWN_BY_FOLDED.get(method.upper())


class MethodRules:
    """named: the methods that routes name; no two of them differ only in case."""

    def __init__(self, named: Iterable[str]) -> None:
        unknown = {method for method in named if known_spelling(method) is None}
        self._proper = (KNOWN_METHODS | unknown) - NEVER_ROUTED

    def check(self, method: str) -> None:
        """Raises Denied for CONNECT, TRACE, and any method that is neither known nor named in this spelling."""
        if method not in self._proper:
            raise Denied(Reason.METHOD_NOT_ALLOWED)


NO_ROUTE = "(none)"
"""The route of an unmatched request in metrics and usage."""

EVERYTHING = "/**"
"""The pattern of every path."""


_MOST_OVERLAPS = 100
"""Most pairs that are listed: there can be as many as routes squared."""

_ANYTHING = "\0"
"""A segment and a method that no route names."""
_NOWHERE: frozenset[int] = frozenset()


class Match(NamedTuple):
    """A route with the values that its policy binds. Two readings of a path agree if their matches are equal."""

    route: Route
    tenant: str | None = None
    environment: str | None = None
    unslashed: "Match | None" = None
    """The other match, for the path without its trailing slash: many frameworks treat the two as one resource."""


class _Binding(NamedTuple):
    """The position of a parameter's value in a path."""

    position: int
    parts: Parts

    def value(self, segments: Sequence[str]) -> str:
        return self.parts.value(segments[self.position])


@dataclass(slots=True)
class _Leaf:
    route: Route
    plain: Match | None
    """The match itself, if no part of the path is bound."""
    tenant: _Binding | None
    environment: _Binding | None
    environments: Mapping[str, str]
    """Aliases of environments in paths, to their names."""

    def match(self, segments: Sequence[str]) -> Match:
        if self.plain is not None:
            return self.plain
        tenant = self.tenant.value(segments) if self.tenant else None
        environment = self.environment.value(segments) if self.environment else None
        if environment is not None:
            environment = self.environments.get(environment, environment)
        return Match(self.route, tenant, environment)


@dataclass(slots=True)
class _Node:
    literals: dict[str, "_Node"] = field(default_factory=dict)
    fixed: dict[tuple[str, str], tuple[Parts, "_Node"]] = field(default_factory=dict)
    """Parameters with fixed text before or after them, by these texts."""
    lengths: tuple[tuple[int, int], ...] = ()
    """Lengths of the texts in `fixed`, each pair once, the longest first. Few, however many texts there are."""
    param: "_Node | None" = None
    leaf: _Leaf | None = None
    rest: _Leaf | None = None
    verbs: bool = False
    """Whether a verb may follow a parameter here, under any method: `{id}:cancel`."""

    def child(self, segment: str) -> "_Node":
        """The child for a segment of a pattern, created if missing."""
        parts = parts_of(segment)
        if parts is None:
            return self.literals.setdefault(segment, _Node())
        key = (parts.prefix, parts.suffix)
        if key == ("", ""):
            self.param = self.param or _Node()
            return self.param
        pairs = {*self.lengths, (len(parts.prefix), len(parts.suffix))}
        self.lengths = tuple(sorted(pairs, key=lambda pair: (-sum(pair), pair)))
        return self.fixed.setdefault(key, (parts, _Node()))[1]

    def fitting(self, segment: str) -> Iterator[tuple[Parts, "_Node"]]:
        """Entries of `fixed` that match a segment, the one with the most fixed text first."""
        for before, after in self.lengths:
            end = len(segment) - after
            if before < end and (found := self.fixed.get((segment[:before], segment[end:]))):
                yield found


class RouteTable:
    """Finds routes in time that does not depend on their number.

    environments: aliases of environments in paths, to their names.
    colon_verbs: if a route has `{id}:cancel`, a parameter in the same place does not match a colon. Otherwise a route
    for `/jobs/{id}` would also open `/jobs/5:purge`, which is not job 5 to the service.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        *,
        case_sensitive: bool = True,
        environments: Mapping[str, str] = MappingProxyType({}),
        colon_verbs: bool = True,
    ) -> None:
        self._case_sensitive = case_sensitive
        units = list(_units(routes, case_sensitive))
        named = {method for unit in units for method in unit.methods if method != EVERY}
        self._trees = {method: _tree(units, method, environments) for method in named}
        self._other = _tree(units, EVERY, environments)
        self._verbs = _verbs(units) if colon_verbs else None

    def match(self, method: str, path: str) -> Match | None:
        """The most specific route for `method` and `path`, or None."""
        segments = path.split("/")
        del segments[0]
        compared = segments if self._case_sensitive else [segment.lower() for segment in segments]
        tree = self._trees.get(method, self._other)
        plain = _NOWHERE if self._verbs is None or ":" not in path else _without_colon(self._verbs, compared)
        leaf = _find(tree, compared, 0, plain)
        if leaf is None:
            return None
        match = leaf.match(segments)
        if segments[-1] or len(segments) == 1:
            return match
        other = _find(tree, compared[:-1], 0, plain)
        return match if other is None or other is leaf else match._replace(unslashed=other.match(segments))

    def methods(self, paths: Iterable[str]) -> tuple[str, ...]:
        """The methods that routes have for every one of `paths`, those of RFC 9110 first. Looks up each method."""
        standard = [method for method in STANDARD_METHODS if method not in NEVER_ROUTED]
        others = sorted(self._trees.keys() - {*STANDARD_METHODS})
        return tuple(method for method in (*standard, *others) if all(self._takes(method, path) for path in paths))

    def _takes(self, method: str, path: str) -> bool:
        match = self.match(method, path)
        while match is not None and match.route.name != NO_ROUTE and not match.route.policy.deny:
            if match.unslashed is None:
                return True
            match = match.unslashed
        return False


class Overlap(NamedTuple):
    """Two routes that both match some request, and neither is more specific.

    missing: the routes that would resolve it; empty if the two are the same.
    """

    route: Route
    other: Route
    missing: tuple[str, ...]


def overlaps(routes: Sequence[Route], *, case_sensitive: bool = True) -> list[Overlap]:
    """The first hundred or so overlaps."""
    units = list(_units(routes, case_sensitive))
    named = _by_shape(units)
    found: dict[tuple[int, int], tuple[_Unit, _Unit, dict[str, list[str]]]] = {}
    for one, other in _rivals(units):
        missing = one.unresolved(other, named)
        if missing is not None:
            _, _, methods = found.setdefault((id(one.route), id(other.route)), (one, other, {}))
            for pattern in missing:
                methods.setdefault(str(pattern), []).append(one.shared_methods(other))
        if len(found) >= _MOST_OVERLAPS:
            break
    return [
        Overlap(one.route, other.route, tuple(f"{'|'.join(names)} {pattern}" for pattern, names in methods.items()))
        for one, other, methods in found.values()
    ]


def unreachable(routes: Sequence[Route]) -> list[tuple[Route, str]]:
    """Routes that no request can ever reach, and why."""
    table = RouteTable([replace(route, policy=Policy()) for route in routes])
    deepest = max((len(parse_pattern(route.pattern).segments) for route in routes), default=0)
    found = []
    for route in routes:
        if barred := sorted(route.methods & NEVER_ROUTED):
            found.append((route, f"{' and '.join(barred)} requests are always answered 405"))
        elif not _reached(route, table, deepest + 1):
            found.append((route, "other, more specific routes match all of its requests"))
    return found


def _reached(route: Route, table: RouteTable, depth: int) -> bool:
    """Whether a representative request, made of segments that no pattern names, reaches `route`."""
    pattern = parse_pattern(route.pattern)
    stem = pattern.example(_ANYTHING)
    tails = [[*[_ANYTHING] * more, *end] for more in range(depth + 1) for end in ([], [""])] if pattern.rest else [[]]
    matches = [
        table.match(_ANYTHING if method == EVERY else method, "/" + "/".join([*stem, *tail]))
        for method in route.methods
        for tail in tails
    ]
    # If the same pattern occurs twice, that is the error to report.
    return any(match is not None and pattern.within(parse_pattern(match.route.pattern)) for match in matches)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    """A route for the methods that count as one: `GET` with its `HEAD`, any other method alone, or every one."""

    route: Route
    methods: frozenset[str]
    pattern: Pattern

    @property
    def first_literals(self) -> tuple[str, ...]:
        return tuple(takewhile(lambda segment: parts_of(segment) is None, self.pattern.segments))

    def unresolved(self, other: "_Unit", named: "_Shapes") -> tuple[Pattern, ...] | None:
        """None if one of the two is more specific, or no request matches both, or another route resolves them.

        Otherwise the patterns of routes that would resolve them; empty if the two are the same.
        """
        # Hundreds of routes below one path are a hundred thousand pairs, nearly all of which end here.
        if not self._shares_methods(other) or not self.pattern.meets(other.pattern):
            return None
        if self.pattern.shape == other.pattern.shape:
            return () if self.methods == other.methods else None
        if self.pattern.within(other.pattern) or other.pattern.within(self.pattern):
            return None
        both = self.methods if EVERY in other.methods else other.methods if EVERY in self.methods else None
        methods = self.methods & other.methods if both is None else both
        shared = self.pattern.shared(other.pattern)
        missing = [
            pattern
            for pattern in shared
            if not any(EVERY in unit.methods or methods <= unit.methods for unit in named.get(pattern.shape, ()))
        ]
        return tuple(missing) or None

    def _shares_methods(self, other: "_Unit") -> bool:
        return EVERY in self.methods or EVERY in other.methods or not self.methods.isdisjoint(other.methods)

    def shared_methods(self, other: "_Unit") -> str:
        """The shared methods, as a route names them; empty if there are none."""
        if EVERY in self.methods or EVERY in other.methods:
            methods = other.methods if EVERY in self.methods else self.methods
        else:
            methods = self.methods & other.methods
        return "GET" if methods == _READ else "|".join(methods)


_Shapes = dict[Pattern, list[_Unit]]


def _by_shape(units: Iterable[_Unit]) -> _Shapes:
    shapes: _Shapes = {}
    for unit in units:
        shapes.setdefault(unit.pattern.shape, []).append(unit)
    return shapes


def _rivals(units: Iterable[_Unit]) -> Iterator[tuple[_Unit, _Unit]]:
    """Pairs of units of two routes that may overlap: the initial literals of one are a prefix of the other."""
    at: dict[tuple[str, ...], list[_Unit]] = {}
    below: dict[tuple[str, ...], list[_Unit]] = {}
    for unit in units:
        literals = unit.first_literals
        above = [literals[:depth] for depth in range(len(literals) + 1)]
        rivals = [rival for prefix in above for rival in at.get(prefix, ())] + below.get(literals, [])
        yield from ((rival, unit) for rival in rivals if rival.route is not unit.route)
        at.setdefault(literals, []).append(unit)
        for prefix in above[:-1]:
            below.setdefault(prefix, []).append(unit)


_READ = frozenset({"GET", "HEAD"})


def _units(routes: Sequence[Route], case_sensitive: bool) -> Iterator[_Unit]:
    for route in routes:
        pattern = parse_pattern(route.pattern)
        if not case_sensitive:
            pattern = pattern.lower()
        groups = [_READ] if route.methods >= _READ else []
        groups += [frozenset({method}) for method in sorted(route.methods) if groups == [] or method not in _READ]
        for methods in groups:
            yield _Unit(route=route, methods=methods, pattern=pattern)


def _tree(units: Sequence[_Unit], method: str, environments: Mapping[str, str]) -> _Node:
    """All routes for `method`; if several have one pattern, the one with the fewest methods wins."""
    fitting = [unit for unit in units if method in unit.methods or EVERY in unit.methods]
    root = _Node()
    for unit in sorted(fitting, key=lambda unit: (EVERY in unit.methods, len(unit.methods))):
        _insert(root, unit, environments)
    return root


def _insert(root: _Node, unit: _Unit, environments: Mapping[str, str]) -> None:
    node = root
    for segment in unit.pattern.segments:
        node = node.child(segment)
    if unit.pattern.rest:
        node.rest = node.rest or _leaf(unit, environments)
    else:
        node.leaf = node.leaf or _leaf(unit, environments)


def _leaf(unit: _Unit, environments: Mapping[str, str]) -> _Leaf:
    policy = unit.route.policy
    tenant, environment = _binding(unit.pattern, policy.tenant_param), _binding(unit.pattern, policy.environment_param)
    plain = Match(unit.route) if tenant is None and environment is None else None
    return _Leaf(unit.route, plain, tenant, environment, environments)


def _binding(pattern: Pattern, name: str | None) -> _Binding | None:
    if not name:
        return None
    found = ((position, parts_of(segment)) for position, segment in enumerate(pattern.segments))
    return next(_Binding(position, parts) for position, parts in found if parts and parts.name == name)


def _find(node: _Node, segments: Sequence[str], depth: int, plain: frozenset[int]) -> _Leaf | None:
    """plain: positions at which no parameter matches a colon."""
    rest = None
    for place in range(depth, len(segments)):
        rest, segment = node.rest or rest, segments[place]
        literal, param = node.literals.get(segment), node.param
        if not segment or place in plain:
            param = None
        if node.fixed or (literal is not None and param is not None):
            if found := _find_preferred(node, literal, segments, place, plain):
                return found
            literal = None
        below = param if literal is None else literal
        if below is None:
            return rest
        node = below
    return node.leaf or node.rest or rest


def _find_preferred(
    node: _Node, literal: _Node | None, segments: Sequence[str], depth: int, plain: frozenset[int]
) -> _Leaf | None:
    """Search below the literal, then below parameters with fixed text: both are preferred to one without."""
    if literal is not None and (found := _find(literal, segments, depth + 1, plain)):
        return found
    if node.fixed:
        for parts, child in node.fitting(segments[depth]):
            if depth in plain and ":" in parts.value(segments[depth]):
                continue
            if found := _find(child, segments, depth + 1, plain):
                return found
    return None


def _verbs(units: Sequence[_Unit]) -> _Node | None:
    """The places where a verb may follow a parameter; None if there are none."""
    root, found = _Node(), False
    for unit in units:
        node = root
        for segment in unit.pattern.segments:
            parts = parts_of(segment)
            if parts is not None and parts.has_verb:
                node.verbs = found = True
            node = node.child(segment)
    return root if found else None


def _without_colon(root: _Node, segments: Sequence[str]) -> frozenset[int]:
    """Positions whose segment has a colon and where a verb may follow a parameter."""
    found, nodes = set(), [root]
    for depth, segment in enumerate(segments):
        if ":" in segment and any(node.verbs for node in nodes):
            found.add(depth)
        nodes = [below for node in nodes for below in _taking(node, segment)]
    return frozenset(found)


def _taking(node: _Node, segment: str) -> Iterator[_Node]:
    if segment in node.literals:
        yield node.literals[segment]
    yield from (below for _, below in node.fitting(segment))
    if node.param is not None and segment:
        yield node.param
