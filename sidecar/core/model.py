"""Frozen values that cross the boundaries between rooms. No behaviour beyond reading them.

Stored times are whole microseconds of UTC since 1970 (`*_at`, int); those of limiters and clocks are seconds (float).
Values made for each request are structs: they take a fifth of the time of a frozen dataclass.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal

from msgspec import Struct

from sidecar.core.errors import Reason

EVERY = "*"
"""The wildcard for every tenant, environment, scope or method."""

Mode = Literal["enforce", "observe"]
"""Whether refusals are enforced or only observed. None: this part has no mode, and a wider one decides."""

ENFORCE: Final[Mode] = "enforce"
OBSERVE: Final[Mode] = "observe"

Headers = tuple[tuple[bytes, bytes], ...]
"""Header fields as sent: case, order and duplicates kept."""

_NOTHING: MappingProxyType[str, str] = MappingProxyType({})
_NO_LIMITS: MappingProxyType[str, int] = MappingProxyType({})


class RequestHead(Struct, frozen=True, kw_only=True, gc=False):
    """Everything known about a request before its body."""

    method: str
    target: str
    headers: Headers
    peer: str
    """Address of the socket's other end; empty for a Unix socket."""
    scheme: Literal["http", "https"] = "http"
    version: tuple[int, int] = (1, 1)


class KeyStatus(StrEnum):
    """The status that an administrator gave a key. Expired and retired follow from its times."""

    ACTIVE = "active"
    DISABLED = "disabled"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What is stored about a key; never the secret."""

    id: str
    name: str
    prefix: str
    """The first characters of the plaintext, so that people recognise it."""
    digest: bytes = field(repr=False)
    algorithm: str
    """`sha256`, or `hmac-sha256:<pepper id>`."""
    tenant: str | None = None
    environment: str | None = None
    scopes: tuple[str, ...] = ()
    plan: str | None = None
    quotas: Mapping[str, int] = field(default_factory=lambda: _NO_LIMITS)
    """Limits of this key alone, by quota name; they override the plan's."""
    metadata: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    status: KeyStatus = KeyStatus.ACTIVE
    created_at: int
    created_by: str
    expires_at: int | None = None
    disabled_at: int | None = None
    revoked_at: int | None = None
    replaced_at: int | None = None
    """When another key was issued to replace it."""
    retires_at: int | None = None
    replaces: str | None = None
    last_used_at: int | None = None
    last_used_address: str | None = None
    last_used_agent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """An authenticated identity: the key, and its scopes expanded by the current catalogue."""

    key: ApiKey
    scopes: frozenset[str]
    """Granted scopes with everything they include."""


class Window(StrEnum):
    """How a quota counts."""

    FIXED = "fixed"
    SLIDING = "sliding"
    BUCKET = "bucket"


class Subject(StrEnum):
    """What a quota counts by."""

    KEY = "key"
    TENANT = "tenant"
    ADDRESS = "address"
    ROUTE = "route"
    ENVIRONMENT = "environment"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """A configured allowance: `limit` units per `period`."""

    name: str
    limit: int
    period: Literal["minute", "hour", "day", "week", "month"] | int
    """A calendar unit of the UTC clock, or seconds."""
    window: Window = Window.FIXED
    burst: int | None = None
    """Bucket only: its size; `limit` if absent."""
    by: tuple[Subject, ...] = (Subject.KEY,)
    only: Literal["all", "key", "anonymous"] = "all"
    """Requests that it applies to: all, those with a key, or those without."""
    mode: Mode | None = None


class Bucket(Struct, frozen=True, kw_only=True, gc=False):
    """Something to take from: a quota, the subject it is counted for, its limit for that subject, and the cost."""

    quota: Quota
    subject: tuple[str, ...]
    limit: int
    cost: int = 1


class QuotaState(Struct, frozen=True, kw_only=True, gc=False):
    """What is left of a quota for one subject after (or, refused, before) a take."""

    quota: Quota
    limit: int
    remaining: int
    resets_at: float
    """Unix seconds at which the whole allowance is back (sliding and bucket: if nothing more is taken)."""
    retry_after_seconds: int = 0
    """Refused only: seconds, at least 1, until this take could pass."""

    @property
    def used(self) -> int:
        return self.limit - self.remaining


class Taken(Struct, frozen=True, kw_only=True, gc=False):
    """What the limiter returns. All or nothing: with `refused` set, no bucket was taken from."""

    states: tuple[QuotaState, ...]
    refused: QuotaState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """A quota that a route counts, and how much one request costs."""

    quota: Quota
    cost: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Cors:
    """What scripts of other origins may send and read (Fetch, section 3.2)."""

    origins: frozenset[str]
    """As browsers write them (`https://app.example.com`); `{"*"}` means every origin."""
    headers: tuple[str, ...] = ()
    """Request headers, in addition to those for keys; `*` means all."""
    expose: tuple[str, ...] = ()
    """Response headers, in addition to those that the sidecar adds; `*` means all."""
    credentials: bool = False
    """Whether browsers may send cookies, and client certificates."""
    max_age_seconds: int = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticResponse:
    """The sidecar's own response to a route's requests, instead of the upstream's."""

    status: int = 200
    headers: Headers = ((b"Content-Type", b"application/json"), (b"Cache-Control", b"no-store"))
    body: object = None
    """JSON with placeholders, or bytes that are sent unchanged."""
    tells_quotas: bool = False
    """Whether it reports what is left of every quota of the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardRules:
    """How a route's requests are forwarded, where that differs from the general settings."""

    upstream: str | None = None
    """One of `upstreams`; None is the default one, `upstream`."""
    answer_timeout_seconds: float | None = None
    """Seconds until the head of the response must arrive; None is the upstream's own."""
    body_bytes: float | None = None
    """The largest body; infinite is no limit, None is that of `limits`."""
    strip_prefix: str | None = None
    """Removed from the front of the path; None is the upstream's own."""


_FORWARD_RULES = ForwardRules()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a route requires."""

    public: bool = False
    deny: bool = False
    """Whether nobody may pass; then `all_scopes` contains one that no key has."""
    any_scopes: frozenset[str] = frozenset()
    all_scopes: frozenset[str] = frozenset()
    tenant_param: str | None = None
    """Path parameter that must equal the key's tenant."""
    environment_param: str | None = None
    """Path parameter that must equal the key's environment."""
    environments: frozenset[str] = frozenset()
    """Environments whose keys are accepted; empty means all."""
    charges: tuple[Charge, ...] = ()
    pass_through: bool = True
    """Whether credentials that are not keys may pass (if `keys.pass_through` names them)."""
    refuses_keys: Reason | None = None
    """Why no key may pass, whatever its scopes; None if one may."""
    respond: StaticResponse | None = None
    """None: the upstream responds."""
    cors: Cors | None = None
    """None: no other origin."""
    shared_cache: bool = False
    """Whether a cache may serve the responses to one key to everyone."""
    forward: ForwardRules = _FORWARD_RULES
    mode: Mode | None = None
    """The route's own mode, or that of its group or of `defaults`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A method and path pattern, its policy, and where it is configured."""

    name: str
    """As written: `GET /v1/streams/**`. Metric label and log field."""
    methods: frozenset[str]
    """Any tokens, HEAD included if GET is; `{"*"}` means every method."""
    pattern: str
    policy: Policy
    where: str = ""
    """`file:line`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A place for a credential."""

    kind: Literal["header", "query", "cookie"]
    name: str
    scheme: str | None = None
    """Header only: the auth-scheme before the credential (`Bearer`)."""
    part: Literal["username", "password"] | None = None
    """Basic only: which half of `username:password` is the credential (RFC 7617); None is the base64 itself."""

    @property
    def in_list(self) -> bool:
        """Whether the credential is one of several items, of which the others are for the upstream.

        Scripts cannot set any other header of a WebSocket: they use `new WebSocket(url, [protocol, key])`.
        """
        return self.kind == "header" and self.name.lower() == "sec-websocket-protocol"


class WouldDeny(Struct, frozen=True, kw_only=True, gc=False):
    """Why a request would be refused, and why it is forwarded anyway, in words."""

    reason: Reason
    because: str
    quota: QuotaState | None = None
    """The exhausted observed quota, if that is the reason."""


class Allow(Struct, frozen=True, kw_only=True, gc=False):
    """The request may pass, with everything that the data path needs to forward it."""

    route: Route
    principal: Principal | None
    target: str
    """The request-target to send: the client's bytes, except for a key in the query and a configured prefix."""
    headers: Headers
    """For the upstream: stripped and injected, without framing headers (Content-Length, Transfer-Encoding) and Host."""
    host: bytes
    """The client's Host."""
    request_id: str
    client_address: str
    quota_states: tuple[QuotaState, ...] = ()
    key_in_query: bool = False
    """Whether the received target contains a credential."""
    quotas_left: tuple[QuotaState, ...] = ()
    """What is left of every quota of the key, if the response shows it."""
    pass_through: bool = False
    """Whether the request carries a credential that is not a key; the same for Deny, if it came that far."""
    would_deny: WouldDeny | None = None
    """Set if the request is forwarded only because of `mode: observe`."""


class Deny(Struct, frozen=True, kw_only=True, gc=False):
    """The request is denied, or a fault prevented the decision. `key` is the recognised key, even if not valid.

    methods: those of routes with this path, if the client may know.
    """

    reason: Reason
    route: Route | None = None
    principal: Principal | None = None
    key: ApiKey | None = None
    request_id: str
    client_address: str
    quota_states: tuple[QuotaState, ...] = ()
    refused_quota: QuotaState | None = None
    methods: tuple[str, ...] = ()
    pass_through: bool = False


Decision = Allow | Deny


class Response(Struct, frozen=True, kw_only=True, gc=False):
    """A complete small response of the sidecar's own."""

    status: int
    headers: Headers
    body: bytes
