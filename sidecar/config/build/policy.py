"""The sections that name each other: scopes, plans, routes, identity and errors."""

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from msgspec import UNSET

from sidecar.config.errors import Path, Report, did_you_mean
from sidecar.config.policy import (
    ChargeEntry,
    ErrorEntry,
    GroupEntry,
    Identity,
    KeySettings,
    Limit,
    PolicyEntry,
    ScopeEntry,
)
from sidecar.core.error_responses import ErrorTemplate
from sidecar.core.errors import Reason
from sidecar.core.headers import REWRITTEN, STRIPPED, HeaderNames, HeaderRules, fold
from sidecar.core.model import EVERY, Charge, Policy, Quota, Route
from sidecar.core.patterns import Pattern, parse_pattern
from sidecar.core.policy import DENIED
from sidecar.core.quotas import Plans
from sidecar.core.routing import Overlap, is_token, known_spelling, overlaps, unreachable
from sidecar.core.scopes import Catalogue, Scope
from sidecar.core.templates import (
    ERROR_PLACEHOLDERS,
    IDENTITY_PLACEHOLDERS,
    RESPOND_PLACEHOLDERS,
    unknown_placeholders,
)
from sidecar.core.upstream_request import ADMIN_COOKIE

# The `scopes` section, and the scopes that other sections name.


def catalogue_of(entries: Mapping[str, str | ScopeEntry | None], report: Report) -> Catalogue:
    """The catalogue. A scope with a wrong entry is in it by name, so that its uses are not reported as well."""
    scopes = {name: Scope(name=name) for name in report.names(("scopes",))}
    for name, entry in entries.items():
        match entry:
            case ScopeEntry():
                scopes[name] = Scope(name=name, description=entry.description, includes=entry.includes)
            case _:
                scopes[name] = Scope(name=name, description=entry or "")
    catalogue = Catalogue(scopes.values())
    for name, entry in entries.items():
        if isinstance(entry, ScopeEntry):
            check_granted(entry.includes, ("scopes", name, "includes"), catalogue, report)
    return catalogue


def check_granted(names: Sequence[str], path: Path, catalogue: Catalogue, report: Report) -> None:
    """Reports each name at `path` that no scope has."""
    for at, name in report.numbered(path, names):
        if catalogue.unknown([name]):
            report.problem(at, f"unknown scope '{name}'{did_you_mean(name, catalogue.scopes)}")


def required(names: Sequence[str], path: Path, catalogue: Catalogue, report: Report) -> frozenset[str]:
    """The scopes that a route names. A wildcard is an error: it could mean any of its scopes or all of them."""
    for at, name in report.numbered(path, names):
        if name == EVERY or name.endswith(":*"):
            report.problem(at, f"'{name}' can be granted to a key but not required by a route: name the scopes")
        elif name not in catalogue.scopes:
            report.problem(at, f"unknown scope '{name}'{did_you_mean(name, catalogue.scopes)}")
    return frozenset(names)


# The `plans` section, and the quotas that other sections name.


def plans_of(plans: Mapping[str, Mapping[str, Limit]], report: Report) -> Plans:
    known = report.names(("quotas",))
    for plan, limits in plans.items():
        for name in limits:
            if name not in known:
                report.key_problem(("plans", plan, name), f"unknown quota '{name}'{did_you_mean(name, known)}")
    return {
        plan: {name: None if isinstance(limit, str) else limit for name, limit in limits.items()}
        for plan, limits in plans.items()
    }


def charges_of(
    entries: Sequence[str | ChargeEntry], path: Path, quotas: Mapping[str, Quota], report: Report
) -> tuple[Charge, ...]:
    """The quotas that a route counts, each once."""
    known = report.names(("quotas",))
    charges: dict[str, Charge] = {}
    for at, entry in report.numbered(path, entries):
        name, cost = (entry, 1) if isinstance(entry, str) else (entry.quota, entry.cost)
        if name not in known:
            report.problem(at, f"unknown quota '{name}'{did_you_mean(name, known)}")
        elif name in charges:
            report.problem(at, f"the quota '{name}' is listed twice")
        elif name in quotas:
            charges[name] = Charge(quota=quotas[name], cost=cost)
    return tuple(charges.values())


# The `identity` and `errors` sections, and the templates that other sections hold.


_DEFAULT = "default"
_NONE: frozenset[str] = frozenset()


def check_identity(identity: Identity, keys: KeySettings, *, proxies: bool, report: Report) -> None:
    """proxies: whether any is trusted."""
    _check_headers(identity, keys, report)
    if identity.keep and not proxies and report.sound(("trusted_proxies",)):
        report.key_problem(("identity", "keep"), "lets trusted proxies set these: name the proxies in trusted_proxies")
    for path, pattern in report.numbered(("identity", "keep"), identity.keep):
        for name, what in _never_kept(identity, keys):
            if _folded(name) in HeaderNames([pattern]):
                report.problem(path, f"lets '{name}' pass, which is {what}")
                break


def check_passing(identity: Identity, keys: KeySettings, *, proxies: bool, admin: bool, report: Report) -> None:
    """What passes must reach the upstream as it came, because the upstream alone can refuse it.

    proxies: whether any is trusted. admin: whether people sign in to the sidecar itself.
    """
    keys_in = [source.name for source in keys.sources if source.kind == "header"]
    rules = HeaderRules(
        identity=(), strip=identity.strip, keep=identity.keep, credential=keys_in, request_id=identity.request_id
    )
    known: dict[bytes, str] = {}
    for path, source in report.numbered(("keys", "pass_through"), keys.pass_through):
        name = source.name.lower()
        if source.kind == "header" and known.setdefault(_folded(name), name) != name:
            report.problem((*path, "header"), "is the same header as another one here")
        elif source.kind == "cookie" and admin and source.name == ADMIN_COOKIE:
            report.problem((*path, "cookie"), "is the sidecar's own, which never reaches the upstream: name another")
        elif source.kind == "header" and (objection := _not_passing(source.name, identity, rules, proxies=proxies)):
            report.problem((*path, "header"), objection)


def _not_passing(name: str, identity: Identity, rules: HeaderRules, *, proxies: bool) -> str:
    """Why a header cannot hold a credential for the upstream; empty where it can."""
    line, folded = ((name.encode(), b""),), _folded(name)
    if folded == b"cookie":
        return "holds every cookie: name the one that counts, as {cookie: NAME}"
    if rules.reclassify(line, credential=True, from_proxy=False) and folded not in REWRITTEN:
        return ""
    if folded in REWRITTEN or not rules.reclassify(line, credential=True, from_proxy=True):
        if folded in HeaderNames((*STRIPPED, *identity.strip)):
            return "is removed from every request: name it in identity.keep, too, and who sets it in trusted_proxies"
        return "never reaches the upstream as it came, because the sidecar removes or writes it: name another"
    return "" if proxies else "is passed on from trusted proxies only: name them in trusted_proxies"


def _check_headers(identity: Identity, keys: KeySettings, report: Report) -> None:
    """No two names are the same to a reader that folds them, and the client can set none of them."""
    passing = {_folded(source.name) for source in keys.pass_through if source.kind == "header"}
    known = {_folded(identity.request_id)}
    for name, template in identity.headers.items():
        path: Path = ("identity", "headers", name)
        check_template(template, IDENTITY_PLACEHOLDERS, path, report)
        if _folded(name) in known:
            report.key_problem(path, "is the same header as another one here")
        if _folded(name) in passing:
            report.key_problem(path, "is a header that keys.pass_through lets the client set")
        known.add(_folded(name))


def _never_kept(identity: Identity, keys: KeySettings) -> Iterator[tuple[str, str]]:
    """Names, and what each is."""
    yield identity.request_id, "the header of identity.request_id"
    for name in identity.headers:
        yield name, "a header of identity.headers"
    for source in keys.sources:
        if source.kind != "query":
            yield "Cookie" if source.kind == "cookie" else source.name, "where keys.from looks for a credential"
    if any(source.kind == "cookie" for source in keys.pass_through):
        yield "Cookie", "where keys.pass_through looks for a credential"


def errors_of(
    entries: Mapping[str, ErrorEntry], report: Report
) -> tuple[Mapping[Reason, ErrorTemplate], ErrorTemplate | None]:
    """The error response for each reason that is named, and the one for the others."""
    found: dict[str, ErrorTemplate] = {}
    known = [*(reason.value for reason in Reason), _DEFAULT]
    for key, entry in entries.items():
        path: Path = ("errors", key)
        response = _error_template(entry, path, report)
        for name in (part.strip() for part in key.split("|")):
            if name not in known:
                report.key_problem(path, f"unknown reason '{name}'{did_you_mean(name, known)}")
            elif name in found:
                report.key_problem(path, f"the reason '{name}' has an error response already")
            else:
                found[name] = response
    default = found.pop(_DEFAULT, None)
    return {Reason(name): response for name, response in found.items()}, default


def check_template(template: object, allowed: frozenset[str], path: Path, report: Report) -> None:
    """Reports each placeholder that is not in `allowed`, at its text."""
    match template:
        case dict():
            for name, value in template.items():
                check_template(value, allowed, (*path, name), report)
        case list():
            for index, value in enumerate(template):
                check_template(value, allowed, (*path, index), report)
        case str():
            for name in unknown_placeholders(template, allowed):
                close = did_you_mean(name, allowed) if allowed else ": no placeholder is allowed here"
                report.problem(path, f"unknown placeholder '{{{name}}}'{close}")


def _error_template(entry: ErrorEntry, path: Path, report: Report) -> ErrorTemplate:
    body = None if entry.body is UNSET else entry.body
    check_template(body, ERROR_PLACEHOLDERS, (*path, "body"), report)
    for name, value in (entry.headers or {}).items():
        check_template(value, _NONE, (*path, "headers", name), report)
    return ErrorTemplate(status=entry.status, headers=entry.headers, body=body)


def _folded(name: str) -> bytes:
    return fold(name.encode())


_MOST_METHOD_CHARS = 32
_KEY = "must be `METHOD /pattern`, `METHOD|METHOD /pattern` or `* /pattern`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The names that a route may use."""

    catalogue: Catalogue
    quotas: Mapping[str, Quota]
    environments: Sequence[str]
    case_sensitive: bool


def routes_of(
    groups: Sequence[GroupEntry], defaults: Policy, words: Vocabulary, report: Report
) -> Sequence[tuple[Path, Route]]:
    """The routes with their places, in the order of the file. Reports what is wrong with one, and overlaps of two.

    defaults: what routes and groups demand where they say nothing else.
    """
    routes: dict[int, tuple[Path, Route]] = {}
    for path, group in report.numbered(("routes",), groups):
        for at, route in _routes_of_group(group, path, defaults, words, report):
            routes[id(route)] = (at, route)
    made = tuple(route for _, route in routes.values())
    for overlap in overlaps(made, case_sensitive=words.case_sensitive):
        report.key_problem(routes[id(overlap.other)][0], _told(overlap))
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
    """given: the options that the route, or group, has itself."""
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
    )


def _check_inherited(entry: PolicyEntry, own: Policy, inherited: Policy, path: Path, report: Report) -> None:
    """Reports what cannot hold together with what the group demands."""
    if entry.public and replace(inherited, charges=(), pass_through=True) != Policy():
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


def _told(overlap: Overlap) -> str:
    first, second = overlap.route, overlap.other
    if not overlap.missing:
        also = "" if first.name == second.name else f", first as `{first.name}`"
        return f"`{second.name}` is defined twice{also} ({first.where})"
    missing = " and ".join(f"`{name}`" for name in overlap.missing)
    message = f"overlaps with `{first.name}` ({first.where}), and neither is more specific"
    return f"`{second.name}` {message}: add a route for what both match, {missing}"


def _check_spellings(routes: Iterable[tuple[Path, Route]], report: Report) -> None:
    """A service that does not mind the case would serve `list` under the policy of another route's `LIST`."""
    first: dict[str, tuple[str, Route]] = {}
    for path, route in routes:
        for method in sorted(route.methods):
            spelling, other = first.setdefault(method.upper(), (method, route))
            if spelling != method:
                message = f"'{method}' and '{spelling}' (`{other.name}`, {other.where}) are one method but for the case"
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
    return Route(
        name=f"{methods} {pattern}",
        methods=_methods(methods),
        pattern=str(pattern),
        policy=_joined(policy, inherited, report.names(path)),
        where=report.where(path),
    )


def _parse(key: str, prefix: str) -> tuple[str, Pattern]:
    """Methods and pattern. prefix: the path of the group, to which a method alone stands for the path itself."""
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
    for name in _contradictions(entry):
        report.problem(
            (*path, name), "a public route accepts requests without a key: it cannot require anything of a key"
        )
    respond = None if entry.respond is UNSET else entry.respond
    if entry.respond is None:
        report.problem((*path, "respond"), "is empty: leave it out to forward requests to the upstream")
    check_template(respond, RESPOND_PLACEHOLDERS, (*path, "respond"), report)
    return replace(_demands(entry, path, words, report), public=entry.public, respond=respond)


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
    )


def _contradictions(entry: PolicyEntry) -> Iterator[str]:
    if entry.public:
        for name in ("scopes", "all_scopes", "tenant", "environment", "environments"):
            if getattr(entry, name) is not None:
                yield name


def _check_params(entry: PolicyEntry | GroupEntry, pattern: Pattern, path: Path, report: Report) -> None:
    for key, name in (("tenant", entry.tenant), ("environment", entry.environment)):
        if name is not None and name not in pattern.params:
            hint = did_you_mean(name, pattern.params)
            report.problem((*path, key), f"the pattern has no {{{name}}}{hint}")
