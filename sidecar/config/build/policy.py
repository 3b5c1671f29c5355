"""The sections that refer to each other: scopes, plans, routes, identity, errors and admin tokens."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Final, Literal

import yaml
from msgspec import UNSET
from msgspec.structs import replace

from sidecar.config.decoder import decode
from sidecar.config.document import AdminSettings, AdminToken
from sidecar.config.errors import ConfigError, Path, Place, Report, did_you_mean
from sidecar.config.identity import Identity
from sidecar.config.policy import KeySettings, Limit, ScopeEntry
from sidecar.config.routes import ChargeEntry, ErrorEntry
from sidecar.config.yaml_tree import read_nodes
from sidecar.core.apikey import wrapped
from sidecar.core.error_responses import DETAILED, ErrorTemplate
from sidecar.core.errors import Reason
from sidecar.core.headers import REWRITTEN, STRIPPED, HeaderNames, HeaderRules, fold
from sidecar.core.model import EVERY, Charge, Quota
from sidecar.core.policy import Catalogue, Scope
from sidecar.core.quotas import Plans
from sidecar.core.templates import (
    ERROR_PLACEHOLDERS,
    IDENTITY_PLACEHOLDERS,
    unknown_placeholders,
)
from sidecar.core.upstream_request import ADMIN_COOKIES

# The `scopes` section, and the scopes that other sections name.


def catalogue_of(entries: Mapping[str, str | ScopeEntry | None], report: Report) -> Catalogue:
    """The catalogue. An invalid scope is included by name, so that its uses are not reported as well."""
    scopes = {name: Scope(name=name) for name in report.names(("scopes",))}
    for name, entry in entries.items():
        match entry:
            case ScopeEntry():
                scopes[name] = Scope(name=name, description=entry.description, includes=entry.includes, mode=entry.mode)
            case _:
                scopes[name] = Scope(name=name, description=entry or "")
    catalogue = Catalogue(scopes.values())
    for name, entry in entries.items():
        if isinstance(entry, ScopeEntry):
            check_granted(entry.includes, ("scopes", name, "includes"), catalogue, report)
    return catalogue


def check_granted(names: Sequence[str], path: Path, catalogue: Catalogue, report: Report) -> None:
    """Reports each unknown scope at `path`."""
    for at, name in report.numbered(path, names):
        if catalogue.unknown([name]):
            report.problem(at, f"unknown scope '{name}'{did_you_mean(name, catalogue.scopes)}")


def check_number(keys: KeySettings, catalogue: Catalogue, report: Report) -> None:
    """Checks that a key can have this many scopes, and the default scopes."""
    number, default = keys.scopes_per_key, keys.default_scopes
    if number is None:
        return
    if number > len(catalogue.scopes):
        report.problem(("keys", "scopes_per_key"), f"is more than there are: scopes has {len(catalogue.scopes)}")
    elif default and (len(default) != number or not catalogue.scopes.keys() >= set(default)):
        why = f"must be {number}, without wildcards, because of keys.scopes_per_key; leave it out to have them named"
        report.problem(("keys", "default_scopes"), why)


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


# The `identity` and `errors` sections, and the templates of other sections.


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
    """Credentials that pass through must reach the upstream unchanged, because only the upstream can refuse them.

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
        elif source.kind == "cookie" and admin and source.name in ADMIN_COOKIES:
            report.problem((*path, "cookie"), "is the sidecar's own, which never reaches the upstream: name another")
        elif source.kind == "header" and (objection := _not_passing(source.name, identity, rules, proxies=proxies)):
            report.problem((*path, "header"), objection)


def _not_passing(name: str, identity: Identity, rules: HeaderRules, *, proxies: bool) -> str:
    """Why a header cannot carry a credential to the upstream; empty if it can."""
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
    """Checks that no two names are equal when folded, and that the client can set none of them."""
    passing = {_folded(source.name) for source in keys.pass_through if source.kind == "header"}
    known = {_folded(identity.request_id)}
    for name, template in identity.headers.items():
        check_template(template, IDENTITY_PLACEHOLDERS, ("identity", "headers", name), report)
    places: list[tuple[str, Path]] = [(name, ("identity", "headers", name)) for name in identity.headers]
    if identity.would_deny is not None:
        places.append((identity.would_deny, ("identity", "would_deny")))
    for name, path in places:
        if _folded(name) in known:
            report.key_problem(path, "is the same header as another one here")
        if _folded(name) in passing:
            report.key_problem(path, "is a header that keys.pass_through lets the client set")
        known.add(_folded(name))


def _never_kept(identity: Identity, keys: KeySettings) -> Iterator[tuple[str, str]]:
    """Names, and the purpose of each."""
    yield identity.request_id, "the header of identity.request_id"
    for name in identity.own_headers:
        yield name, "a header of identity.headers" if name in identity.headers else "that of identity.would_deny"
    for source in keys.sources:
        if source.kind != "query":
            yield "Cookie" if source.kind == "cookie" else source.name, "where keys.from looks for a credential"
    if any(source.kind == "cookie" for source in keys.pass_through):
        yield "Cookie", "where keys.pass_through looks for a credential"


def errors_of(
    entries: Mapping[str, ErrorEntry], report: Report
) -> tuple[Mapping[Reason, ErrorTemplate], ErrorTemplate | None]:
    """The error response for each configured reason, and the default one."""
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
            elif entry.detail and name not in (*DETAILED, _DEFAULT):
                report.problem((*path, "detail"), f"adds nothing for {name}: it is for {' and '.join(DETAILED)}")
            else:
                found[name] = response
    default = found.pop(_DEFAULT, None)
    return {Reason(name): response for name, response in found.items()}, default


def check_template(template: object, allowed: frozenset[str], path: Path, report: Report) -> None:
    """Reports each placeholder that is not in `allowed`, at its text."""
    for at, text in texts(template, path):
        for name in unknown_placeholders(text, allowed):
            close = did_you_mean(name, allowed) if allowed else ": no placeholder is allowed here"
            report.problem(at, f"unknown placeholder '{{{name}}}'{close}")


def texts(template: object, path: Path) -> Iterator[tuple[Path, str]]:
    """Every text of a template, with its place."""
    match template:
        case dict():
            for name, value in template.items():
                yield from texts(value, (*path, name))
        case list():
            for index, value in enumerate(template):
                yield from texts(value, (*path, index))
        case str():
            yield path, template


def _error_template(entry: ErrorEntry, path: Path, report: Report) -> ErrorTemplate:
    body = None if entry.body is UNSET else entry.body
    check_template(body, ERROR_PLACEHOLDERS, (*path, "body"), report)
    for name, value in (entry.headers or {}).items():
        check_template(value, _NONE, (*path, "headers", name), report)
    return ErrorTemplate(status=entry.status, headers=entry.headers, body=body, detail=entry.detail)


def _folded(name: str) -> bytes:
    return fold(name.encode())


VARIABLE: Final = "SIDECAR_ADMIN_TOKEN"
NAME_OF_VARIABLE: Final = "environment"
_LEAST_CHARACTERS: Final = 20
_TOKENS: Final = ("admin", "tokens")
HASH_PREFIX: Final = "sha256:"


def admin_of(
    settings: AdminSettings,
    environ: Mapping[str, str],
    report: Report,
    *,
    catalogue: Catalogue,
    plans: Collection[str],
) -> AdminSettings | None:
    """None without a token: nobody could use the listener, so it is not opened."""
    _check_tokens(settings, catalogue, plans, report)
    tokens = (*_from_environ(environ, report), *settings.tokens)
    return replace(settings, tokens=tokens) if tokens else None


def _from_environ(environ: Mapping[str, str], report: Report) -> Iterator[AdminToken]:
    try:
        text = environ.get(VARIABLE, "")
    except ValueError as error:
        report.key_problem(("admin",), str(error), Place(VARIABLE))
        return
    if not text:
        return
    if wrapping := wrapped(text):
        report.key_problem(("admin",), f"has {wrapping} around it: set it without them", Place(VARIABLE))
        return
    if len(text) < _LEAST_CHARACTERS or not all("!" <= char <= "~" for char in text):
        wanted = f"must have at least {_LEAST_CHARACTERS} printable ASCII characters without spaces"
        report.key_problem(("admin",), f"{wanted}: make one with `sidecar admin token`", Place(VARIABLE))
        return
    yield AdminToken(name=NAME_OF_VARIABLE, digest=sha256(text.encode()).digest(), rights="write")


def _check_tokens(settings: AdminSettings, catalogue: Catalogue, plans: Collection[str], report: Report) -> None:
    names, digests = {NAME_OF_VARIABLE}, set[bytes]()
    for at, token in report.numbered(_TOKENS, settings.tokens):
        if token.name == NAME_OF_VARIABLE:
            report.problem((*at, "name"), f"is the name of the token in {VARIABLE}: choose another")
        elif token.name in names:
            report.problem((*at, "name"), "is the name of another token")
        if token.digest in digests:
            report.problem((*at, "hash"), "is that of another token: the audit trail could not tell them apart")
        names.add(token.name)
        digests.add(token.digest)
        _check_reach(token, at, catalogue, report)
        for place, plan in report.numbered((*at, "plans"), token.plans or ()):
            if plan not in plans:
                report.problem(place, f"unknown plan '{plan}'{did_you_mean(plan, plans)}")


def _check_reach(token: AdminToken, at: Path, catalogue: Catalogue, report: Report) -> None:
    check_granted(token.scopes or (), (*at, "scopes"), catalogue, report)
    if token.tenant == EVERY:
        report.problem((*at, "tenant"), "leave it out for a token that administers every tenant")
    if token.tenant is None:
        for name, bound in (("scopes", token.scopes), ("plans", token.plans)):
            if bound is not None:
                report.problem((*at, name), "is for a token of one tenant: add `tenant`, or leave it out")


def token_entry(
    text: str,
    *,
    name: str,
    rights: Literal["read", "write"],
    tenant: str | None = None,
    scopes: Sequence[str] = (),
    plans: Sequence[str] = (),
) -> str:
    """The item of `admin: tokens:`, as YAML, for the token `text`. Raises ValueError for an invalid value."""
    written: dict[str, object] = {"name": name, "hash": HASH_PREFIX + sha256(text.encode()).hexdigest()}
    bounds = {"tenant": tenant, "scopes": list(scopes) or None, "plans": list(plans) or None}
    written |= {"rights": rights, **{bound: value for bound, value in bounds.items() if value is not None}}
    report = Report(Place(""))
    try:
        decode(read_nodes(yaml.safe_dump(written).encode(), ""), AdminToken, report, {})
        report.close()
    except ConfigError as error:
        raise ValueError("; ".join(f"{problem.path} {problem.message}" for problem in error.problems)) from None
    return yaml.safe_dump([written], sort_keys=False, allow_unicode=True)
