"""The configuration file: one struct for each mapping, which is also what the program uses.

From these types come the decoding of a file, its error messages, its defaults and the JSON Schema. Sections on keys,
quotas or routes are in `policy`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from msgspec import Meta, field
from msgspec.structs import replace

from sidecar.config.decoder import made
from sidecar.config.engines import OneLimiter, OneStore
from sidecar.config.errors import Path, Report
from sidecar.config.fields import (
    Address,
    AdminTokenHash,
    BindAddress,
    Collector,
    Duration,
    DurationOrOff,
    FilePath,
    HeaderValue,
    HostName,
    Name,
    Network,
    OptionalSize,
    PathPrefix,
    Realm,
    ScopeName,
    ServiceName,
    Size,
    Timeout,
    Token,
    Upstream,
    UpstreamHost,
    UpstreamUrl,
    default,
    left_out,
    parse_address,
    seconds,
    size,
)
from sidecar.config.identity import Identity
from sidecar.config.policy import (
    Entry,
    KeySettings,
    Limit,
    NamedQuota,
    PathsEntry,
    Positive,
    ScopeEntry,
    checked_keys,
)
from sidecar.config.routes import CorsEntry, DefaultsEntry, ErrorEntry, RouteOrGroup, UnmatchedEntry, cors_of
from sidecar.core.model import Cors, Mode
from sidecar.usage.anomalies import Unusual

# The data listener, and the resources of a client.


class ListenerTls(Entry, frozen=True, kw_only=True):
    """PEM files of the data listener; read again when they change."""

    examples = MappingProxyType(
        {"certificate": "`certificate: /etc/sidecar/tls.crt`", "key": "`key: /etc/sidecar/tls.key`"}
    )

    certificate: FilePath
    key: FilePath
    client_ca: FilePath = left_out("")
    """Authority that must have signed the clients' certificates; empty for none."""


BindAddresses = Annotated[tuple[BindAddress, ...], Meta(min_length=1)]


def addresses_of(
    written: Address | tuple[Address, ...], path: Path = (), report: Report | None = None
) -> tuple[Address, ...]:
    """One address is a list of one."""
    return (written,) if isinstance(written, Address) else written


Listen = Annotated[tuple[Address, ...], made(addresses_of, BindAddress, BindAddresses)]


_LEAST_HELD_BYTES = 1 << 20


class Limits(Entry, frozen=True, kw_only=True):
    """Limits on the resources of clients, in bytes and seconds."""

    request_line: Size = size("8KiB")
    header: Size = size("8KiB")
    headers: Annotated[int, Meta(ge=1, le=10_000)] = 100
    head: Size = size("32KiB")
    body: OptionalSize = left_out()
    """None is no limit."""
    head_timeout: Timeout = seconds("10s")
    body_rate: Size = size("256B")
    """The minimum rate of a body in bytes per second, averaged over any ten seconds."""
    answer_timeout: Timeout = seconds("60s")
    """How long a client may read nothing of its response."""
    half_closed_timeout: Timeout = seconds("1s")
    """How long the response may take to begin after the client has ended its side of the connection."""
    idle_timeout: Timeout = seconds("75s")
    held_bytes: Size = size("32MiB")
    """Bytes in memory for all slow clients; past it, the slowest are disconnected."""
    connections: Positive = 16384
    connections_per_address: Positive = 16384

    def with_connections(self, most: int) -> "Limits":
        """These, with at most `most` connections."""
        return replace(self, connections=min(self.connections, most))


def checked_limits(limits: Limits, path: Path, report: Report) -> Limits:
    if max(limits.request_line, limits.header) > limits.head:
        report.problem((*path, "head"), "is less than one request line or header may have")
    if limits.held_bytes < _LEAST_HELD_BYTES:
        report.problem((*path, "held_bytes"), "must be at least 1MiB: a few slow clients need as much")
    return limits


# The upstream.


class UpstreamTls(Entry, frozen=True, kw_only=True):
    """PEM files for an https upstream; empty: the system's authorities, no client certificate, the URL's host."""

    ca: FilePath = left_out("")
    certificate: FilePath = left_out("")
    key: FilePath = left_out("")
    server_name: Name = left_out("")


class UpstreamSettings(Entry, frozen=True, kw_only=True):
    """The protected service: where it is, and how to reach it. Times in seconds."""

    examples = MappingProxyType({"url": "`url: http://127.0.0.1:9000`"})

    url: Upstream
    tls: UpstreamTls | None = left_out()
    """None if the URL is not https."""
    connect_timeout: Timeout = seconds("2s")
    answer_timeout: Timeout = seconds("60s")
    idle_timeout: Duration = seconds("4s")
    max_connection_age: DurationOrOff = default("60s", 60.0)
    """After this, a connection takes no more requests, so that a changed DNS record is followed; None is no limit."""
    max_connections: Annotated[int, Meta(ge=1, le=65535)] = 256
    queue_timeout: Duration = seconds("5s")
    host: UpstreamHost = "keep"
    """`keep`, `upstream`, or the Host to send."""
    via: Token | None = left_out()
    """The sidecar's name in Via, of requests and responses (RFC 9110 section 7.6.3); None adds none."""
    strip_prefix: PathPrefix = ""
    add_prefix: PathPrefix = ""
    """The URL's path, where there is one."""

    @property
    def address(self) -> Address:
        return self.url.address

    @property
    def authority(self) -> str:
        """The URL's Host (`host` or `host:port`), for `host: upstream`."""
        return self.url.authority


def upstream_of(written: UpstreamUrl | UpstreamSettings, path: Path, report: Report) -> UpstreamSettings:
    """Completes `tls` and `add_prefix` from the URL. A URL alone is the URL with every default."""
    settings = UpstreamSettings(url=written) if isinstance(written, UpstreamUrl) else written
    url, tls = settings.url, settings.tls
    if url.prefix and settings.add_prefix:
        report.problem((*path, "add_prefix"), "the URL has a path already, which is put before the client's")
    if tls is not None and not url.tls:
        report.problem((*path, "tls"), "needs an https:// URL")
    elif tls is not None and bool(tls.certificate) != bool(tls.key):
        report.problem((*path, "tls"), "certificate and key go together")
    return replace(
        settings, tls=tls or UpstreamTls() if url.tls else None, add_prefix=settings.add_prefix or url.prefix
    )


OneUpstream = Annotated[UpstreamSettings, made(upstream_of, Upstream, UpstreamSettings)]


# The other listeners.


class AdminToken(Entry, frozen=True, kw_only=True):
    """An admin token, by its hash. With a tenant, it reaches that tenant's keys only."""

    examples = MappingProxyType({"name": "`name: ops`", "hash": "`hash: sha256:…`, as `sidecar admin token` prints it"})

    name: Name
    digest: AdminTokenHash = field(name="hash")
    """SHA-256 of the token."""
    rights: Literal["read", "write"] = "read"
    tenant: Annotated[str, Meta(min_length=1)] | None = left_out()
    """None reaches every tenant."""
    scopes: tuple[str, ...] | None = left_out()
    """The scopes that a token of one tenant may grant; None is every scope of the catalogue, but no wildcard."""
    plans: tuple[str, ...] | None = left_out()
    """The plans that a token of one tenant may assign; None is any plan, or no plan."""

    def __repr__(self) -> str:
        return f"AdminToken(name={self.name!r}, rights={self.rights!r}, tenant={self.tenant!r})"


class AdminSettings(Entry, frozen=True, kw_only=True):
    """The admin listener, and its tokens."""

    listen: Listen = default("127.0.0.1:9091", (parse_address("127.0.0.1:9091"),))
    hosts: tuple[HostName, ...] = ()
    """Allowed host names besides localhost and the bound address; in lower case."""
    tokens: tuple[AdminToken, ...] = ()


def admin_of(written: Address | tuple[Address, ...] | AdminSettings, path: Path, report: Report) -> AdminSettings:
    return written if isinstance(written, AdminSettings) else AdminSettings(listen=addresses_of(written))


DialectName = Literal["nginx", "caddy", "traefik", "envoy"]


class DecisionSettings(Entry, frozen=True, kw_only=True):
    """The forward auth listener, and the proxies whose protocols it speaks."""

    examples = MappingProxyType({"listen": "`listen: 127.0.0.1:8081`"})

    listen: Listen
    dialects: Annotated[tuple[DialectName, ...], Meta(min_length=1)] = ("nginx", "caddy", "traefik", "envoy")


def decision_of(
    written: Address | tuple[Address, ...] | DecisionSettings, path: Path, report: Report
) -> DecisionSettings:
    """Addresses alone are these with every dialect."""
    whole = isinstance(written, DecisionSettings)
    settings = written if isinstance(written, DecisionSettings) else DecisionSettings(listen=addresses_of(written))
    for at, address in report.one_or_numbered((*path, "listen") if whole else path, settings.listen):
        if address.path:
            report.problem(at, "must be host:port: the peer of a Unix socket has no address to trust")
    return settings


# How the sidecar changes and ends.


class Reload(Entry, frozen=True, kw_only=True):
    """Whether the sidecar watches its file for changes, and every how many seconds."""

    watch: bool = True
    interval: Timeout = seconds("2s")


class Drain(Entry, frozen=True, kw_only=True):
    """After SIGTERM: seconds in which connections are still accepted, and seconds for requests after that."""

    delay: Duration = seconds("5s")
    timeout: Duration = seconds("20s")
    socket: FilePath = left_out("")
    """Unix socket by which `sidecar drain` reaches the process; empty for none."""


Workers = Annotated[int, Meta(ge=1, le=256)] | Literal["auto"]
"""Processes that serve the data listener; `auto` is one for each core that the process may use."""


class Process(Entry, frozen=True, kw_only=True):
    """Who can read the process's memory, which contains API keys of requests and secrets."""

    core_dumps: bool = False
    """Whether a crash may write memory to a file, within the limits that the process was started with."""
    dumpable: bool = True
    """False: neither debuggers nor /proc show memory and environment to other processes of the same user."""


# Usage, the access log and tracing.


_DAY_SECONDS = 86_400


class RefusalsEntry(Entry, frozen=True, kw_only=True):
    """A number of refusals of one key, or of one network, within a time."""

    limit: Annotated[int, Meta(ge=1, le=10**9)] = 100
    within: Timeout = seconds("1m")


class UnusualEntry(Entry, frozen=True, kw_only=True):
    """What is reported as unusual."""

    unused: DurationOrOff = default("30d", 30.0 * _DAY_SECONDS)
    new_network: bool = True
    refusals: Literal["off"] | RefusalsEntry = RefusalsEntry()
    quiet: Duration = seconds("1h")


def unusual_of(entry: UnusualEntry, path: Path = (), report: Report | None = None) -> Unusual:
    refusals = RefusalsEntry() if isinstance(entry.refusals, str) else entry.refusals
    return Unusual(
        unused_seconds=entry.unused,
        new_network=entry.new_network,
        refusals=None if isinstance(entry.refusals, str) else refusals.limit,
        refusals_seconds=refusals.within,
        repeat_after_seconds=entry.quiet,
    )


class UsageSettings(Entry, frozen=True, kw_only=True):
    """How long usage is kept by the hour, and in total, and which use is unusual."""

    hours_seconds: Timeout = seconds("14d", name="hours")
    keep_seconds: Timeout = seconds("90d", name="keep")
    unusual: Annotated[Unusual, made(unusual_of, UnusualEntry)] = default(UnusualEntry(), unusual_of(UnusualEntry()))


def checked_usage(usage: UsageSettings, path: Path, report: Report) -> UsageSettings:
    if usage.hours_seconds < _DAY_SECONDS:
        report.problem((*path, "hours"), "must be at least 1d: what is older is summed up by the day")
    if usage.keep_seconds < usage.hours_seconds:
        hours = f"{usage.hours_seconds / _DAY_SECONDS:g}d"
        report.problem((*path, "keep"), f"must not be shorter than usage.hours, which is {hours}")
    return usage


LogFormat = Literal["json", "combined", "off"]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]


class AccessLogSettings(Entry, frozen=True, kw_only=True):
    """How the access log is written, and of which requests."""

    format: LogFormat = "json"
    sample_successes: Share = 1.0
    """The share of requests that is logged, of those that were neither denied nor failed."""
    query: Literal["none", "redacted"] = "none"


def access_log_of(written: str | AccessLogSettings, path: Path, report: Report) -> AccessLogSettings:
    """A format alone is the format with every default."""
    return AccessLogSettings(format=written) if isinstance(written, str) else written  # type: ignore[arg-type]


class Tracing(Entry, frozen=True, kw_only=True):
    """Where spans are sent (OTLP over HTTP), and for which share of requests."""

    examples = MappingProxyType({"endpoint": "`endpoint: http://otel-collector:4318`"})

    endpoint: Collector
    sample: Share = 0.1
    """The share for requests whose caller has not decided."""
    parent: Literal["anyone", "trusted_proxies", "nobody"] = "anyone"
    """Whose `traceparent` is continued."""
    service: ServiceName = ""
    """Empty for OTEL_SERVICE_NAME, or `sidecar`."""
    headers: Mapping[Token, HeaderValue] = field(default_factory=dict)
    """Secret: a collector's credential is one of them."""
    timeout: Timeout = seconds("10s")

    def __repr__(self) -> str:
        return f"Tracing(endpoint={self.endpoint!r}, sample={self.sample!r}, parent={self.parent!r})"


def checked_tracing(tracing: Tracing, path: Path, report: Report) -> Tracing:
    if any(name.lower() in ("host", "content-length", "content-type") for name in tracing.headers):
        report.problem((*path, "headers"), "must not hold Host, Content-Length or Content-Type")
    return tracing


# The whole file.


class RateLimitHeaders(Entry, frozen=True, kw_only=True):
    """Which rate-limit fields a response carries."""

    x: bool = True
    reset: Literal["unix", "delta"] = "unix"
    ietf: bool = True
    on_refused_keys: bool = False
    """Also on the 401 of a disabled or an expired key, which reveals that the key existed."""


class Document(Entry, frozen=True, kw_only=True):
    """The whole file. `listen`, `upstream` and `store` are needed, here or from the command line or environment."""

    mode: Mode | None = None
    """The mode of everything without its own; None is `enforce`."""
    listen: Listen | None = None
    tls: ListenerTls | None = None
    proxy_protocol: bool | None = None
    limits: Annotated[Limits, made(checked_limits, Limits)] | None = None
    ops: Listen | None = None
    admin: Annotated[AdminSettings, made(admin_of, BindAddress, BindAddresses, AdminSettings)] | None = None
    decision: Annotated[DecisionSettings, made(decision_of, BindAddress, BindAddresses, DecisionSettings)] | None = None
    upstream: OneUpstream | None = None
    upstreams: Mapping[Name, OneUpstream] | None = None
    store: OneStore | None = None
    limiter: OneLimiter | None = None
    keys: Annotated[KeySettings, made(checked_keys, KeySettings)] | None = None
    scopes: Mapping[ScopeName, str | ScopeEntry | None] | None = None
    quotas: Mapping[Name, NamedQuota] | None = None
    plans: Mapping[Name, Mapping[str, Limit]] | None = None
    rate_limit_headers: RateLimitHeaders | None = None
    defaults: DefaultsEntry | None = None
    routes: tuple[RouteOrGroup, ...] | None = None
    cors: Annotated[Cors, made(cors_of, CorsEntry)] | None = None
    unmatched: UnmatchedEntry | None = None
    paths: PathsEntry | None = None
    identity: Identity | None = None
    trusted_proxies: tuple[Network, ...] | None = None
    forwarded_header: Literal["X-Forwarded-For", "Forwarded"] | None = None
    errors: Mapping[str, ErrorEntry] | None = None
    realm: Realm | None = None
    access_log: Annotated[AccessLogSettings, made(access_log_of, LogFormat, AccessLogSettings)] | None = None
    tracing: Annotated[Tracing, made(checked_tracing, Tracing)] | None = None
    usage: Annotated[UsageSettings, made(checked_usage, UsageSettings)] | None = None
    reload: Reload | None = None
    drain: Drain | None = None
    process: Process | None = None
    workers: Workers | None = None
