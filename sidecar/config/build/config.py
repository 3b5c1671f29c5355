"""The current configuration: the document with every name resolved."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network
from typing import Final, Literal

from sidecar.config.build.addresses import bound, check_addresses
from sidecar.config.build.policy import (
    VARIABLE,
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
from sidecar.config.store_url import is_file
from sidecar.core.error_responses import ErrorTemplate
from sidecar.core.errors import Reason
from sidecar.core.model import ENFORCE, EVERY, Cors, Mode, Policy, Quota, Route
from sidecar.core.patterns import parse_pattern
from sidecar.core.policy import Catalogue
from sidecar.core.quotas import Plans
from sidecar.core.routing import EVERYTHING, NO_ROUTE, RouteTable

NO_ADMIN_TOKEN: Final = (
    f"no listener is opened without an admin token: set {VARIABLE}, or list the hash of one in admin.tokens"
)
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
    """What can be used, but is hardly meant."""
    notes: tuple[Problem, ...] = field(default=(), compare=False)
    """What is without effect here, and may be meant so."""
    mode: Mode = ENFORCE
    """The mode of parts without their own; see `modes`."""
    listen: tuple[Address, ...]
    tls: ListenerTls | None
    proxy_protocol: bool
    """Whether connections to the data listener begin with a PROXY header, from one of `trusted_proxies`."""
    limits: Limits
    ops: tuple[Address, ...] | None
    admin: AdminSettings | None = None
    """None where nobody could use it: without a token."""
    admin_lacks_token: bool = field(default=False, compare=False)
    """Whether the file has the section, but its listener is not opened because there is no token."""
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
    def listeners(self) -> Mapping[str, Sequence[Address]]:
        """Where the sidecar listens, by the option that says so."""
        found = {
            "listen": self.listen,
            "ops": self.ops,
            "admin": None if self.admin is None else self.admin.listen,
            "decision": None if self.decision is None else self.decision.listen,
        }
        return {name: bound(addresses) for name, addresses in found.items() if addresses}

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
    check_addresses(document, report)
    config = _sections(path, document)
    catalogue = catalogue_of(document.scopes or {}, report)
    plans = plans_of(document.plans or {}, report)
    check_granted(config.keys.default_scopes, ("keys", "default_scopes"), catalogue, report)
    check_number(config.keys, catalogue, report)
    _check_default_plan(config.keys.default_plan, plans, report)
    admin = admin_of(document.admin or AdminSettings(), environ, report, catalogue=catalogue, plans=plans)
    lacks_token = document.admin is not None and admin is None
    if lacks_token and "tokens" not in report.names(("admin",)):
        # No warning, which would fail builds with `check --strict`: the token is often set only where the sidecar runs,
        # and `tokens: []` says so.
        report.note(("admin",), NO_ADMIN_TOKEN)
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
        admin_lacks_token=lacks_token,
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
    # `auto` may mean one, so it is looked at when the machine is known.
    several = document.workers not in (None, 1, "auto")
    if several and document.store is not None and is_file(document.store.url):
        report.problem(("workers",), "must be 1 here, or be left out: keys in a file are served by one process")


# Valid values that are probably mistakes: pairs of a location and a message.


Doubts = Iterator[tuple[Path, str]]

_EXPRESS = re.compile(r":([A-Za-z_][A-Za-z0-9_]*).*")
_TEMPLATE = re.compile(r"\$(\{[A-Za-z0-9_]+\}).*")
_EVERY_ELSEWHERE = frozenset({"ALL", "ANY"})
_OF_A_RESPONSE = ("status", "statuscode", "headers", "location", "body", "contenttype")
_TAKEN = frozenset(
    {
        "accept", "connection", "content-length", "content-type", "date", "expect", "forwarded", "host", "keep-alive",
        "origin", "proxy-authorization", "proxy-connection", "range", "referer", "te", "trailer", "transfer-encoding",
        "upgrade", "user-agent", "via", "x-real-ip",
    }
)  # fmt: skip
"""In lower case: headers that clients cannot set, or never to a key."""
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
        elif source.kind == "header" and source.name.lower() == "cookie":
            yield path, "a key that is a whole Cookie header is none that clients send: write `cookie: NAME`"
        elif source.kind == "header" and _is_taken(source.name.lower()):
            yield (
                path,
                f"clients and proxies write {source.name} for another purpose, and never a key: name another header",
            )


def _is_taken(name: str) -> bool:
    return name in _TAKEN or name.startswith(("x-forwarded-", "sec-fetch-", "access-control-"))


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
            if express := _EXPRESS.fullmatch(segment):
                yield path, f"'{segment}' matches these characters only: write {{{express[1]}}} for a parameter"
            elif template := _TEMPLATE.fullmatch(segment):
                yield path, f"'{segment}' matches what begins with '$': write {template[1]} for a parameter"
        for method in sorted(route.methods & _EVERY_ELSEWHERE):
            yield path, f"'{method}' is a method of this name: write * for every method"
        respond = route.policy.respond.body if route.policy.respond and "respond" in report.names(path) else None
        if isinstance(respond, dict) and (odd := [key for key in respond if _of_a_response(key, respond[key])]):
            at = (*path, "respond", odd[0])
            yield (
                at,
                f"`respond` is the JSON body of a 200, where '{odd[0]}' is a member like any other: a whole response "
                "is `response: {status: …, headers: …, body: …}`",
            )


def _of_a_response(key: str, value: object) -> bool:
    """Whether it is written as if the response had it: `status` as a number, the others whatever they are."""
    name = re.sub("[_-]", "", key).lower()
    return name in _OF_A_RESPONSE and (not name.startswith("status") or isinstance(value, int))


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
    public = [(path, route) for path, route in routes if route.policy.public]
    readable = {route.pattern for _, route in public if "GET" in route.methods}
    for path, route in public:
        # Where GET is open, HEAD opens nothing more, whether it goes with GET or has a route of its own.
        methods = route.methods - {"HEAD"} if route.pattern in readable else route.methods
        if methods:
            stem = "/" + "/".join(parse_pattern(route.pattern).example(_ANYTHING))
            matches = [closed.match(_ANYTHING if method == EVERY else method, stem) for method in sorted(methods)]
            if around := next((match.route for match in matches if match), None):
                yield (*path, "public"), f"`{route.name}` needs no key, though `{around.name}` around it does"
