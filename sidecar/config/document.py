"""The configuration file as it is written: one struct per mapping, in the file's own words.

From these types come the reading of a file, what is said of a wrong one, and the JSON Schema. Texts stay texts here;
the builders beside this module turn them into the values of `model`.
"""

import re
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

from sidecar.config.fields import (
    AdminTokenHash,
    BindAddress,
    Duration,
    DurationOrOff,
    FilePath,
    ForeignPrefix,
    HeaderValue,
    HostName,
    KeyPrefix,
    LimiterUrl,
    Name,
    Network,
    OwnHeader,
    PathPrefix,
    Period,
    Realm,
    ScopeName,
    Size,
    Store,
    Timeout,
    Token,
    Upstream,
    UpstreamHost,
)
from sidecar.core.apikey import ForeignHash
from sidecar.core.model import Subject, Window

# What every mapping of the file is.


class Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mapping of the file."""


# Sections of the configuration file on who may run the sidecar, and how it changes and ends, as they are written.


DialectName = Literal["nginx", "caddy", "traefik", "envoy"]


class AdminTokenEntry(Entry, frozen=True, kw_only=True):
    """An admin token, by its hash. With a tenant, it reaches no further than that tenant's keys."""

    name: Name
    hash: AdminTokenHash
    rights: Literal["read", "write"] = "read"
    tenant: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET
    scopes: tuple[str, ...] | UnsetType = UNSET
    plans: tuple[str, ...] | UnsetType = UNSET


class AdminEntry(Entry, frozen=True, kw_only=True):
    """The admin listener, and who may use it."""

    listen: BindAddress = "127.0.0.1:9091"
    hosts: tuple[HostName, ...] = ()
    tokens: tuple[AdminTokenEntry, ...] = ()


class DecisionEntry(Entry, frozen=True, kw_only=True):
    """The decision listener, and the proxies that it is spoken to by."""

    listen: BindAddress
    dialects: Annotated[tuple[DialectName, ...], Meta(min_length=1)] = ("nginx", "caddy", "traefik", "envoy")


class ReloadEntry(Entry, frozen=True, kw_only=True):
    """Whether the file is looked at again and again, and how often."""

    watch: bool = True
    interval: Timeout = "2s"


class DrainEntry(Entry, frozen=True, kw_only=True):
    """How the sidecar ends after SIGTERM."""

    delay: Duration = "5s"
    timeout: Duration = "20s"


class RefusalsEntry(Entry, frozen=True, kw_only=True):
    """So many refusals of one key, or of one network, within this time."""

    limit: Annotated[int, Meta(ge=1, le=10**9)] = 100
    within: Timeout = "1m"


class UnusualEntry(Entry, frozen=True, kw_only=True):
    """What is told of as unusual."""

    unused: DurationOrOff = "30d"
    new_network: bool = True
    refusals: RefusalsEntry | Literal["off"] = RefusalsEntry()
    quiet: Duration = "1h"


class UsageEntry(Entry, frozen=True, kw_only=True):
    """How long use is kept, and what of it is unusual."""

    hours: Timeout = "14d"
    keep: Timeout = "90d"
    unusual: UnusualEntry = UnusualEntry()


LogFormat = Literal["json", "combined", "off"]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
_SERVICE = re.compile(r"[ -~]{0,200}")


def _check_collector(text: str) -> None:
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError("is no URL: write http://host:4318") from None
    if url.scheme not in ("http", "https") or not url.hostname or port == 0 or not text.isascii():
        raise ValueError("must be the OTLP/HTTP address of a collector: http://host:4318 or https://host/v1/traces")
    if url.username is not None or url.query or url.fragment:
        raise ValueError("must hold no user, query or fragment: credentials belong in tracing.headers")


def _check_service(text: str) -> None:
    if not _SERVICE.fullmatch(text):
        raise ValueError("must be up to 200 printable ASCII characters")


Collector = Annotated[
    str,
    Meta(
        description="http://host:port or https://host:port, with a path or without",
        pattern="^[hH][tT][tT][pP][sS]?://.+$",
        extra={"check": _check_collector},
    ),
]
ServiceName = Annotated[
    str, Meta(description="the name of a service", pattern="^[ -~]{0,200}$", extra={"check": _check_service})
]


class AccessLogEntry(Entry, frozen=True, kw_only=True):
    """How the access log is written, and of which requests."""

    format: LogFormat = "json"
    sample_successes: Share = 1.0
    query: Literal["none", "redacted"] = "none"


class TracingEntry(Entry, frozen=True, kw_only=True):
    """Where spans are sent, and of how many requests."""

    endpoint: Collector
    sample: Share = 0.1
    parent: Literal["anyone", "trusted_proxies", "nobody"] = "anyone"
    service: ServiceName = ""
    headers: dict[Token, HeaderValue] = field(default_factory=dict)
    timeout: Timeout = "10s"


T = TypeVar("T")

Positive = Annotated[int, Meta(ge=1, le=10**15)]
ScopeList = Annotated[tuple[str, ...], Meta(min_length=1)]
EnvironmentList = Annotated[tuple[str, ...], Meta(min_length=1)]


class ListenerTlsEntry(Entry, frozen=True, kw_only=True):
    """PEM files of the data listener."""

    certificate: FilePath
    key: FilePath
    client_ca: FilePath | UnsetType = UNSET


class UpstreamTlsEntry(Entry, frozen=True, kw_only=True):
    """PEM files and the name for an https upstream."""

    ca: FilePath | UnsetType = UNSET
    certificate: FilePath | UnsetType = UNSET
    key: FilePath | UnsetType = UNSET
    server_name: Name | UnsetType = UNSET


class LimitsEntry(Entry, frozen=True, kw_only=True):
    """What a client may take up."""

    request_line: Size = "8KiB"
    header: Size = "8KiB"
    headers: Annotated[int, Meta(ge=1, le=10_000)] = 100
    head: Size = "32KiB"
    body: Size | UnsetType = UNSET
    head_timeout: Timeout = "10s"
    body_rate: Size = "256B"
    answer_timeout: Timeout = "60s"
    idle_timeout: Timeout = "75s"
    connections: Positive = 16384
    connections_per_address: Positive = 16384


class UpstreamEntry(Entry, frozen=True, kw_only=True):
    """The protected service: where it is, and how to talk to it."""

    url: Upstream
    tls: UpstreamTlsEntry | UnsetType = UNSET
    connect_timeout: Timeout = "2s"
    answer_timeout: Timeout = "60s"
    idle_timeout: Duration = "4s"
    max_connections: Annotated[int, Meta(ge=1, le=65535)] = 256
    queue_timeout: Duration = "5s"
    host: UpstreamHost = "keep"
    strip_prefix: PathPrefix = ""
    add_prefix: PathPrefix = ""


class SourceEntry(Entry, frozen=True, kw_only=True):
    """A place where a credential may stand: exactly one of header (with an optional scheme), query or cookie."""

    header: Token | UnsetType = UNSET
    scheme: Token | UnsetType = UNSET
    query: str | UnsetType = UNSET
    cookie: Token | UnsetType = UNSET


OneSource = Annotated[
    SourceEntry,
    Meta(extra_json_schema={"oneOf": [{"required": [kind]} for kind in ("header", "query", "cookie")]}),
]
SourceList = Annotated[tuple[OneSource, ...], Meta(min_length=1)]


class Allowance(Entry, frozen=True, kw_only=True):
    """So many units per period."""

    limit: Positive
    per: Period
    window: Window = Window.FIXED
    burst: Positive | UnsetType = UNSET


class QuotaEntry(Allowance, frozen=True, kw_only=True):
    """A named allowance, what it counts by, and for which requests."""

    by: Subject | Annotated[tuple[Subject, ...], Meta(min_length=1)] = Subject.KEY
    only: Literal["all", "key", "anonymous"] = "all"


class ImportedEntry(Entry, frozen=True, kw_only=True):
    """Keys made elsewhere: what they begin with, and how they are hashed in the store that they come from."""

    prefix: ForeignPrefix
    hash: ForeignHash = "sha256"
    pepper: str | UnsetType = UNSET


class KeysEntry(Entry, frozen=True, kw_only=True):
    """Where keys stand, what they look like, and what is not a key of ours."""

    from_: SourceList = field(name="from", default=(SourceEntry(header="Authorization", scheme="Bearer"),))
    environments: Annotated[dict[Name, KeyPrefix], Meta(min_length=1)] = field(default_factory=lambda: {"live": "key_"})
    length: Annotated[int, Meta(ge=22, le=200)] = 43
    checksum: Annotated[int, Meta(ge=0, le=8)] = 6
    prefix_length: Annotated[int, Meta(ge=1, le=100)] = 12
    default_scopes: tuple[str, ...] = ()
    pass_through: tuple[OneSource, ...] = ()
    forward_credential: bool = False
    cache_size: Annotated[int, Meta(ge=1, le=10**8)] = 100_000
    failures: Allowance | Literal["off"] = Allowance(limit=300, per="minute")
    imported: tuple[ImportedEntry, ...] = ()
    max_age: DurationOrOff = "off"
    rotation_overlap: Duration = "24h"
    retire_unused: DurationOrOff = "off"


class ScopeEntry(Entry, frozen=True, kw_only=True):
    """A scope with what it includes."""

    description: str = ""
    includes: tuple[str, ...] = ()


class RateLimitHeadersEntry(Entry, frozen=True, kw_only=True):
    """Which rate-limit fields an answer carries."""

    x: bool = True
    reset: Literal["unix", "delta"] = "unix"
    ietf: bool = True


class ChargeEntry(Entry, frozen=True, kw_only=True):
    """A quota, and how much of it one request costs."""

    quota: str
    cost: Positive = 1


class PolicyEntry(Entry, frozen=True, kw_only=True):
    """What a route demands. An empty mapping asks for a valid key and nothing else."""

    public: bool = False
    scopes: ScopeList | UnsetType = UNSET
    all_scopes: ScopeList | UnsetType = UNSET
    tenant: str | UnsetType = UNSET
    environment: str | UnsetType = UNSET
    environments: EnvironmentList | UnsetType = UNSET
    quotas: tuple[str | ChargeEntry, ...] = ()
    pass_through: bool = True
    respond: Any = UNSET


RouteEntry = Annotated[dict[str, PolicyEntry], Meta(min_length=1, max_length=1)]


class UnmatchedEntry(Entry, frozen=True, kw_only=True):
    """What holds where no route matches."""

    quotas: tuple[str | ChargeEntry, ...] = ()


class PathsEntry(Entry, frozen=True, kw_only=True):
    """How paths are compared."""

    case_sensitive: bool = True


class IdentityEntry(Entry, frozen=True, kw_only=True):
    """What the upstream is told of who calls."""

    headers: dict[OwnHeader, HeaderValue] = field(default_factory=dict)
    request_id: OwnHeader = "X-Request-Id"
    strip: tuple[OwnHeader, ...] = ("X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method")


class ErrorEntry(Entry, frozen=True, kw_only=True):
    """How a refusal is answered."""

    status: Annotated[int, Meta(ge=400, le=599)] | UnsetType = UNSET
    headers: dict[OwnHeader, HeaderValue] | UnsetType = UNSET
    body: Any = UNSET


class Document(Entry, frozen=True, kw_only=True):
    """The whole file. `listen`, `upstream` and `store` are needed, here or from the command line or environment."""

    listen: BindAddress | None = None
    tls: ListenerTlsEntry | None = None
    limits: LimitsEntry | None = None
    ops: BindAddress | None = None
    admin: BindAddress | AdminEntry | None = None
    decision: BindAddress | DecisionEntry | None = None
    upstream: Upstream | UpstreamEntry | None = None
    store: Store | None = None
    limiter: LimiterUrl | None = None
    keys: KeysEntry | None = None
    scopes: dict[ScopeName, str | ScopeEntry | None] | None = None
    quotas: dict[Name, QuotaEntry] | None = None
    plans: dict[Name, dict[str, Positive]] | None = None
    rate_limit_headers: RateLimitHeadersEntry | None = None
    routes: tuple[RouteEntry, ...] | None = None
    unmatched: UnmatchedEntry | None = None
    paths: PathsEntry | None = None
    identity: IdentityEntry | None = None
    trusted_proxies: tuple[Network, ...] | None = None
    forwarded_header: Literal["X-Forwarded-For", "Forwarded"] | None = None
    errors: dict[str, ErrorEntry] | None = None
    realm: Realm | None = None
    access_log: LogFormat | AccessLogEntry | None = None
    tracing: TracingEntry | None = None
    usage: UsageEntry | None = None
    reload: ReloadEntry | None = None
    drain: DrainEntry | None = None


def given(value: T | UnsetType) -> T | None:
    """The value, or None where the file does not give one."""
    return None if isinstance(value, UnsetType) else value


# The JSON Schema (2020-12) of the configuration file, for editors; from the same types that a file is read with.


_VARIABLE = r"\$\{"
_KEYWORD = "propertyNames"


def json_schema() -> dict[str, Any]:
    """Wherever a value of its own kind may stand, text with a `${VAR}` may stand as well."""
    schema = _open(msgspec.json.decode(msgspec.json.encode(msgspec.json.schema(Document))))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "sidecar configuration", **schema}


def _open(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_open(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    opened = {name: value if name in (_KEYWORD, "default") else _open(value) for name, value in schema.items()}
    if "pattern" in opened:
        opened["pattern"] = f"{opened['pattern']}|{_VARIABLE}"
        return opened
    if opened.get("type") in ("integer", "boolean") or "enum" in opened:
        kept = {name: opened.pop(name) for name in ("title", "description", "default") if name in opened}
        return {**kept, "anyOf": [opened, {"type": "string", "pattern": _VARIABLE}]}
    return opened
