"""A configuration for the API that a document describes, as YAML for people to read and to change.

Every operation gets a route. Only operations that the document opens to everybody are public; all others need a scope:
one of the document, or one for reading and one for writing, named by a tag. If two paths overlap and neither is more
specific, a route for the paths that they share requires what both require.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from sidecar.config.errors import ConfigError, Place
from sidecar.config.yaml_tree import MAX_BYTES
from sidecar.core.model import Route
from sidecar.core.patterns import parse_pattern
from sidecar.core.routing import overlaps
from sidecar.core.units import counted
from sidecar.rehearsal.openapi.description import Description
from sidecar.rehearsal.openapi.requirements import Endpoint, Requirement, ScopeNames, endpoints_of, strictest
from sidecar.rehearsal.openapi.tree import problem_at

_MOST_ROUTES = 10_000
_MOST_ROUNDS = 100
_WIDTH = 118
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*(:[A-Za-z0-9_./-]+)*")
_PLAIN_ROUTE = re.compile(r"[A-Z]+ /(?:[A-Za-z0-9_./{}()~+@$=-]|:(?=[A-Za-z0-9_]))*(?:\*\*)?")
_UNBROKEN: Mapping[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
"""Words that YAML 1.1 does not read as text."""
_LONGEST_DESCRIPTION = 200
_LONGEST_KEY = 1_000
"""YAML allows no simple key of over 1,024 characters (1.2, section 7.4.2)."""
_SETTINGS = """\
listen: 127.0.0.1:8080
upstream: http://127.0.0.1:8000    # the service that the document describes
store: sqlite:keys.db
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftedRoute:
    """A line of the draft: a route, its requirements, and the comments above it and behind it."""

    name: str
    """`GET /v1/items/{id}`."""
    requirement: Requirement
    above: tuple[str, ...] = ()
    beside: str = ""

    @property
    def route(self) -> Route:
        method, _, pattern = self.name.partition(" ")
        methods = frozenset({"GET", "HEAD"} if method == "GET" else {method})
        return Route(name=self.name, methods=methods, pattern=pattern, policy=self.requirement.policy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """text: YAML. The routes of operations, and the routes that resolve overlaps of two operations."""

    text: str
    routes: tuple[DraftedRoute, ...]
    tie_breakers: tuple[DraftedRoute, ...]
    scopes: tuple[str, ...]


def draft(description: Description, *, routes_only: bool = False) -> Draft:
    """Raises ConfigError if a configuration cannot express it.

    routes_only: leaves out the settings that a configuration must have, so that the draft can be added to one.
    """
    names = ScopeNames(description.scopes)
    endpoints = endpoints_of(description.operations)
    if len(endpoints) > _MOST_ROUTES:
        raise _too_large(description, f"{len(endpoints):,} routes")
    silent = _is_silent(description)
    routes = tuple(_routes(endpoints, names, silent=silent))
    heads = tuple(_heads(endpoints, routes))
    ties = (*heads, *_tie_breakers((*routes, *heads), description))
    scopes = tuple(sorted({scope for each in (*routes, *ties) for scope in _scopes_of(each.requirement)}))
    lines = [*_head(description, routes_only), *_catalogue(description, names, scopes), *_listed(routes, ties)]
    text = "\n".join([*lines, ""])
    if len(text.encode()) > MAX_BYTES:
        raise _too_large(description, f"{len(text.encode()) >> 10:,} KiB")
    return Draft(text=text, routes=routes, tie_breakers=ties, scopes=scopes)


def _too_large(description: Description, size: str) -> ConfigError:
    return ConfigError([problem_at(Place(description.file), f"needs more than a configuration can hold: {size}")])


def _scopes_of(requirement: Requirement) -> frozenset[str]:
    return requirement.any_scopes | requirement.all_scopes


# Routes.


def _is_silent(description: Description) -> bool:
    """Whether the document does not mention the security of any operation, which is then reported once."""
    return all(operation.security is None for operation in description.operations)


def _routes(endpoints: Sequence[Endpoint], names: ScopeNames, *, silent: bool) -> Iterator[DraftedRoute]:
    found = [(endpoint, endpoint.requirement(names)) for endpoint in endpoints]
    read = {endpoint.pattern.shape: made.demands for endpoint, made in found if endpoint.method == "GET"}
    for endpoint, requirement in found:
        # A route for GET also matches HEAD.
        if endpoint.method == "HEAD" and read.get(endpoint.pattern.shape) == requirement.demands:
            continue
        yield DraftedRoute(
            name=f"{endpoint.method} {endpoint.pattern}",
            requirement=requirement,
            above=tuple(_remarks(endpoint, requirement, silent=silent)),
            beside=", ".join(each.operation_id for each in endpoint.operations if each.operation_id),
        )


def _remarks(endpoint: Endpoint, requirement: Requirement, *, silent: bool) -> Iterator[str]:
    operations = endpoint.operations
    if len(operations) > 1:
        names = ", ".join(f"`{operation.name}`" for operation in operations)
        yield f"One route to a router: {names}"
    yield from dict.fromkeys(remark for operation in operations for remark in operation.remarks)
    yield from requirement.remarks
    if not silent and all(operation.security is None for operation in operations):
        yield "The document says nothing about security"


def _tie_breakers(routes: Sequence[DraftedRoute], description: Description) -> Iterator[DraftedRoute]:
    """Routes for paths that two others share, and that these share in turn, until every request has one route."""
    drafted = {each.name: each for each in routes}
    for _ in range(_MOST_ROUNDS):
        missing: dict[str, dict[str, None]] = {}
        for overlap in overlaps([each.route for each in drafted.values()]):
            for name in overlap.missing:
                missing.setdefault(name, {}).update({overlap.route.name: None, overlap.other.name: None})
        if not missing:
            return
        for name, shared in missing.items():
            drafted[name] = tie = _shared(name, [drafted[each] for each in shared])
            yield tie
        if len(drafted) > _MOST_ROUTES:
            raise _too_large(description, f"{len(drafted):,} routes, because its paths overlap")
    raise _too_large(description, "its paths overlap in too many ways")


def _heads(endpoints: Sequence[Endpoint], routes: Sequence[DraftedRoute]) -> Iterator[DraftedRoute]:
    """Routes for HEAD where a route for GET, which also matches HEAD, lies within the paths of a HEAD operation."""
    named = {endpoint.pattern.shape for endpoint in endpoints if endpoint.method == "HEAD"}
    heads = [(each, parse_pattern(each.route.pattern)) for each in routes if each.route.methods == {"HEAD"}]
    for read in routes if heads else ():
        pattern = parse_pattern(read.route.pattern)
        if "GET" in read.route.methods and pattern.shape not in named:
            around = [each for each, other in heads if pattern.within(other)]
            if any(each.requirement.demands != read.requirement.demands for each in around):
                yield _shared(f"HEAD {pattern}", [*around, read])


def _shared(name: str, routes: Sequence[DraftedRoute]) -> DraftedRoute:
    """A route for requests that match the operations of several routes."""
    names = " and ".join(f"`{each.name}`" for each in routes)
    return DraftedRoute(
        name=name, requirement=strictest([each.requirement for each in routes]), above=(f"Both {names}",)
    )


# Text.


def _head(description: Description, routes_only: bool) -> Iterator[str]:
    title = f" ({description.title})" if description.title else ""
    number = counted(len(description.operations), "operation")
    yield from _comment(f"Drafted from {description.file}{title}: {number}.")
    yield from _comment(
        "Every route except the public ones needs a scope. Review it, and rename what you call differently."
    )
    if _is_silent(description):
        yield from _comment(
            "The document says nothing about security: scopes are named by tags, and no route is public."
        )
    for remark in description.remarks:
        yield from _comment(str(remark))
    if routes_only:
        return
    if description.schemes:
        schemes = "; ".join(f"{scheme.name} ({scheme.kind})" for scheme in description.schemes)
        yield from _comment(f"Security schemes of the document: {schemes}.")
        yield from _comment("Keys are expected as `Authorization: Bearer KEY` unless keys.from says otherwise.")
    yield ""
    yield from _SETTINGS.splitlines()


def _catalogue(description: Description, names: ScopeNames, scopes: Sequence[str]) -> Iterator[str]:
    if not scopes:
        return
    described = description.scopes
    yield ""
    yield "scopes:"
    for scope in scopes:
        kind, source = names.source(scope)
        text = described.get(source, "") if kind == "scope" else f"{kind.capitalize()}: {source}"
        renamed = f"    # {_one_line(source)} in the document" if kind == "scope" and source != scope else ""
        yield f"  {_plain(scope)}: {_quoted(_one_line(text)[:_LONGEST_DESCRIPTION])}{renamed}"


def _listed(routes: Sequence[DraftedRoute], ties: Sequence[DraftedRoute]) -> Iterator[str]:
    yield ""
    yield "routes:"
    for each in routes:
        yield from _lines(each)
    if ties:
        yield ""
        yield from _comment(
            "Paths that two routes match, where neither is more specific: these routes demand what both do."
        )
    for each in ties:
        yield from _lines(each)


def _lines(each: DraftedRoute) -> Iterator[str]:
    for remark in each.above:
        yield from _comment(f"{remark}.")
    beside = f"    # {_one_line(each.beside)[:_WIDTH]}" if each.beside else ""
    line = route_text(each.name, each.requirement)
    if len(line) <= _WIDTH or len(each.name) > _LONGEST_KEY:
        yield line + beside
        return
    yield f"- {_name_text(each.name)}:{beside}"
    for option in _options(each.requirement):
        yield from wrap(option, _WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 6, **_UNBROKEN)


def route_text(name: str, requirement: Requirement) -> str:
    """A route as an item of `routes`, in one line.

    A route whose name is too long for a key becomes a group: its path is a value, in which `${` would be a variable.
    """
    options = f"{{{_policy_text(requirement)}}}"
    if len(name) <= _LONGEST_KEY:
        return f"- {_name_text(name)}: {options}"
    method, _, path = name.partition(" ")
    return f"- {{path: {json.dumps(path.replace('$', '$$'))}, routes: [{{{method}: {options}}}]}}"


def _name_text(name: str) -> str:
    return name if _PLAIN_ROUTE.fullmatch(name) else json.dumps(name)


def _policy_text(requirement: Requirement) -> str:
    """The options of a route: `scopes: [items:read]`."""
    return ", ".join(_options(requirement))


def _options(requirement: Requirement) -> Iterator[str]:
    if requirement.public:
        yield "public: true"
    for name, scopes in (("scopes", requirement.any_scopes), ("all_scopes", requirement.all_scopes)):
        if scopes:
            yield f"{name}: [{', '.join(map(_value, sorted(scopes)))}]"


def _comment(text: str) -> Iterator[str]:
    return iter(wrap(_one_line(text), _WIDTH, initial_indent="# ", subsequent_indent="# ", **_UNBROKEN))


def _one_line(text: str) -> str:
    """Replaces unprintable characters and repeated spaces, so that a comment cannot end early."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _plain(text: str) -> str:
    """Quotes a key, in which `$` has no special meaning."""
    return text if _PLAIN.fullmatch(text) and text.lower() not in _WORDS else json.dumps(text, ensure_ascii=False)


def _value(text: str) -> str:
    """Quotes a value, in which `${…}` is a variable and `$$` a `$`."""
    return _plain(text.replace("$", "$$"))


def _quoted(text: str) -> str:
    return json.dumps(text.replace("$", "$$"), ensure_ascii=False)
