"""The `routes` section."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sidecar.config.answers import check_template
from sidecar.config.document import PolicyEntry, given
from sidecar.config.errors import Path, Report, did_you_mean
from sidecar.config.quotas import charges_of
from sidecar.config.scopes import required
from sidecar.core.model import EVERY, Policy, Quota, Route
from sidecar.core.routing import Pattern, parse_pattern
from sidecar.core.routing import overlaps, unreachable
from sidecar.core.scopes import Catalogue
from sidecar.core.templates import RESPOND_PLACEHOLDERS

_METHOD = re.compile(r"[A-Z][A-Z0-9_-]{0,31}")
_KEY = "must be `METHOD /pattern`, `METHOD|METHOD /pattern` or `* /pattern`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What a route may name."""

    catalogue: Catalogue
    quotas: Mapping[str, Quota]
    environments: Sequence[str]
    case_sensitive: bool


def routes_of(entries: Sequence[Mapping[str, PolicyEntry]], words: Vocabulary, report: Report) -> tuple[Route, ...]:
    """The routes in the order of the file; what is wrong with one, or between two, is reported."""
    routes: dict[int, tuple[Path, Route]] = {}
    for path, entry in report.numbered(("routes",), entries):
        for key, policy in entry.items():
            route = _route(key, policy, path, words, report)
            if route is not None:
                routes[id(route)] = (path, route)
    made = tuple(route for _, route in routes.values())
    for first, second in overlaps(made, case_sensitive=words.case_sensitive):
        message = f"overlaps with `{first.name}` ({first.where}), and neither is more specific"
        report.key_problem(routes[id(second)][0], f"`{second.name}` {message}")
    for route, why in unreachable(made):
        report.key_problem(routes[id(route)][0], f"`{route.name}` is never reached: {why}")
    return made


def _route(key: str, entry: PolicyEntry, path: Path, words: Vocabulary, report: Report) -> Route | None:
    name = re.sub(r"\s*\|\s*", "|", " ".join(key.split()))
    policy = _policy(entry, path, words, report)
    try:
        methods, pattern = _parse(name)
    except ValueError as error:
        report.key_problem(path, str(error))
        return None
    _check_params(entry, pattern, path, report)
    return Route(name=name, methods=methods, pattern=name.partition(" ")[2], policy=policy, where=report.where(path))


def _parse(name: str) -> tuple[frozenset[str], Pattern]:
    methods, space, pattern = name.partition(" ")
    if not space and methods.startswith("/"):
        raise ValueError(f"{_KEY} (did you mean '* {methods}'?)")
    if not space or " " in pattern:
        raise ValueError(_KEY)
    return _methods(methods), parse_pattern(pattern)


def _methods(text: str) -> frozenset[str]:
    methods = text.split("|")
    if methods == [EVERY]:
        return frozenset({EVERY})
    for method in methods:
        if method == EVERY:
            raise ValueError("'*' is every method already: it stands alone")
        if not _METHOD.fullmatch(method):
            upper = f" (did you mean '{method.upper()}'?)" if _METHOD.fullmatch(method.upper()) else ""
            raise ValueError(f"'{method}' is no method: methods are upper-case words{upper}")
    return frozenset(methods) | ({"HEAD"} if "GET" in methods else set())


def _policy(entry: PolicyEntry, path: Path, words: Vocabulary, report: Report) -> Policy:
    for name in _contradictions(entry):
        report.problem((*path, name), "a public route takes requests without a key: it cannot demand anything of one")
    respond = given(entry.respond)
    if entry.respond is None:
        report.problem((*path, "respond"), "holds nothing to answer: leave it out to ask the upstream")
    check_template(respond, RESPOND_PLACEHOLDERS, (*path, "respond"), report)
    environments = given(entry.environments) or ()
    for at, name in report.numbered((*path, "environments"), environments):
        if name not in words.environments:
            report.problem(at, f"unknown environment '{name}'{did_you_mean(name, words.environments)}")
    return Policy(
        public=entry.public,
        any_scopes=required(given(entry.scopes) or (), (*path, "scopes"), words.catalogue, report),
        all_scopes=required(given(entry.all_scopes) or (), (*path, "all_scopes"), words.catalogue, report),
        tenant_param=given(entry.tenant),
        environment_param=given(entry.environment),
        environments=frozenset(environments),
        charges=charges_of(entry.quotas, (*path, "quotas"), words.quotas, report),
        pass_through=entry.pass_through,
        respond=respond,
    )


def _contradictions(entry: PolicyEntry) -> Iterator[str]:
    if entry.public:
        for name in ("scopes", "all_scopes", "tenant", "environment", "environments"):
            if given(getattr(entry, name)) is not None:
                yield name


def _check_params(entry: PolicyEntry, pattern: Pattern, path: Path, report: Report) -> None:
    for key, name in (("tenant", given(entry.tenant)), ("environment", given(entry.environment))):
        if name is not None and name not in pattern.params:
            hint = did_you_mean(name, pattern.params)
            report.problem((*path, key), f"the pattern has no {{{name}}}{hint}")
