"""The queries and bodies of the API, one struct each. A field that is left out is UNSET; unknown fields are refused."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from sidecar.core.units import RFC3339_TIME
from sidecar.keys.ports import Sort, StatusFilter
from sidecar.keys.transitions import ManyAction

Time = Annotated[str, Meta(description="RFC 3339 with an offset", pattern=f"^{RFC3339_TIME}$")]
FutureTime = Annotated[Time, Meta(extra_json_schema={"description": "RFC 3339 with an offset, in the future"})]
# `extra_json_schema` is what the rules of keys check, in better words than a schema has.
Name = Annotated[str, Meta(min_length=1, max_length=200, description="printable, and not only spaces")]
Tenant = Annotated[str, Meta(min_length=1, max_length=200)]
NewTenant = Annotated[Tenant, Meta(extra_json_schema={"pattern": "^[!-.0-~]+$"})]
Scope = Annotated[str, Meta(max_length=200)]
Scopes = Annotated[tuple[Scope, ...], Meta(max_length=1000)]
Limit = Annotated[int, Meta(ge=1, le=2**53)]
Quotas = Annotated[dict[str, Limit], Meta(max_length=1000)]
_ENTRIES: Final = {"maxProperties": 64, "propertyNames": {"pattern": "^[A-Za-z0-9_.-]{1,64}$"}}
_Entry = Annotated[str, Meta(description="printable", extra_json_schema={"maxLength": 1024})]
Metadata = Annotated[dict[str, _Entry], Meta(max_length=1000, extra_json_schema=_ENTRIES)]
UnusedSeconds = Annotated[int, Meta(ge=0, le=315_360_000, description="not used, and not issued, for so long")]
Plan = Annotated[str, Meta(max_length=200)]
Environment = Annotated[str, Meta(max_length=200)]


_BOTH_TEXTS: Final = {"key": {"type": "string"}, "secret": {"type": "string"}}
KeyId = Annotated[str, Meta(min_length=1, max_length=200)]
KeyIds = Annotated[tuple[KeyId, ...], Meta(max_length=1000)]


class RequestSchema(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request's body or query."""

    rules: ClassVar[Mapping[str, Any]] = {}
    """JSON Schema of a condition on several fields."""


class KeyCreate(RequestSchema, frozen=True, kw_only=True):
    """A key to issue. It gets the default scopes if `scopes` is null, and the first environment if `environment` is
    null.
    """

    name: Name
    tenant: NewTenant | None = None
    environment: Environment | None = None
    scopes: Scopes | None = None
    plan: Plan | None = None
    quotas: Quotas = {}
    metadata: Metadata = {}
    expires_at: FutureTime | None = None


class KeyUpdate(RequestSchema, frozen=True, kw_only=True):
    """Fields of a key to change; fields that are left out keep their value."""

    name: Name | UnsetType = UNSET
    scopes: Scopes | UnsetType = UNSET
    plan: Plan | UnsetType | None = UNSET
    quotas: Quotas | UnsetType = UNSET
    metadata: Metadata | UnsetType = UNSET
    expires_at: FutureTime | UnsetType | None = UNSET


class RotationRequest(RequestSchema, frozen=True, kw_only=True):
    """How long the old key stays valid, and when the new one expires (by default when the old one does)."""

    overlap_seconds: Annotated[int, Meta(ge=0, le=31_536_000)] | UnsetType = UNSET
    expires_at: FutureTime | UnsetType | None = UNSET


class ExplainRequest(RequestSchema, frozen=True, kw_only=True):
    """A request to explain: without a key, with a stored key, or with the plaintext that a client presents."""

    rules: ClassVar[Mapping[str, Any]] = {"not": {"required": ["key", "secret"], "properties": _BOTH_TEXTS}}

    method: Annotated[str, Meta(min_length=1, max_length=40, pattern="^[!-~]+$")]
    target: Annotated[str, Meta(min_length=1, max_length=8192, pattern="^[!-~]+$", description="/path?query")]
    key: Annotated[str, Meta(max_length=200, description="id or stored prefix")] | None = None
    secret: Annotated[str, Meta(min_length=1, max_length=1000, description="plaintext of the key")] | None = None


class Matching(RequestSchema, frozen=True, kw_only=True):
    """Selects all keys that match every given field; at least one is required. The fields are as in KeyQuery."""

    rules: ClassVar[Mapping[str, Any]] = {"minProperties": 1}

    search: Annotated[str, Meta(min_length=1, max_length=200)] | UnsetType = UNSET
    tenant: Tenant | UnsetType = UNSET
    environment: Annotated[Environment, Meta(min_length=1)] | UnsetType = UNSET
    effective_status: StatusFilter | UnsetType = field(name="status", default=UNSET)
    unused_for_seconds: UnusedSeconds | UnsetType = UNSET


class KeysChange(RequestSchema, frozen=True, kw_only=True):
    """An action, and its keys: at most 1,000, by id or by filter. All are changed, or none."""

    rules: ClassVar[Mapping[str, Any]] = {"oneOf": [{"required": ["ids"]}, {"required": ["matching"]}]}

    action: ManyAction
    dry_run: Annotated[bool, Meta(description="only list what would be changed")]
    ids: KeyIds | UnsetType = UNSET
    matching: Matching | UnsetType = UNSET


class KeyQuery(RequestSchema, frozen=True, kw_only=True):
    """Which keys to list. `search`: words of the name or tenant, or the beginning of the id or stored prefix."""

    search: Annotated[str, Meta(max_length=200)] | UnsetType = UNSET
    tenant: Tenant | UnsetType = UNSET
    environment: Environment | UnsetType = UNSET
    effective_status: StatusFilter | UnsetType = field(name="status", default=UNSET)
    unused_for_seconds: UnusedSeconds | UnsetType = UNSET
    sort: Sort = "created"
    after: Annotated[str, Meta(max_length=200, description="`next` of the previous page")] | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=500)] = 50


class UsageQuery(RequestSchema, frozen=True, kw_only=True):
    """Which counts to return; by default, those of the last 24 hours, by hour."""

    since: Time | UnsetType = UNSET
    until: Time | UnsetType = UNSET
    by: Literal["hour", "day"] = "hour"


class RefusalQuery(RequestSchema, frozen=True, kw_only=True):
    """Which of the newest refusals to list."""

    key_id: Annotated[str, Meta(max_length=200)] | UnsetType = field(name="key", default=UNSET)
    reason: Annotated[str, Meta(max_length=200)] | UnsetType = UNSET
    route: Annotated[str, Meta(max_length=1000)] | UnsetType = UNSET
    since: Time | UnsetType = UNSET
    until: Time | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=200)] = 200


class AuditQuery(RequestSchema, frozen=True, kw_only=True):
    """Which changes to list. `actor` is, for example, `token:ops`."""

    key_id: Annotated[str, Meta(max_length=200)] | UnsetType = field(name="key", default=UNSET)
    name: Annotated[str, Meta(max_length=200, description="of the key, as `search` of keys")] | UnsetType = UNSET
    tenant: Tenant | UnsetType = UNSET
    actor: Annotated[str, Meta(max_length=200)] | UnsetType = UNSET
    action: Annotated[str, Meta(max_length=200)] | UnsetType = UNSET
    since: Time | UnsetType = UNSET
    until: Time | UnsetType = UNSET
    before_id: Annotated[int, Meta(ge=0, le=2**62, description="`next` of the previous page")] | UnsetType = field(
        name="after", default=UNSET
    )
    limit: Annotated[int, Meta(ge=1, le=500)] = 100
