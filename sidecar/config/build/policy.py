"""The `routes` section."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from sidecar.config.document import PolicyEntry, given
from sidecar.config.errors import Path, Report, did_you_mean
from sidecar.core.model import EVERY, Policy, Quota, Route
from sidecar.core.routing import Pattern, parse_pattern
from sidecar.core.routing import overlaps, unreachable
from sidecar.core.scopes import Catalogue
from sidecar.core.templates import RESPOND_PLACEHOLDERS
from collections.abc import Sequence
from sidecar.config.document import Document, ScopeEntry
from sidecar.config.errors import Path, Report, did_you_mean
from sidecar.core.model import EVERY
from sidecar.core.scopes import Catalogue, Scope
from collections.abc import Mapping, Sequence
from sidecar.config.document import Allowance, ChargeEntry, Document, QuotaEntry, given
from sidecar.config.errors import Path, Report, did_you_mean
from sidecar.config.fields import parse_period
from sidecar.core.model import Charge, Quota, Subject, Window
from collections.abc import Mapping
from sidecar.config.document import ErrorEntry, IdentityEntry, KeysEntry, given
from sidecar.config.errors import Path, Report, did_you_mean
from sidecar.config.settings import ErrorTemplate, Identity
from sidecar.core.errors import Reason
from sidecar.core.headers import fold
from sidecar.core.templates import ERROR_PLACEHOLDERS, IDENTITY_PLACEHOLDERS, unknown_placeholders



# The `scopes` section, and the scopes that other sections name.



def catalogue_of(document: Document, report: Report) -> Catalogue:
    """The catalogue; a scope whose entry is wrong is in it by name, so that what names it is not wrong as well."""
    written = document.scopes or {}
    scopes = {name: Scope(name=name) for name in report.names(("scopes",))}
    for name, entry in written.items():
        match entry:
            case ScopeEntry():
                scopes[name] = Scope(name=name, description=entry.description, includes=entry.includes)
            case _:
                scopes[name] = Scope(name=name, description=entry or "")
    catalogue = Catalogue(scopes.values())
    for name, entry in written.items():
        if isinstance(entry, ScopeEntry):
            check_granted(entry.includes, ("scopes", name, "includes"), catalogue, report)
    return catalogue


def check_granted(names: Sequence[str], path: Path, catalogue: Catalogue, report: Report) -> None:
    """Reports each name at `path` that stands for no scope."""
    for at, name in report.numbered(path, names):
        if catalogue.unknown([name]):
            report.problem(at, f"unknown scope '{name}'{did_you_mean(name, catalogue.scopes)}")


def required(names: Sequence[str], path: Path, catalogue: Catalogue, report: Report) -> frozenset[str]:
    """The scopes that a route names, one by one: a wildcard could be read as any of them or as every one."""
    for at, name in report.numbered(path, names):
        if name == EVERY or name.endswith(":*"):
            report.problem(at, f"'{name}' can be granted to a key, but not be required: name the scopes")
        elif name not in catalogue.scopes:
            report.problem(at, f"unknown scope '{name}'{did_you_mean(name, catalogue.scopes)}")
    return frozenset(names)


# The `quotas` and `plans` sections, and the quotas that other sections name.


FAILURES = "failures"
"""The name of the quota for wrong keys."""

_DAY_SECONDS = 86400


def quotas_of(document: Document, report: Report) -> dict[str, Quota]:
    quotas = {}
    for name, entry in (document.quotas or {}).items():
        path: Path = ("quotas", name)
        if name == FAILURES:
            report.key_problem(path, f"is the name of the quota in keys.{FAILURES}: choose another")
        quotas[name] = _quota(name, entry, path, report)
    return quotas


def failures_of(entry: Allowance | str, path: Path, report: Report) -> Quota | None:
    """The quota by address for wrong keys; None for `off`."""
    if isinstance(entry, str):
        return None
    _check_window(entry, path, report)
    return _made(FAILURES, entry, (Subject.ADDRESS,))


def plans_of(document: Document, report: Report) -> Mapping[str, Mapping[str, int]]:
    plans = document.plans or {}
    known = report.names(("quotas",))
    for plan, limits in plans.items():
        for name in limits:
            if name not in known:
                report.key_problem(("plans", plan, name), f"unknown quota '{name}'{did_you_mean(name, known)}")
    return plans


def charges_of(
    entries: Sequence[str | ChargeEntry], path: Path, quotas: Mapping[str, Quota], report: Report
) -> tuple[Charge, ...]:
    """What a route counts; each quota once."""
    known = report.names(("quotas",))
    charges: dict[str, Charge] = {}
    for at, entry in report.numbered(path, entries):
        name, cost = (entry, 1) if isinstance(entry, str) else (entry.quota, entry.cost)
        if name not in known:
            report.problem(at, f"unknown quota '{name}'{did_you_mean(name, known)}")
        elif name in charges:
            report.problem(at, f"the quota '{name}' stands here twice")
        elif name in quotas:
            charges[name] = Charge(quota=quotas[name], cost=cost)
    return tuple(charges.values())


def _quota(name: str, entry: QuotaEntry, path: Path, report: Report) -> Quota:
    by = (entry.by,) if isinstance(entry.by, Subject) else entry.by
    if len(set(by)) < len(by):
        report.problem((*path, "by"), "names something twice")
    if entry.only == "anonymous" and {Subject.KEY, Subject.TENANT} & set(by):
        report.problem((*path, "only"), "an anonymous request has no key and no tenant to count by: use by: address")
    _check_window(entry, path, report)
    return _made(name, entry, by, entry.only)


def _made(name: str, entry: Allowance, by: tuple[Subject, ...], only: str = "all") -> Quota:
    return Quota(
        name=name,
        limit=entry.limit,
        period=parse_period(entry.per),
        window=entry.window,
        burst=given(entry.burst),
        by=by,
        only=only,  # type: ignore[arg-type]  # the document's type admits the same three words
    )


def _check_window(entry: Allowance, path: Path, report: Report) -> None:
    period = parse_period(entry.per)
    if given(entry.burst) is not None and entry.window is not Window.BUCKET:
        report.problem((*path, "burst"), "only a bucket has a burst: add window: bucket, or leave it out")
    if entry.window is Window.FIXED and isinstance(period, int) and _DAY_SECONDS % period:
        message = "a fixed window must divide a day evenly: choose such a duration, a calendar unit, or window: sliding"
        report.problem((*path, "per"), message)


# The `identity` and `errors` sections, and the templates that other sections hold.


_DEFAULT = "default"
_NONE: frozenset[str] = frozenset()


def identity_of(entry: IdentityEntry, keys: KeysEntry, report: Report) -> Identity:
    """What is injected. No two of its names are one to a reader that folds them, nor one that passes through."""
    passing = {_folded(name) for name in map(given, (source.header for source in keys.pass_through)) if name}
    seen = {_folded(entry.request_id)}
    for name, template in entry.headers.items():
        path: Path = ("identity", "headers", name)
        check_template(template, IDENTITY_PLACEHOLDERS, path, report)
        if _folded(name) in seen:
            report.key_problem(path, "is the same header as another one here")
        if _folded(name) in passing:
            report.key_problem(path, "is a header that keys.pass_through lets the client set")
        seen.add(_folded(name))
    return Identity(headers=entry.headers, request_id=entry.request_id, strip=entry.strip)


def errors_of(
    entries: Mapping[str, ErrorEntry], report: Report
) -> tuple[Mapping[Reason, ErrorTemplate], ErrorTemplate | None]:
    """The answer for each reason named, and the one for the rest."""
    found: dict[str, ErrorTemplate] = {}
    known = [*(reason.value for reason in Reason), _DEFAULT]
    for key, entry in entries.items():
        path: Path = ("errors", key)
        response = _answer(entry, path, report)
        for name in (part.strip() for part in key.split("|")):
            if name not in known:
                report.key_problem(path, f"unknown reason '{name}'{did_you_mean(name, known)}")
            elif name in found:
                report.key_problem(path, f"the reason '{name}' is answered twice")
            else:
                found[name] = response
    default = found.pop(_DEFAULT, None)
    return {Reason(name): response for name, response in found.items()}, default


def check_template(template: object, allowed: frozenset[str], path: Path, report: Report) -> None:
    """Reports each placeholder that `allowed` does not hold, at the text that it stands in."""
    match template:
        case dict():
            for name, value in template.items():
                check_template(value, allowed, (*path, name), report)
        case list():
            for index, value in enumerate(template):
                check_template(value, allowed, (*path, index), report)
        case str():
            for name in unknown_placeholders(template, allowed):
                close = did_you_mean(name, allowed) if allowed else ": no placeholder can stand here"
                report.problem(path, f"unknown placeholder '{{{name}}}'{close}")


def _answer(entry: ErrorEntry, path: Path, report: Report) -> ErrorTemplate:
    check_template(given(entry.body), ERROR_PLACEHOLDERS, (*path, "body"), report)
    for name, value in (given(entry.headers) or {}).items():
        check_template(value, _NONE, (*path, "headers", name), report)
    return ErrorTemplate(status=given(entry.status), headers=given(entry.headers), body=given(entry.body))


def _folded(name: str) -> bytes:
    return fold(name.encode())

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
