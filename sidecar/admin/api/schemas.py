"""What the API takes: one struct per JSON object. Unknown fields are refused; what is left out stays as it is."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from sidecar.keys.ports import Standing

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


class Asked(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request's body."""


class NewKeyAsked(Asked, frozen=True, kw_only=True):
    """A key to issue. Without scopes it gets the default ones, without environment the first."""

    name: Name
    tenant: Tenant | None = None
    environment: Environment | None = None
    scopes: Scopes | None = None
    plan: Plan | None = None
    quotas: Quotas = {}
    metadata: Metadata = {}
    expires_at: Time | None = None


class ChangeAsked(Asked, frozen=True, kw_only=True):
    """What of a key to change; what is left out stays."""

    name: Name | UnsetType = UNSET
    scopes: Scopes | UnsetType = UNSET
    plan: Plan | UnsetType | None = UNSET
    quotas: Quotas | UnsetType = UNSET
    metadata: Metadata | UnsetType = UNSET
    expires_at: Time | UnsetType | None = UNSET


class RotationAsked(Asked, frozen=True, kw_only=True):
    """How long the old key goes on, and when the new one expires (by default as the old one would have)."""

    overlap_seconds: Annotated[int, Meta(ge=0, le=31_536_000)] | UnsetType = UNSET
    expires_at: Time | UnsetType | None = UNSET


class QuestionAsked(Asked, frozen=True, kw_only=True):
    """A request to explain, with no key, with a stored one, or with the very one that a client presents."""

    method: Annotated[str, Meta(min_length=1, max_length=40, pattern="^[!-~]+$")]
    target: Annotated[str, Meta(min_length=1, max_length=8192, pattern="^[!-~]+$", description="/path?query")]
    key: Annotated[str, Meta(max_length=200, description="id or stored prefix")] | None = None
    secret: Annotated[str, Meta(min_length=1, max_length=1000, description="the key itself")] | None = None


class KeyQuery(Asked, frozen=True, kw_only=True):
    """Which keys. `search`: words of the name or the tenant, or how the id or the stored prefix begins."""

    search: Annotated[str, Meta(max_length=200)] | UnsetType = UNSET
    tenant: Tenant | UnsetType = UNSET
    environment: Environment | UnsetType = UNSET
    standing: Standing | UnsetType = field(name="status", default=UNSET)
    after: Annotated[str, Meta(max_length=200, description="`next` of the page before")] | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=500)] = 50


class UsageQuery(Asked, frozen=True, kw_only=True):
    """Which counts: by default those of the last 24 hours, by the hour."""

    since: Time | UnsetType = UNSET
    until: Time | UnsetType = UNSET
    by: Literal["hour", "day"] = "hour"


class AuditQuery(Asked, frozen=True, kw_only=True):
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
