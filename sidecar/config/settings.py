"""The configuration in force: one frozen value, made by `load`, shared by every request that began under it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from sidecar.core.apikey import ForeignKeys
from sidecar.core.error_responses import ErrorTemplate as ErrorTemplate
from sidecar.core.errors import Reason
from sidecar.core.model import Charge, Quota, Route, Source
from sidecar.core.scopes import Catalogue
from sidecar.usage.anomalies import Unusual


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A socket to bind or to connect to: `host` and `port`, or `path` of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerTls:
    """PEM files of the data listener; read again when they change."""

    certificate: str
    key: str
    client_ca: str = ""
    """Authority whose certificates clients must show; empty for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamTls:
    """PEM files for an https upstream; empty where the system's authorities, no client certificate, the URL's host."""

    ca: str = ""
    certificate: str = ""
    key: str = ""
    server_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a client may take up, in bytes and seconds. None is no limit."""

    request_line: int = 8192
    header: int = 8192
    headers: int = 100
    head: int = 32768
    body: int | None = None
    head_timeout: float = 10.0
    body_rate: int = 256
    """Bytes a second that a body must come in with, on average over any ten seconds."""
    answer_timeout: float = 60.0
    """How long a client may take none of its answer."""
    idle_timeout: float = 75.0
    connections: int = 16384
    connections_per_address: int = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSettings:
    """How to reach the protected service. Times in seconds."""

    address: Address
    tls: UpstreamTls | None = None
    authority: str = ""
    """Host header of the URL itself (`host` or `host:port`), for `host: upstream`."""
    connect_timeout: float = 2.0
    answer_timeout: float = 60.0
    idle_timeout: float = 4.0
    max_connections: int = 256
    queue_timeout: float = 5.0
    host: str = "keep"
    """`keep`, `upstream`, or a literal name."""
    strip_prefix: str = ""
    add_prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySettings:
    """Where keys stand, what they look like, and what is not ours."""

    sources: tuple[Source, ...]
    environments: Mapping[str, str]
    """Environment to prefix. The first is that of keys issued without one."""
    length: int = 43
    checksum_length: int = 6
    prefix_length: int = 12
    default_scopes: tuple[str, ...] = ()
    pass_through: tuple[Source, ...] = ()
    forward_credential: bool = False
    cache_size: int = 100_000
    failures: Quota | None = None
    """Quota by address for wrong keys; None is no limit."""
    imported: tuple[ForeignKeys, ...] = ()
    """Keys made elsewhere."""
    max_age_seconds: float | None = None
    """Past it a key is due to be rotated; None is never."""
    rotation_overlap_seconds: float = 86_400
    retire_unused_seconds: float | None = None
    """A replaced key that nobody has used for so long retires before its overlap ends; None is never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitHeaders:
    """Which rate-limit fields an answer carries."""

    x: bool = True
    reset: Literal["unix", "delta"] = "unix"
    ietf: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Headers that tell the upstream who calls."""

    headers: Mapping[str, str]
    """Name to template, as written."""
    request_id: str = "X-Request-Id"
    strip: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminToken:
    """A token that administers, as its hash, and how far it reaches."""

    name: str
    digest: bytes = field(repr=False)
    """SHA-256 of the token."""
    rights: Literal["read", "write"] = "write"
    tenant: str | None = None
    """The one tenant whose keys it administers; None is all of them."""
    scopes: tuple[str, ...] | None = None
    """What a token of one tenant may grant; None is every scope of the catalogue, but no wildcard."""
    plans: tuple[str, ...] | None = None
    """Plans that a token of one tenant may put a key on; None is all of them, and none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminSettings:
    """The admin listener, and who may use it: at least one token."""

    listen: Address
    tokens: tuple[AdminToken, ...]
    hosts: tuple[str, ...] = ()
    """Names beside localhost and the bound address that a request may be sent to, in lower case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionSettings:
    """The decision listener, and the dialects that it answers in."""

    listen: Address
    dialects: tuple[Literal["nginx", "caddy", "traefik", "envoy"], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSettings:
    """How long use is kept by the hour, and at all, and what of it is unusual."""

    hours_seconds: float = 14 * 86_400
    keep_seconds: float = 90 * 86_400
    unusual: Unusual = field(default_factory=Unusual)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessLogSettings:
    """How a request is written down."""

    format: Literal["json", "combined"] = "json"
    sample_successes: float = 1.0
    """Of what was neither refused nor failed, so much is written: 0 to 1."""
    query: Literal["none", "redacted"] = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracing:
    """Where spans are sent to (OTLP over HTTP), and of how many requests."""

    endpoint: str
    sample: float = 0.1
    """Of the requests whose caller has not decided: 0 to 1."""
    parent: Literal["anyone", "trusted_proxies", "nobody"] = "anyone"
    """Whose `traceparent` is taken up."""
    service: str = ""
    """Empty for OTEL_SERVICE_NAME, or `sidecar`."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload:
    """Whether the file is looked at again, and every how many seconds."""

    watch: bool = True
    interval: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """How long, in seconds, connections are still accepted after SIGTERM, and how long requests may take after that."""

    delay: float = 5.0
    timeout: float = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything the file says, checked and typed."""

    path: str
    sha256: str = field(default="", compare=False)
    """Of the file, hexadecimal."""
    listen: Address
    tls: ListenerTls | None
    limits: Limits
    ops: Address | None
    admin: AdminSettings | None
    """None where nobody could use it: without a token."""
    upstream: UpstreamSettings
    store: str
    """`sqlite:///path`."""
    limiter: str
    keys: KeySettings
    catalogue: Catalogue
    quotas: Mapping[str, Quota]
    plans: Mapping[str, Mapping[str, int]]
    """Plan to quota name to limit."""
    routes: tuple[Route, ...]
    unmatched_charges: tuple[Charge, ...]
    case_sensitive: bool
    identity: Identity
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...]
    forwarded_header: Literal["X-Forwarded-For", "Forwarded"]
    errors: Mapping[Reason, ErrorTemplate]
    """Holds every reason that the file names; `default_error` answers for the rest."""
    default_error: ErrorTemplate | None
    rate_limit_headers: RateLimitHeaders
    realm: str
    access_log: AccessLogSettings | None
    """None where there is none."""
    reload: Reload
    drain: Drain
    decision: DecisionSettings | None = None
    usage: UsageSettings = UsageSettings()
    tracing: Tracing | None = None
