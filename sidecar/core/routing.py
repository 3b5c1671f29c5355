"""The compiled route table: method and path to route, most specific first, whatever the order.

Specificity as in Go 1.22's ServeMux: of two routes that match a request, the one whose requests are all the
other's as well is the more specific. Two that overlap with neither more specific are refused at load, so
the routes that match one request form a chain, and a walk that prefers literals over parameters over `**`
finds the end of it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from types import MappingProxyType
from typing import NamedTuple

from sidecar.core.errors import Denied, Reason
from sidecar.core.model import EVERY, Policy, Route

# Path patterns: literal segments, `{name}` for one segment, `**` for the rest (also nothing).


_LITERAL = re.compile(r"[A-Za-z0-9\-._~!$&'()+,=:@]+")
_PARAM = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """Segments in order; a parameter is `{name}`. `rest` is whether `**` follows."""

    segments: tuple[str, ...]
    rest: bool

    @property
    def params(self) -> tuple[str, ...]:
        return tuple(segment[1:-1] for segment in self.segments if is_param(segment))

    def lower(self) -> "Pattern":
        """The pattern with its literals in lower case, for paths whose case does not matter."""
        folded = tuple(segment if is_param(segment) else segment.lower() for segment in self.segments)
        return Pattern(segments=folded, rest=self.rest)

    def within(self, other: "Pattern") -> bool:
        """Whether every path of this pattern is one of `other`'s."""
        if len(self.segments) < len(other.segments):
            return False
        pairs = zip(self.segments, other.segments, strict=False)
        if not all(mine == theirs or (is_param(theirs) and _fills(mine)) for mine, theirs in pairs):
            return False
        return other.rest or (len(self.segments) == len(other.segments) and not self.rest)

    def meets(self, other: "Pattern") -> bool:
        """Whether some path is one of both."""
        pairs = zip(self.segments, other.segments, strict=False)
        if not all(
            mine == theirs or (is_param(mine) and _fills(theirs)) or (is_param(theirs) and _fills(mine))
            for mine, theirs in pairs
        ):
            return False
        if len(self.segments) == len(other.segments):
            return True
        return self.rest if len(self.segments) < len(other.segments) else other.rest


def is_param(segment: str) -> bool:
    return segment.startswith("{")


def _fills(segment: str) -> bool:
    return segment != ""


def parse_pattern(text: str) -> Pattern:
    """Raises ValueError with what is wrong and what to write instead."""
    if not text.startswith("/"):
        raise ValueError(f"a pattern begins with '/': write '/{text}'")
    segments = text[1:].split("/")
    rest = segments[-1] == "**"
    if rest:
        segments.pop()
    for position, segment in enumerate(segments):
        if segment or position < len(segments) - 1 or rest:
            _check_segment(segment)
    pattern = Pattern(segments=tuple(segments), rest=rest)
    if len(set(pattern.params)) < len(pattern.params):
        raise ValueError("a parameter stands twice in one pattern")
    return pattern


def _check_segment(segment: str) -> None:
    if segment == "":
        raise ValueError("'//' can never match: merge the slashes")
    if segment == "**":
        raise ValueError("'**' stands for the rest of the path: nothing may follow it")
    if "*" in segment:
        raise ValueError(f"'{segment}': '*' cannot be part of a segment; use {{name}} for one segment, ** for the rest")
    if "{" in segment or "}" in segment:
        if not _PARAM.fullmatch(segment):
            raise ValueError(f"'{segment}': a parameter is a whole segment such as {{name}}")
        return
    if segment in (".", "..") or not _LITERAL.fullmatch(segment):
        raise ValueError(
            f"'{segment}' can never match: write the segment as clients send it, without % ; ? # or dots alone"
        )


# Methods: any token may be one, and its case counts (RFC 9110 section 9.1). A service that does not mind the case takes
# `get` for GET, and would serve under the policy of one method what another one guards. So only known methods and those
# that a route names are let through, in their own spelling; `*` stands for these.


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
"""Methods that are refused before any route is looked at."""

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_KNOWN_BY_FOLDED = {method.upper(): method for method in KNOWN_METHODS}


def is_token(text: str) -> bool:
    """RFC 9110 section 5.6.2."""
    return _TOKEN.fullmatch(text) is not None


def known_spelling(method: str) -> str | None:
    """The known method that `method` is, or is but for its case; None where it is none."""
    return _KNOWN_BY_FOLDED.get(method.upper())


class MethodRules:
    """named: the methods that routes name; no two of them differ in case only."""

    def __init__(self, named: Iterable[str]) -> None:
        unknown = {method for method in named if known_spelling(method) is None}
        self._proper = (KNOWN_METHODS | unknown) - NEVER_ROUTED

    def check(self, method: str) -> None:
        """Raises Denied for CONNECT, TRACE, and whatever is neither known nor named, as another spelling of one is."""
        if method not in self._proper:
            raise Denied(Reason.METHOD_NOT_ALLOWED)


NO_ROUTE = "(none)"
"""In metrics and usage: the route of a request that no route matches."""

EVERYTHING = "/**"
"""The pattern of every path."""


_MOST_OVERLAPS = 100
"""There can be as many pairs as routes squared, and nobody reads them all."""

_ANYTHING = "\0"
"""A segment and a method that no route names."""


class Match(NamedTuple):
    """A route with the values that its policy binds. Two readings of a path agree when their matches are equal."""

    route: Route
    tenant: str | None = None
    environment: str | None = None
    unslashed: "Match | None" = None
    """Another match, for the path without its trailing slash: many frameworks take the two for one resource."""


@dataclass(slots=True)
class _Leaf:
    route: Route
    plain: Match | None
    """The match itself, where nothing of the path is bound."""
    tenant_at: int
    environment_at: int
    environments: Mapping[str, str]
    """Other names of environments in paths, to their own."""

    def match(self, segments: Sequence[str]) -> Match:
        if self.plain is not None:
            return self.plain
        tenant = segments[self.tenant_at] if self.tenant_at >= 0 else None
        environment = segments[self.environment_at] if self.environment_at >= 0 else None
        if environment is not None:
            environment = self.environments.get(environment, environment)
        return Match(self.route, tenant, environment)


@dataclass(slots=True)
class _Node:
    literals: dict[str, "_Node"] = field(default_factory=dict)
    param: "_Node | None" = None
    leaf: _Leaf | None = None
    rest: _Leaf | None = None


class RouteTable:
    """Answers in time that does not depend on the number of routes.

    environments: other names of environments in paths, to their own.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        *,
        case_sensitive: bool = True,
        environments: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._case_sensitive = case_sensitive
        units = list(_units(routes, case_sensitive))
        named = {method for unit in units for method in unit.methods if method != EVERY}
        self._trees = {method: _tree(units, method, environments) for method in named}
        self._other = _tree(units, EVERY, environments)

    def match(self, method: str, path: str) -> Match | None:
        """The most specific route for `method` and `path`, or None."""
        segments = path.split("/")
        del segments[0]
        compared = segments if self._case_sensitive else [segment.lower() for segment in segments]
        tree = self._trees.get(method, self._other)
        leaf = _find(tree, compared, 0)
        if leaf is None:
            return None
        match = leaf.match(segments)
        if segments[-1] or len(segments) == 1:
            return match
        other = _find(tree, compared[:-1], 0)
        return match if other is None or other is leaf else match._replace(unslashed=other.match(segments))


def overlaps(routes: Sequence[Route], *, case_sensitive: bool = True) -> list[tuple[Route, Route]]:
    """Pairs that match some request both, neither the more specific one; the first hundred or so of them."""
    found: dict[tuple[int, int], tuple[Route, Route]] = {}
    # Two patterns can meet only where the literals that one begins with begin the other, too.
    at: dict[tuple[str, ...], list[_Unit]] = {}
    below: dict[tuple[str, ...], list[_Unit]] = {}
    for unit in _units(routes, case_sensitive):
        literals = unit.first_literals
        above = [literals[:depth] for depth in range(len(literals) + 1)]
        if len(found) >= _MOST_OVERLAPS:
            break
        rivals = [rival for prefix in above for rival in at.get(prefix, ())] + below.get(literals, [])
        for rival in rivals:
            if rival.route is not unit.route and rival.conflicts(unit):
                found[id(rival.route), id(unit.route)] = (rival.route, unit.route)
        at.setdefault(literals, []).append(unit)
        for prefix in above[:-1]:
            below.setdefault(prefix, []).append(unit)
    return list(found.values())


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
    """Whether some request that stands for all of its kind, made of segments that nobody writes, comes to `route`."""
    pattern = parse_pattern(route.pattern)
    stem = [_ANYTHING if is_param(segment) else segment for segment in pattern.segments]
    tails = [[*[_ANYTHING] * more, *end] for more in range(depth + 1) for end in ([], [""])] if pattern.rest else [[]]
    matches = [
        table.match(_ANYTHING if method == EVERY else method, "/" + "/".join([*stem, *tail]))
        for method in route.methods
        for tail in tails
    ]
    # Where the very same pattern stands twice, that is the mistake to tell.
    return any(match is not None and pattern.within(parse_pattern(match.route.pattern)) for match in matches)


def _covers(methods: frozenset[str], others: frozenset[str]) -> bool:
    return EVERY in methods or others <= methods


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    """A route for the methods that count as one: `GET` with its `HEAD`, any other method alone, or every one."""

    route: Route
    methods: frozenset[str]
    pattern: Pattern

    @property
    def first_literals(self) -> tuple[str, ...]:
        return tuple(takewhile(lambda segment: not is_param(segment), self.pattern.segments))

    def conflicts(self, other: "_Unit") -> bool:
        if not self._shares_method(other) or not self.pattern.meets(other.pattern):
            return False
        forward = _covers(other.methods, self.methods) and self.pattern.within(other.pattern)
        backward = _covers(self.methods, other.methods) and other.pattern.within(self.pattern)
        return forward == backward

    def _shares_method(self, other: "_Unit") -> bool:
        return EVERY in self.methods or EVERY in other.methods or bool(self.methods & other.methods)


def _units(routes: Sequence[Route], case_sensitive: bool) -> Iterator[_Unit]:
    for route in routes:
        pattern = parse_pattern(route.pattern)
        if not case_sensitive:
            pattern = pattern.lower()
        read = frozenset({"GET", "HEAD"})
        groups = [read] if read <= route.methods else []
        groups += [frozenset({method}) for method in sorted(route.methods) if groups == [] or method not in read]
        for methods in groups:
            yield _Unit(route=route, methods=methods, pattern=pattern)


def _tree(units: Sequence[_Unit], method: str, environments: Mapping[str, str]) -> _Node:
    """Everything that may answer `method`; where one pattern stands for several, the narrowest set of methods wins."""
    fitting = [unit for unit in units if method in unit.methods or EVERY in unit.methods]
    root = _Node()
    for unit in sorted(fitting, key=lambda unit: (EVERY in unit.methods, len(unit.methods))):
        _insert(root, unit, environments)
    return root


def _insert(root: _Node, unit: _Unit, environments: Mapping[str, str]) -> None:
    node = root
    for segment in unit.pattern.segments:
        if is_param(segment):
            node.param = node.param or _Node()
            node = node.param
        else:
            node = node.literals.setdefault(segment, _Node())
    if unit.pattern.rest:
        node.rest = node.rest or _leaf(unit, environments)
    else:
        node.leaf = node.leaf or _leaf(unit, environments)


def _leaf(unit: _Unit, environments: Mapping[str, str]) -> _Leaf:
    policy, names = unit.route.policy, list(unit.pattern.segments)
    tenant_at = names.index(f"{{{policy.tenant_param}}}") if policy.tenant_param else -1
    environment_at = names.index(f"{{{policy.environment_param}}}") if policy.environment_param else -1
    plain = Match(unit.route) if tenant_at < 0 and environment_at < 0 else None
    return _Leaf(unit.route, plain, tenant_at, environment_at, environments)


def _find(node: _Node, segments: Sequence[str], depth: int) -> _Leaf | None:
    if depth == len(segments):
        return node.leaf or node.rest
    segment = segments[depth]
    child = node.literals.get(segment)
    if child is not None and (found := _find(child, segments, depth + 1)):
        return found
    if node.param is not None and segment and (found := _find(node.param, segments, depth + 1)):
        return found
    return node.rest
