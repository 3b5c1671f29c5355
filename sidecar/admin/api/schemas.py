"""What the API takes: one struct per JSON object. Unknown fields are refused; what is left out stays as it is."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from sidecar.keys.ports import Standing
from sidecar.keys.records import PublicKey

# What the API gives: one struct per JSON object. Times are RFC 3339, in UTC.


class KeyPage(Struct, frozen=True, kw_only=True):
    """Keys, the newest first, and the cursor of the next page; null on the last."""

    keys: tuple[PublicKey, ...]
    next: str | None


class IssuedKey(Struct, frozen=True, kw_only=True):
    """A new key. `secret` is the key itself, told this once.

    It is null where the same request (by its Idempotency-Key) was carried out before: it is not stored.
    """

    key: PublicKey
    secret: str | None
    repeated: bool


class RotatedKey(Struct, frozen=True, kw_only=True):
    """A new key in the place of an old one; `secret` as where a key is issued."""

    key: PublicKey
    old: PublicKey
    secret: str | None
    repeated: bool


class UsageOut(Struct, frozen=True, kw_only=True):
    """Requests of an hour or day on one route with answers of one class (2 for 200 to 299)."""

    at: str
    route: str
    status_class: int
    count: int


class UsageList(Struct, frozen=True, kw_only=True):
    """Counts in order of time. `by` is `hour` or `day`; what is too old for hours stands at its day."""

    by: Literal["hour", "day"]
    since: str
    until: str
    rows: tuple[UsageOut, ...]


class AuditOut(Struct, frozen=True, kw_only=True):
    """Who changed which key, from where, and what of it."""

    id: int
    at: str
    actor: str
    source: str
    action: str
    key_id: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class AuditPage(Struct, frozen=True, kw_only=True):
    """Changes, the newest first, and the cursor of the next page; null on the last."""

    rows: tuple[AuditOut, ...]
    next: int | None


class ScopeOut(Struct, frozen=True, kw_only=True):
    """A scope of the catalogue."""

    name: str
    description: str
    includes: tuple[str, ...]
    grantable: bool
    """Whether this admin token may grant it."""


class ScopeList(Struct, frozen=True, kw_only=True):
    """The catalogue."""

    scopes: tuple[ScopeOut, ...]


class QuotaOut(Struct, frozen=True, kw_only=True):
    """A quota as configured; a plan or a key may have another limit."""

    name: str
    limit: int
    per: str
    window: str
    by: tuple[str, ...]


class PlanOut(Struct, frozen=True, kw_only=True):
    """A plan, and its limits by quota."""

    name: str
    limits: dict[str, int]
    grantable: bool


class PlanList(Struct, frozen=True, kw_only=True):
    """Plans, and the quotas that they are made of."""

    plans: tuple[PlanOut, ...]
    quotas: tuple[QuotaOut, ...]


class RouteOut(Struct, frozen=True, kw_only=True):
    """A route as it is in force, and where it was written."""

    name: str
    methods: tuple[str, ...]
    pattern: str
    where: str
    public: bool
    any_scopes: tuple[str, ...]
    all_scopes: tuple[str, ...]
    tenant_param: str | None
    environment_param: str | None
    environments: tuple[str, ...]
    quotas: dict[str, int]
    pass_through: bool
    answered: bool
    """Whether the sidecar answers it itself."""


class RouteList(Struct, frozen=True, kw_only=True):
    """The routes, in the order of the file."""

    routes: tuple[RouteOut, ...]


class LineOut(Struct, frozen=True, kw_only=True):
    """A step on the way to the decision, in words."""

    label: str
    text: str


class QuotaStateOut(Struct, frozen=True, kw_only=True):
    """What is left of a quota now."""

    name: str
    limit: int
    remaining: int
    resets_at: str


class ExplanationOut(Struct, frozen=True, kw_only=True):
    """What would come of the request. `status` is null where the upstream's answer would be passed on."""

    decision: Literal["allow", "deny"]
    reason: str | None
    status: int | None
    route: str | None
    where: str | None
    key_id: str | None
    quotas: tuple[QuotaStateOut, ...]
    lines: tuple[LineOut, ...]


class WhoOut(Struct, frozen=True, kw_only=True):
    """Whose admin token this is, and how far it reaches."""

    name: str
    rights: Literal["read", "write"]
    tenant: str | None
    scopes: tuple[str, ...]
    """Of the catalogue, those that it may grant."""
    plans: tuple[str, ...]


class DueOut(Struct, frozen=True, kw_only=True):
    """A key whose time is near, or that is older than keys should become."""

    key: PublicKey
    why: str
    at: str


class AnomalyOut(Struct, frozen=True, kw_only=True):
    """Something that may be worth a look."""

    kind: str
    key_id: str | None
    at: str
    address: str
    detail: str


class OverviewOut(Struct, frozen=True, kw_only=True):
    """How things stand."""

    keys: dict[str, int] | None
    """Keys by status; null for an administrator of one tenant."""
    requests_by_class: dict[str, int]
    """Requests with a key over the last 24 hours, by the class of their status (`2xx`)."""
    due: tuple[DueOut, ...]
    unusual: tuple[AnomalyOut, ...]
    """The newest first."""


class Error(Struct, frozen=True, kw_only=True):
    """One thing that is wrong: where (a JSON pointer into the body, or `?name` of the query), and what."""

    pointer: str
    detail: str


class Problem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a request was not carried out (RFC 9457)."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: tuple[Error, ...] = ()


Time = Annotated[
    str,
    Meta(description="RFC 3339, with an offset", pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$"),
]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Tenant = Annotated[str, Meta(min_length=1, max_length=200)]
Scope = Annotated[str, Meta(max_length=200)]
Scopes = Annotated[tuple[Scope, ...], Meta(max_length=1000)]
Limit = Annotated[int, Meta(ge=1, le=2**53)]
Quotas = Annotated[dict[str, Limit], Meta(max_length=1000)]
Metadata = Annotated[dict[str, str], Meta(max_length=1000)]
Plan = Annotated[str, Meta(max_length=200)]
Environment = Annotated[str, Meta(max_length=200)]


class RequestSchema(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request's body or query."""


class KeyCreate(RequestSchema, frozen=True, kw_only=True):
    """A key to issue. Without scopes it gets the default ones, without environment the first."""

    name: Name
    tenant: Tenant | None = None
    environment: Environment | None = None
    scopes: Scopes | None = None
    plan: Plan | None = None
    quotas: Quotas = {}
    metadata: Metadata = {}
    expires_at: Time | None = None


class KeyUpdate(RequestSchema, frozen=True, kw_only=True):
    """What of a key to change; what is left out stays."""

    name: Name | UnsetType = UNSET
    scopes: Scopes | UnsetType = UNSET
    plan: Plan | UnsetType | None = UNSET
    quotas: Quotas | UnsetType = UNSET
    metadata: Metadata | UnsetType = UNSET
    expires_at: Time | UnsetType | None = UNSET


class RotationRequest(RequestSchema, frozen=True, kw_only=True):
    """How long the old key goes on, and when the new one expires (by default as the old one would have)."""

    overlap_seconds: Annotated[int, Meta(ge=0, le=31_536_000)] | UnsetType = UNSET
    expires_at: Time | UnsetType | None = UNSET


class ExplainRequest(RequestSchema, frozen=True, kw_only=True):
    """A request to explain, with no key, with a stored one, or with the very one that a client presents."""

    method: Annotated[str, Meta(min_length=1, max_length=40, pattern="^[!-~]+$")]
    target: Annotated[str, Meta(min_length=1, max_length=8192, pattern="^[!-~]+$", description="/path?query")]
    key: Annotated[str, Meta(max_length=200, description="id or stored prefix")] | None = None
    secret: Annotated[str, Meta(min_length=1, max_length=1000, description="the key itself")] | None = None


class KeyQuery(RequestSchema, frozen=True, kw_only=True):
    """Which keys. `search`: words of the name or the tenant, or how the id or the stored prefix begins."""

    search: Annotated[str, Meta(max_length=200)] | UnsetType = UNSET
    tenant: Tenant | UnsetType = UNSET
    environment: Environment | UnsetType = UNSET
    effective_status: Standing | UnsetType = field(name="status", default=UNSET)
    after: Annotated[str, Meta(max_length=200, description="`next` of the page before")] | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=500)] = 50


class UsageQuery(RequestSchema, frozen=True, kw_only=True):
    """Which counts: by default those of the last 24 hours, by the hour."""

    since: Time | UnsetType = UNSET
    until: Time | UnsetType = UNSET
    by: Literal["hour", "day"] = "hour"


class AuditQuery(RequestSchema, frozen=True, kw_only=True):
    """Which changes. `actor` as it is told, such as `token:ops`."""

    key_id: str | UnsetType = field(name="key", default=UNSET)
    tenant: Tenant | UnsetType = UNSET
    actor: str | UnsetType = UNSET
    action: str | UnsetType = UNSET
    since: Time | UnsetType = UNSET
    until: Time | UnsetType = UNSET
    before_id: Annotated[int, Meta(ge=0, le=2**62, description="`next` of the page before")] | UnsetType = field(
        name="after", default=UNSET
    )
    limit: Annotated[int, Meta(ge=1, le=500)] = 100
