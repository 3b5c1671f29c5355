"""The current configuration: the document with every name resolved."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Literal

from sidecar.config.build.policy import (
    admin_of,
    catalogue_of,
    charges_of,
    check_granted,
    check_identity,
    check_number,
    check_passing,
    errors_of,
    plans_of,
)
from sidecar.config.build.routes import Vocabulary, routes_of, unmatched_of
from sidecar.config.document import (
    AccessLogSettings,
    AdminSettings,
    DecisionSettings,
    Document,
    Drain,
    Limits,
    ListenerTls,
    Process,
    RateLimitHeaders,
    Reload,
    Tracing,
    UpstreamSettings,
    UsageSettings,
    Workers,
)
from sidecar.config.engines import LimiterSettings, replica_of
from sidecar.config.errors import Path, Problem, Report, did_you_mean
from sidecar.config.fields import Address, UpstreamUrl
from sidecar.config.identity import Identity
from sidecar.config.policy import KeySettings, PathsEntry
from sidecar.config.routes import DefaultsEntry, UnmatchedEntry
from sidecar.core.error_responses import ErrorTemplate
from sidecar.core.errors import Reason
from sidecar.core.model import ENFORCE, EVERY, Cors, Mode, Policy, Quota, Route
from sidecar.core.patterns import parse_pattern
from sidecar.core.policy import Catalogue
from sidecar.core.quotas import Plans
from sidecar.core.routing import EVERYTHING, NO_ROUTE, RouteTable

_NEEDED = {
    "listen": "`listen: host:port`",
    "upstream": "`upstream: http://host:port`",
    "store": "`store: sqlite:///path`",
}


_UNMATCHED = Route(name=NO_ROUTE, methods=frozenset({EVERY}), pattern=EVERYTHING, policy=Policy(pass_through=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything in the file, checked and typed; shared by every request that began under it."""

    path: str
    sha256: str = field(default="", compare=False)
    """SHA-256 of the file, in hexadecimal."""
    warnings: tuple[Problem, ...] = field(default=(), compare=False)
    """Valid values that are probably mistakes."""
    mode: Mode = ENFORCE
    """The mode of parts without their own; see `modes`."""
    listen: tuple[Address, ...]
    tls: ListenerTls | None
    proxy_protocol: bool
    """Whether connections to the data listener begin with a PROXY header, from one of `trusted_proxies`."""
    limits: Limits
    ops: tuple[Address, ...] | None
    admin: AdminSettings | None = None
    """None without a token: nobody could use it."""
    upstream: UpstreamSettings
    upstreams: Mapping[str, UpstreamSettings] = field(default_factory=dict)
    """Further upstreams, for routes that name them."""
    store: str
    """`sqlite:///path`, `postgresql://…`, or `file:///path` of a file of records."""
    store_usage: str = ""
    """For a file of records: the SQLite database for use and changes of its keys; empty for none."""
    store_replica: str = ""
    """For PostgreSQL: the URL of a standby where keys are looked up; empty: at the primary."""
    store_grace: float = 0.0
    """Seconds for which cached keys keep working while the store does not respond."""
    limiter: LimiterSettings
    keys: KeySettings
    catalogue: Catalogue = field(default_factory=lambda: Catalogue(()))
    quotas: Mapping[str, Quota]
    plans: Plans = field(default_factory=dict)
    routes: tuple[Route, ...] = ()
    cors: Cors | None = None
    """For requests without a route, and for routes without their own section."""
    unmatched: Route = _UNMATCHED
    """Matches no request if it lets nothing pass; then its quotas are only shown to keys."""
    method_not_allowed: bool = False
    """Whether a key without a matching route learns the methods that routes have at its path."""
    case_sensitive: bool
    encoded_slash: Literal["split", "keep"]
    colon: Literal["verb", "plain"] = "verb"
    identity: Identity
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...]
    forwarded_header: Literal["X-Forwarded-For", "Forwarded"]
    errors: Mapping[Reason, ErrorTemplate] = field(default_factory=dict)
    """For each reason that the file names; `default_error` is for the others."""
    default_error: ErrorTemplate | None = None
    rate_limit_headers: RateLimitHeaders
    realm: str
    access_log: AccessLogSettings | None
    """None if disabled."""
    reload: Reload
    drain: Drain
    process: Process
    workers: Workers = 1
    decision: DecisionSettings | None
    usage: UsageSettings
    tracing: Tracing | None

    @property
    def every_upstream(self) -> Mapping[str | None, UpstreamSettings]:
        """By name; None is the default one."""
        return dict([(None, self.upstream), *self.upstreams.items()])

    @property
    def upstream_connections(self) -> int:
        """Most concurrent connections to all upstreams."""
        return sum(upstream.max_connections for upstream in self.every_upstream.values())

    @property
    def keep_slash(self) -> bool:
        """Whether the upstream keeps an encoded slash within its segment."""
        return self.encoded_slash == "keep"


def config_of(path: str, document: Document, report: Report, environ: Mapping[str, str]) -> Config:
    """Reports every unknown name, and every violated requirement between sections."""
    _check_needed(document, report)
    _check_addresses(document, report)
    config = _sections(path, document)
    catalogue = catalogue_of(document.scopes or {}, report)
    plans = plans_of(document.plans or {}, report)
    check_granted(config.keys.default_scopes, ("keys", "default_scopes"), catalogue, report)
    check_number(config.keys, catalogue, report)
    _check_default_plan(config.keys.default_plan, plans, report)
    admin = admin_of(document.admin or AdminSettings(), environ, report, catalogue=catalogue, plans=plans)
    proxies = bool(config.trusted_proxies)
    check_identity(config.identity, config.keys, proxies=proxies, report=report)
    check_passing(config.identity, config.keys, proxies=proxies, admin=admin is not None, report=report)
    words = _vocabulary(config, catalogue, report)
    errors, default_error = errors_of(document.errors or {}, report)
    common = document.defaults or DefaultsEntry()
    charges = charges_of(common.quotas, ("defaults", "quotas"), config.quotas, report)
    defaults = Policy(charges=charges, mode=common.mode)
    routes = routes_of(document.routes or (), defaults, words, report)
    table = tuple(route for _, route in routes)
    config = replace(
        config,
        admin=admin,
        catalogue=catalogue,
        plans=plans,
        routes=table,
        unmatched=unmatched_of(document.unmatched or UnmatchedEntry(), table, words, report),
        errors=errors,
        default_error=default_error,
    )
    for place, message in _doubts(config, routes, report):
        report.doubt(place, message)
    return config


def _vocabulary(config: Config, catalogue: Catalogue, report: Report) -> Vocabulary:
    return Vocabulary(
        catalogue=catalogue,
        quotas=config.quotas,
        environments=report.names(("keys", "environments")) or tuple(config.keys.environments),
        keys=config.keys,
        case_sensitive=config.case_sensitive,
        cors=config.cors,
        upstreams=config.upstreams,
    )


def _check_default_plan(plan: str | None, plans: Plans, report: Report) -> None:
    if plan is not None and plan not in report.names(("plans",)):
        report.problem(("keys", "default_plan"), f"unknown plan '{plan}'{did_you_mean(plan, plans)}")


def _sections(path: str, document: Document) -> Config:
    """The sections that refer to no other section. An empty section counts as left out."""
    access_log = document.access_log or AccessLogSettings()
    paths = document.paths or PathsEntry()
    return Config(
        path=path,
        mode=document.mode or ENFORCE,
        listen=document.listen or (),
        tls=document.tls,
        proxy_protocol=bool(document.proxy_protocol),
        limits=document.limits or Limits(),
        ops=document.ops,
        upstream=document.upstream or UpstreamSettings(url=UpstreamUrl(address=Address())),
        upstreams=document.upstreams or {},
        store=document.store.url if document.store else "",
        store_usage=document.store.usage if document.store else "",
        store_replica=replica_of(document.store),
        store_grace=document.store.grace if document.store else 0.0,
        limiter=document.limiter or LimiterSettings(),
        keys=document.keys or KeySettings(),
        quotas=document.quotas or {},
        cors=document.cors,
        method_not_allowed=document.unmatched is not None and document.unmatched.method_not_allowed,
        case_sensitive=paths.case_sensitive,
        encoded_slash=paths.encoded_slash,
        colon=paths.colon,
        identity=document.identity or Identity(),
        trusted_proxies=document.trusted_proxies or (),
        forwarded_header=document.forwarded_header or "X-Forwarded-For",
        rate_limit_headers=document.rate_limit_headers or RateLimitHeaders(),
        realm="api" if document.realm is None else document.realm,
        access_log=None if access_log.format == "off" else access_log,
        tracing=document.tracing,
        decision=document.decision,
        usage=document.usage or UsageSettings(),
        reload=document.reload or Reload(),
        drain=document.drain or Drain(),
        process=document.process or Process(),
        workers=document.workers or 1,
    )


def _check_needed(document: Document, report: Report) -> None:
    for name, example in _NEEDED.items():
        if getattr(document, name) is None and report.sound((name,)):
            report.problem((name,), f"missing: write {example}, or give --{name} or SIDECAR_{name.upper()}")


def _check_addresses(document: Document, report: Report) -> None:
    if document.decision is not None and not document.trusted_proxies:
        report.problem(("decision",), "answers trusted proxies only: name the one in front in trusted_proxies")
    if document.proxy_protocol and not document.trusted_proxies and not all(at.path for at in document.listen or ()):
        report.problem(("proxy_protocol",), "is for trusted proxies only: name the one in front in trusted_proxies")
    used: dict[Address, str] = {}
    listeners = {
        "listen": document.listen,
        "ops": document.ops,
        "admin": document.admin.listen if document.admin else None,
        "decision": document.decision.listen if document.decision else None,
    }
    for name, addresses in listeners.items():
        path = (name, "listen") if "listen" in report.names((name,)) else (name,)
        for at, address in report.one_or_numbered(path, addresses or ()):
            if address in used:
                taken = "in the list" if used[address] == name else f"the address of {used[address]}"
                report.problem(at, f"is {taken} already")
            elif address.port or address.path:
                used[address] = name
    for at, upstream in _upstreams(document):
        own = next((name for name, addresses in listeners.items() if _leads_to(upstream, addresses)), None)
        if own is not None and report.sound(at):
            report.problem(at, f"is the sidecar itself, at the address of {own}: name the service's own")


def _upstreams(document: Document) -> Iterator[tuple[Path, UpstreamSettings]]:
    if document.upstream is not None:
        yield ("upstream",), document.upstream
    yield from ((("upstreams", name), upstream) for name, upstream in (document.upstreams or {}).items())


def _leads_to(upstream: UpstreamSettings, addresses: Sequence[Address] | None) -> bool:
    return any(reaches(upstream.address, address) for address in bound(addresses or ()))


# Whether the upstream is the sidecar itself, so that a request would loop.


_EVERY = {4: "0.0.0.0", 6: "::"}  # noqa: S104 - where others bind
_LOOPBACK = {4: "127.0.0.1", 6: "::1"}


def bound(addresses: Sequence[Address]) -> Sequence[Address]:
    """`addresses`, and that of IPv4 if `[::]` means both families."""
    ipv4 = {address.port for address in addresses if address.host and ":" not in address.host}
    both = [at for at in addresses if at.host == "::" and at.port not in ipv4]
    return [*addresses, *(Address(host=_EVERY[4], port=at.port) for at in both)]


def reaches(upstream: Address, listener: Address, *, here: bool = False) -> bool:
    """Whether the upstream's address reaches a listener. here: its host is known to be this one."""
    if upstream.path or listener.path:
        return upstream.path == listener.path
    if upstream.port != listener.port:
        return False
    bound = set(_LOOPBACK.values()) if listener.host == "localhost" else {listener.host.lower()}
    return not bound.isdisjoint(_reached(upstream.host.lower(), here=here))


def _reached(host: str, *, here: bool) -> set[str]:
    """Hosts whose listeners a connection to `host` may reach."""
    if host == "localhost":
        return {*_EVERY.values(), *_LOOPBACK.values()}
    try:
        address = ip_address(host)
    except ValueError:
        return {host, *(_EVERY.values() if here else ())}
    if address.is_unspecified:
        return {host, _LOOPBACK[address.version]}
    return {host, _EVERY[address.version]} if here or address.is_loopback else {host}


# Valid values that are probably mistakes: pairs of a location and a message.


Doubts = Iterator[tuple[Path, str]]

_EXPRESS = re.compile(r":[A-Za-z_][A-Za-z0-9_]*")
_OF_A_RESPONSE = ("status", "headers", "location", "body")
_ANYTHING = "\0"


def _doubts(config: Config, routes: Sequence[tuple[Path, Route]], report: Report) -> Doubts:
    yield from _doubtful_sources(config.keys)
    yield from _doubtful_includes(config.catalogue)
    if routes:
        yield from _unused(config)
        yield from _doubtful_routes(routes, report)
        yield from _uncounted(routes, report)
        yield from _open_below_closed(routes)


def _doubtful_sources(keys: KeySettings) -> Doubts:
    for position, source in enumerate(keys.sources):
        path = ("keys", "from", position)
        if (source.scheme or "").lower() == "basic" and source.part is None:
            why = "clients send `username:password` in base64 with Basic (RFC 7617): no key is found in that"
            yield path, f"{why}; write `as: username` (curl -u KEY:) or `as: password`"


def _doubtful_includes(catalogue: Catalogue) -> Doubts:
    for name in catalogue.scopes:
        way = _way_back(name, catalogue)
        if way and min(way) == name:
            yield ("scopes", name), f"scopes include each other, and so are the same: {' → '.join([*way, name])}"


def _way_back(name: str, catalogue: Catalogue) -> Sequence[str]:
    """The cycle of scopes through which one includes itself; empty if there is none."""
    pending: list[tuple[str, ...]] = [(name,)]
    seen = set[str]()
    while pending:
        way = pending.pop()
        for included in catalogue.scopes[way[-1]].includes:
            if included == name:
                return way
            if included in catalogue.scopes and included not in seen:
                seen.add(included)
                pending.append((*way, included))
    return ()


def _unused(config: Config) -> Doubts:
    policies = [route.policy for route in config.routes]
    required = {scope for policy in policies for scope in policy.any_scopes | policy.all_scopes}
    for name in config.catalogue.scopes:
        if required.isdisjoint(config.catalogue.expand([name])):
            yield ("scopes", name), "no route requires this scope, or one that it includes"
    counted = {charge.quota.name for policy in policies for charge in policy.charges}
    counted |= {charge.quota.name for charge in config.unmatched.policy.charges}
    for name in config.quotas:
        if name not in counted:
            yield ("quotas", name), "no route counts this quota"
    forwarded = {policy.forward.upstream for policy in policies}
    for name in config.upstreams:
        if name not in forwarded:
            yield ("upstreams", name), "no route is forwarded to this upstream"
    for name, limits in config.plans.items():
        if counted.isdisjoint(limits):
            yield ("plans", name), "no route counts a quota of this plan"


def _doubtful_routes(routes: Sequence[tuple[Path, Route]], report: Report) -> Doubts:
    for path, route in routes:
        for segment in parse_pattern(route.pattern).segments:
            if _EXPRESS.fullmatch(segment):
                yield path, f"'{segment}' matches these characters only: write {{{segment[1:]}}} for a parameter"
        respond = route.policy.respond.body if route.policy.respond and "respond" in report.names(path) else None
        if isinstance(respond, dict) and (odd := [key for key in respond if _of_a_response(key, respond[key])]):
            at = (*path, "respond", odd[0])
            yield (
                at,
                f"`respond` is the JSON body of a 200, where '{odd[0]}' is a member like any other: a whole response "
                "is `response: {status: …, headers: …, body: …}`",
            )


def _of_a_response(key: str, value: object) -> bool:
    """Whether it is written like an option of the response: `status` as a number, the others with any value."""
    return key.lower() in _OF_A_RESPONSE and (key.lower() != "status" or isinstance(value, int))


def _uncounted(routes: Sequence[tuple[Path, Route]], report: Report) -> Doubts:
    if not any(route.policy.charges for _, route in routes):
        return
    for path, route in routes:
        said = "quotas" in report.names(path) or "quotas" in report.names(path[:2])
        if not route.policy.charges and not route.policy.deny and not said:
            yield path, f"`{route.name}` has no quota, but other routes do: write `quotas: []` if that is intended"


def _open_below_closed(routes: Sequence[tuple[Path, Route]]) -> Doubts:
    wide = [route for _, route in routes if route.pattern.endswith("/**")]
    closed = RouteTable([route for route in wide if not route.policy.public and not route.policy.deny])
    for path, route in routes:
        if route.policy.public:
            stem = "/" + "/".join(parse_pattern(route.pattern).example(_ANYTHING))
            matches = [closed.match(_ANYTHING if method == EVERY else method, stem) for method in sorted(route.methods)]
            if around := next((match.route for match in matches if match), None):
                yield (*path, "public"), f"`{route.name}` needs no key, though `{around.name}` around it does"
