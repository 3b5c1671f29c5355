"""The `routes` section: groups, routes and their policies, with names from the other sections."""

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from msgspec import UNSET

from sidecar.config.build.policy import charges_of, check_template, required, texts
from sidecar.config.document import UpstreamSettings
from sidecar.config.errors import Path, Report, did_you_mean
from sidecar.config.policy import KeySettings
from sidecar.config.routes import ONLY, GroupEntry, PolicyEntry, ResponseEntry, UnmatchedEntry
from sidecar.core.errors import Reason
from sidecar.core.headers import HeaderNames, fold
from sidecar.core.model import EVERY, OBSERVE, Cors, ForwardRules, Policy, Quota, Route, StaticResponse
from sidecar.core.patterns import Pattern, parse_pattern
from sidecar.core.policy import DENIED, Catalogue
from sidecar.core.quotas import ENDING_NAMES
from sidecar.core.routing import EVERYTHING, NO_ROUTE, Overlap, is_token, known_spelling, overlaps, unreachable
from sidecar.core.templates import EVERY_QUOTA, RESPOND_PLACEHOLDERS, of_key, placeholders

_MOST_METHOD_CHARS = 32
_KEY = "must be `METHOD /pattern`, `METHOD|METHOD /pattern` or `* /pattern`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The names that a route may use."""

    catalogue: Catalogue
    quotas: Mapping[str, Quota]
    environments: Sequence[str]
    keys: KeySettings
    case_sensitive: bool
    cors: Cors | None
    upstreams: Mapping[str, UpstreamSettings]


def routes_of(
    groups: Sequence[GroupEntry], defaults: Policy, words: Vocabulary, report: Report
) -> Sequence[tuple[Path, Route]]:
    """The routes with their locations, in the order of the file. Reports invalid routes and overlaps.

    defaults: the policy of routes and groups that do not override it.
    """
    routes: dict[int, tuple[Path, Route]] = {}
    for path, group in report.numbered(("routes",), groups):
        for at, route in _routes_of_group(group, path, defaults, words, report):
            routes[id(route)] = (at, route)
    made = tuple(route for _, route in routes.values())
    for overlap in overlaps(made, case_sensitive=words.case_sensitive):
        report.key_problem(routes[id(overlap.other)][0], _overlap_message(overlap))
    _check_spellings(routes.values(), report)
    for route, why in unreachable(made):
        report.key_problem(routes[id(route)][0], f"`{route.name}` is never reached: {why}")
    return tuple(routes.values())


def _routes_of_group(
    group: GroupEntry, path: Path, defaults: Policy, words: Vocabulary, report: Report
) -> Iterator[tuple[Path, Route]]:
    if not group.path:
        for route in group.routes:
            yield from _routes_below("", route, path, defaults, words, report)
        return
    try:
        pattern = parse_pattern(group.path)
        if pattern.rest or not pattern.segments[-1]:
            raise ValueError("is what the patterns of its routes begin with: write it without '**' and '/' at its end")
    except ValueError as error:
        report.problem((*path, "path"), str(error))
        return
    _check_params(group, pattern, path, report)
    inherited = _joined(_demands(group, path, words, report), defaults, report.names(path))
    for at, entry in report.numbered((*path, "routes"), group.routes):
        yield from _routes_below(group.path, entry, at, inherited, words, report)


def _routes_below(
    prefix: str, entry: Mapping[str, PolicyEntry], path: Path, inherited: Policy, words: Vocabulary, report: Report
) -> Iterator[tuple[Path, Route]]:
    for key, policy in entry.items():
        route = _route(key, policy, path, prefix, inherited, words, report)
        if route is not None:
            yield path, route


def _joined(own: Policy, inherited: Policy, given: Container[str]) -> Policy:
    """given: the route's, or group's, own options."""
    if own.deny:
        return own
    scoped = "scopes" in given or "all_scopes" in given
    both = own.environments & inherited.environments
    return replace(
        own,
        any_scopes=own.any_scopes if scoped else inherited.any_scopes,
        all_scopes=own.all_scopes if scoped else inherited.all_scopes,
        tenant_param=own.tenant_param or inherited.tenant_param,
        environment_param=own.environment_param or inherited.environment_param,
        environments=both or own.environments or inherited.environments,
        charges=own.charges if "quotas" in given else inherited.charges,
        pass_through=own.pass_through if "pass_through" in given else inherited.pass_through,
        forward=_joined_rules(own.forward, inherited.forward),
        mode=own.mode or inherited.mode,
    )


def _joined_rules(own: ForwardRules, inherited: ForwardRules) -> ForwardRules:
    given = {field.name: getattr(own, field.name) for field in fields(own)}
    return replace(inherited, **{name: value for name, value in given.items() if value is not None})


def _check_inherited(entry: PolicyEntry, own: Policy, inherited: Policy, path: Path, report: Report) -> None:
    """Reports contradictions with the policy of the group."""
    if (
        entry.public
        and replace(inherited, charges=(), pass_through=True, forward=ForwardRules(), mode=None) != Policy()
    ):
        report.problem(
            (*path, "public"), "its group requires something of a key: write this route outside of the group"
        )
    for key, mine, theirs in (
        ("tenant", own.tenant_param, inherited.tenant_param),
        ("environment", own.environment_param, inherited.environment_param),
    ):
        if mine and theirs and mine != theirs:
            report.problem((*path, key), f"its group binds it to {{{theirs}}} already: it cannot be both")
    if own.environments and inherited.environments and not own.environments & inherited.environments:
        report.problem((*path, "environments"), "its group takes none of these: no key could pass")


def _overlap_message(overlap: Overlap) -> str:
    first, second = overlap.route, overlap.other
    if not overlap.missing:
        also = "" if first.name == second.name else f", first as `{first.name}`"
        return f"`{second.name}` is defined twice{also} ({first.where})"
    missing = " and ".join(f"`{name}`" for name in overlap.missing)
    message = f"overlaps with `{first.name}` ({first.where}), and neither is more specific"
    return f"`{second.name}` {message}: add a route for what both match, {missing}"


def _check_spellings(routes: Iterable[tuple[Path, Route]], report: Report) -> None:
    """Reports methods that differ only in case.

    A service that ignores case would serve `list` under the policy of `LIST`.
    """
    first: dict[str, tuple[str, Route]] = {}
    for path, route in routes:
        for method in sorted(route.methods):
            spelling, other = first.setdefault(method.upper(), (method, route))
            if spelling != method:
                message = f"'{method}' and '{spelling}' (`{other.name}`, {other.where}) differ only in case"
                report.key_problem(path, f"{message}: name one of them")


def _route(
    key: str, entry: PolicyEntry, path: Path, prefix: str, inherited: Policy, words: Vocabulary, report: Report
) -> Route | None:
    policy = _policy(entry, path, words, report)
    try:
        methods, pattern = _parse(re.sub(r"\s*\|\s*", "|", " ".join(key.split())), prefix)
    except ValueError as error:
        report.key_problem(path, str(error))
        return None
    _check_params(entry, pattern, path, report)
    _check_inherited(entry, policy, inherited, path, report)
    policy = _joined(policy, inherited, report.names(path))
    _check_prefix(_stripped(policy.forward, words), pattern, path, report)
    return Route(
        name=f"{methods} {pattern}",
        methods=_methods(methods),
        pattern=str(pattern),
        policy=policy,
        where=report.where(path),
    )


def _stripped(rules: ForwardRules, words: Vocabulary) -> str:
    """The prefix removed from a route's paths; for the default upstream, only the route's own."""
    named = words.upstreams.get(rules.upstream or "")
    return rules.strip_prefix if rules.strip_prefix is not None else "" if named is None else named.strip_prefix


def _check_prefix(prefix: str, pattern: Pattern, path: Path, report: Report) -> None:
    """prefix: removed from the front of the route's paths, which must all have it. Its case always matters."""
    if not f"{pattern}/".startswith(f"{prefix}/"):
        own = "strip_prefix" in report.names(path)
        message = f"`{pattern}` does not begin with {prefix}: there is nothing to strip"
        report.problem((*path, "strip_prefix") if own else path, message)


def _parse(key: str, prefix: str) -> tuple[str, Pattern]:
    """Methods and pattern. prefix: the path of the group; a method alone means the path itself."""
    methods, space, pattern = key.partition(" ")
    if not space and methods.startswith("/"):
        raise ValueError(f"{_KEY} (did you mean '* {methods}'?)")
    if " " in pattern or not (space or prefix):
        raise ValueError(_KEY)
    if prefix and pattern and not pattern.startswith("/"):
        raise ValueError(f"a pattern begins with '/': write '/{pattern}'")
    _methods(methods)
    return methods, parse_pattern(prefix + pattern)


def _methods(text: str) -> frozenset[str]:
    methods = text.split("|")
    if methods == [EVERY]:
        return frozenset({EVERY})
    for method in methods:
        if method == EVERY:
            raise ValueError("'*' is every method already: it stands alone")
        if not is_token(method) or EVERY in method or len(method) > _MOST_METHOD_CHARS:
            raise ValueError(f"'{method}' is not a method: a method is one word, as clients send it")
        if (known := known_spelling(method) or method) != method:
            raise ValueError(f"'{method}' is not a method: the case counts (did you mean '{known}'?)")
    return frozenset(methods) | ({"HEAD"} if "GET" in methods else set())


def _policy(entry: PolicyEntry, path: Path, words: Vocabulary, report: Report) -> Policy:
    if entry.deny:
        if others := [name for name in report.names(path) if name in PolicyEntry.__struct_fields__ and name != "deny"]:
            report.problem((*path, others[0]), "a route that denies refuses every request: leave all other options out")
        return DENIED
    for name, why in _contradictions(entry):
        report.problem((*path, name), f"{why}: it cannot require anything of a key")
    if entry.pass_through == ONLY:
        _check_only(entry.public, words.keys, path, report)
    return replace(
        _demands(entry, path, words, report),
        public=entry.public,
        refuses_keys=Reason.KEY_NOT_ACCEPTED if entry.pass_through == ONLY else None,
        respond=_respond(entry, path, report),
        cors=words.cors if entry.cors is None else None if entry.cors == "off" else entry.cors,
        shared_cache=entry.cache == "shared",
    )


_FORWARDING = ("answer_timeout", "body", "strip_prefix", "upstream")
"""Options of forwarded requests."""


def _respond(entry: PolicyEntry, path: Path, report: Report) -> StaticResponse | None:
    """The sidecar's own response; None if the upstream responds."""
    whole, short = entry.response is not None, entry.respond is not UNSET
    name = "response" if whole else "respond"
    if whole or short:
        for option in (option for option in _FORWARDING if getattr(entry, option) is not None):
            report.problem((*path, option), f"the sidecar itself responds (`{name}`): nothing is forwarded")
        if entry.mode == OBSERVE:
            report.problem((*path, "mode"), f"the sidecar itself responds (`{name}`), so there is nothing to observe")
    if (whole or short) and entry.pass_through == ONLY:
        message = "a route with `pass_through: only` is forwarded: it has no response of the sidecar"
        report.problem((*path, name), message)
    if whole and short:
        report.problem((*path, "respond"), "is the body of a response, and `response` has one: write one of the two")
    if entry.response is not None:
        shared = entry.public or entry.cache == "shared"
        response = _response(entry.response, shared, (*path, "response"), report)
        return _checked_for_key(response, entry, (*path, "response", "body"), report)
    if not short:
        return None
    if entry.respond is None:
        report.problem((*path, "respond"), "is empty: leave it out to forward requests to the upstream")
    check_template(entry.respond, RESPOND_PLACEHOLDERS, (*path, "respond"), report)
    return _checked_for_key(StaticResponse(body=entry.respond), entry, (*path, "respond"), report)


def _checked_for_key(response: StaticResponse, entry: PolicyEntry, path: Path, report: Report) -> StaticResponse:
    """Checks that a response with values of a key is only for its holder. path: of the body."""
    used = [(at, text, name) for at, text in texts(response.body, path) for name in placeholders(text)]
    for at, text, name in used:
        if of_key(name) and entry.public:
            why = "needs a key, but a public route takes requests without one: leave out this or `public`"
            report.problem(at, f"`{{{name}}}` {why}")
        elif of_key(name) and entry.cache == "shared":
            report.problem(at, f"`{{{name}}}` differs by key, but `cache: shared` gives the response to everybody")
        elif name == EVERY_QUOTA and text != f"{{{EVERY_QUOTA}}}":
            report.problem(at, f"`{{{name}}}` is a list: it must be the whole text")
    return replace(response, tells_quotas=any(name == EVERY_QUOTA for _, _, name in used))


_WITHOUT_BODY = (204, 205, 304)
_OURS = HeaderNames(
    (
        *("Date", "Vary", "Content-Encoding", "Content-Range"),
        *("Access-Control-*", "RateLimit*", "X-RateLimit-*", *ENDING_NAMES),
    )
)
"""Forbidden headers of a response, in addition to those forbidden everywhere in the configuration."""


def _response(entry: ResponseEntry, shared: bool, path: Path, report: Report) -> StaticResponse:
    """shared: whether caches may share it."""
    for name, value in entry.headers.items():
        at = (*path, "headers", name)
        if fold(name.encode()) in _OURS:
            report.key_problem(at, "is a header that the sidecar itself handles: leave it out")
        elif name.lower() == "cache-control" and not shared:
            report.key_problem(at, "is no-store where a key is needed: leave it out, or write `cache: shared`")
        check_template(value, frozenset(), at, report)
    given = {name.lower(): value for name, value in entry.headers.items()}
    headers = [] if "content-type" in given else [(b"Content-Type", b"application/json")]
    headers += [] if "cache-control" in given else [(b"Cache-Control", b"no-store")]
    headers += [(name.encode(), value.encode()) for name, value in entry.headers.items()]
    body = _body(entry, given.get("content-type", "application/json"), path, report)
    if body == b"" and "content-type" not in given:
        del headers[0]
    return StaticResponse(status=entry.status, headers=tuple(headers), body=body)


def _body(entry: ResponseEntry, kind: str, path: Path, report: Report) -> object:
    """kind: its type. JSON may contain placeholders; any other text is sent unchanged."""
    at = (*path, "body")
    if entry.body is UNSET:
        return b""
    if entry.status in _WITHOUT_BODY:
        report.problem(at, f"a {entry.status} has no body: leave it out")
    if kind.partition(";")[0].strip().lower().endswith("json"):
        check_template(entry.body, RESPOND_PLACEHOLDERS, at, report)
        return entry.body
    if not isinstance(entry.body, str):
        report.problem(at, f"must be a text, because the Content-Type is {kind}")
        return b""
    return entry.body.encode()


def _demands(entry: PolicyEntry | GroupEntry, path: Path, words: Vocabulary, report: Report) -> Policy:
    environments = entry.environments or ()
    for at, name in report.numbered((*path, "environments"), environments):
        if name not in words.environments:
            report.problem(at, f"unknown environment '{name}'{did_you_mean(name, words.environments)}")
    return Policy(
        any_scopes=required(entry.scopes or (), (*path, "scopes"), words.catalogue, report),
        all_scopes=required(entry.all_scopes or (), (*path, "all_scopes"), words.catalogue, report),
        tenant_param=entry.tenant,
        environment_param=entry.environment,
        environments=frozenset(environments),
        charges=charges_of(entry.quotas or (), (*path, "quotas"), words.quotas, report),
        pass_through=entry.pass_through is not False,
        forward=_forward(entry, path, report),
        mode=entry.mode,
    )


def _forward(entry: PolicyEntry | GroupEntry, path: Path, report: Report) -> ForwardRules:
    known = report.names(("upstreams",))
    if entry.upstream is not None and entry.upstream not in known:
        hint = did_you_mean(entry.upstream, known)
        report.problem((*path, "upstream"), f"unknown upstream '{entry.upstream}'{hint}")
    return ForwardRules(
        upstream=entry.upstream,
        answer_timeout_seconds=entry.answer_timeout,
        body_bytes=entry.body,
        strip_prefix=entry.strip_prefix,
    )


def _contradictions(entry: PolicyEntry) -> Iterator[tuple[str, str]]:
    """Names of requirements on a key, and why they are pointless here."""
    if entry.public or entry.pass_through == ONLY:
        why = "a public route accepts requests without a key" if entry.public else "`pass_through: only` takes no key"
        for name in ("scopes", "all_scopes", "tenant", "environment", "environments"):
            if getattr(entry, name) is not None:
                yield name, why


def unmatched_of(entry: UnmatchedEntry, routes: Sequence[Route], words: Vocabulary, report: Report) -> Route:
    """The policy if none of `routes` matches. A route only if credentials that are not keys pass."""
    path: Path = ("unmatched",)
    passes = entry.pass_through == ONLY
    if entry.public and not passes and report.sound((*path, "pass_through")):
        report.problem((*path, "public"), "would open every path: name the public ones in routes")
    if passes:
        _check_only(entry.public, words.keys, path, report)
    if passes and any(route.pattern == EVERYTHING and EVERY in route.methods for route in routes):
        report.problem((*path, "pass_through"), f"is never reached: `* {EVERYTHING}` matches every request")
    policy = Policy(
        public=entry.public,
        charges=charges_of(entry.quotas, (*path, "quotas"), words.quotas, report),
        pass_through=passes,
        refuses_keys=Reason.NO_ROUTE,
        mode=entry.mode,
    )
    where = report.where(path) if passes else ""
    return Route(name=NO_ROUTE, methods=frozenset({EVERY}), pattern=EVERYTHING, policy=policy, where=where)


def _check_only(public: bool, keys: KeySettings, path: Path, report: Report) -> None:
    if not public and not keys.pass_through and report.sound(("keys", "pass_through")):
        report.problem((*path, "pass_through"), "nothing could pass: name the credentials in keys.pass_through")


def _check_params(entry: PolicyEntry | GroupEntry, pattern: Pattern, path: Path, report: Report) -> None:
    for key, name in (("tenant", entry.tenant), ("environment", entry.environment)):
        if name is not None and name not in pattern.params:
            hint = did_you_mean(name, pattern.params)
            report.problem((*path, key), f"the pattern has no {{{name}}}{hint}")
