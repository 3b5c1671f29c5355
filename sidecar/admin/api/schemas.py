"""The responses of the API, one struct for each JSON object. Times are RFC 3339, in UTC."""

from typing import Any, Literal

from msgspec import Struct

from sidecar.keys.records import PublicKey
from sidecar.keys.transitions import ManyAction


class KeyPage(Struct, frozen=True, kw_only=True):
    """Keys, in the order asked for, and the cursor of the next page; null on the last."""

    keys: tuple[PublicKey, ...]
    next: str | None
    total: int
    """How many keys match on all pages; more than 10,000 are counted as 10,001."""


class IssuedKey(Struct, frozen=True, kw_only=True):
    """A new key. `secret` is the plaintext, which is returned only once.

    It is null when a request with the same Idempotency-Key issued the key before: the plaintext is not stored.
    """

    key: PublicKey
    secret: str | None
    repeated: bool


class RotatedKey(Struct, frozen=True, kw_only=True):
    """A new key and the old one that it replaces. `secret` is the plaintext, as in IssuedKey."""

    key: PublicKey
    old: PublicKey
    secret: str | None
    repeated: bool


class ChangedKeys(Struct, frozen=True, kw_only=True):
    """The keys that were changed, or that would be changed."""

    action: ManyAction
    dry_run: bool
    keys: tuple[PublicKey, ...]


class UsageOut(Struct, frozen=True, kw_only=True):
    """The number of requests in an hour or day, on one route, by status class (2 for 200 to 299)."""

    at: str
    route: str
    status_class: int
    count: int


class ReasonOut(Struct, frozen=True, kw_only=True):
    """How many requests of one route were refused, or not served, for one reason."""

    at: str
    route: str
    reason: str
    count: int


class UsageList(Struct, frozen=True, kw_only=True):
    """Counts, the oldest first. `by` is `hour` or `day`; old counts are kept by day only."""

    by: Literal["hour", "day"]
    since: str
    until: str
    rows: tuple[UsageOut, ...]
    reasons: tuple[ReasonOut, ...] = ()
    """The part of these requests that was refused or not served."""
    would_deny: tuple[ReasonOut, ...] = ()
    """Of the same requests, those that were let through only because of `mode: observe`."""


class RefusalOut(Struct, frozen=True, kw_only=True):
    """A request that was refused, or not served. `key_id` and `prefix` are those of the recognised key.

    If no request could be read, `method` and `path` are empty, and there is no `request_id`. Clients may send ids of
    their own, so several refusals may have the same id. `config` is the beginning of the hash of the configuration that
    was in force.
    """

    at: str
    request_id: str | None
    status: int
    reason: str
    cause: str | None
    route: str
    method: str
    path: str
    address: str
    key_id: str | None
    prefix: str | None
    config: str | None
    observed: bool
    """It went on anyway (`mode: observe`); `status` is that of its actual response."""


class RefusalList(Struct, frozen=True, kw_only=True):
    """The newest refusals, the newest first."""

    refusals: tuple[RefusalOut, ...]


class AuditOut(Struct, frozen=True, kw_only=True):
    """Who changed which key, when, from where, and its fields before and after."""

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
    """The scopes of the catalogue."""

    scopes: tuple[ScopeOut, ...]


class QuotaOut(Struct, frozen=True, kw_only=True):
    """A quota as configured; a plan or a key may have another limit."""

    name: str
    limit: int
    per: str
    window: str
    by: tuple[str, ...]


class PlanOut(Struct, frozen=True, kw_only=True):
    """A plan and its limit for each quota; null is unlimited."""

    name: str
    limits: dict[str, int | None]
    grantable: bool


class PlanList(Struct, frozen=True, kw_only=True):
    """The plans, and the quotas whose limits they set."""

    plans: tuple[PlanOut, ...]
    quotas: tuple[QuotaOut, ...]


class RouteOut(Struct, frozen=True, kw_only=True):
    """A route of the current configuration. `where`: its file and line; one tenant's administrator sees its line."""

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
    takes_keys: bool
    """False: only credentials that are not keys pass (`pass_through: only`)."""
    answered: bool
    """Whether the sidecar responds itself, without the upstream."""
    deny: bool = False
    """Whether every request is refused."""


class RouteList(Struct, frozen=True, kw_only=True):
    """The routes, in the order of the file."""

    routes: tuple[RouteOut, ...]


class LackOut(Struct, frozen=True, kw_only=True):
    """Requests of a key on one route that were refused because it lacks scopes: one of `lacks`, or all of them."""

    route: str
    lacks: tuple[str, ...]
    count: int
    observed: int = 0
    """Requests that lacked them, and were let through because of `mode: observe`."""


class ScopeUseOut(Struct, frozen=True, kw_only=True):
    """What a key needed of its scopes in the last 90 days, or for as long as `usage.keep`."""

    since: str
    until: str
    suggestion: Literal["narrow", "fits", "too_early", "unused", "undecided"]
    """`narrow`: `needed` would be enough; `fits`: nothing less would; `too_early`: there is too little use; `unused`:
    it was not used; `undecided`: unknown.
    """
    why: str | None
    requests: int
    """Requests that the routes would allow today."""
    scopes: tuple[str, ...]
    used: tuple[str, ...]
    unused: tuple[str, ...]
    needed: tuple[str, ...]
    """The smallest set of scopes with which all those requests would pass. A scope of the key may include one of these.
    """
    refused: tuple[LackOut, ...]
    command: str | None
    """The command that narrows the key, for review."""


class LineOut(Struct, frozen=True, kw_only=True):
    """A step of the decision, as text."""

    label: str
    text: str


class QuotaStateOut(Struct, frozen=True, kw_only=True):
    """What is left of a quota."""

    name: str
    limit: int
    remaining: int
    resets_at: str


class ExplanationOut(Struct, frozen=True, kw_only=True):
    """The decision on the request. `status` is null if the upstream would respond."""

    decision: Literal["allow", "deny"]
    reason: str | None
    would_deny: str | None
    """The reason that would refuse it, if only `mode: observe` lets it go on."""
    status: int | None
    route: str | None
    where: str | None
    key_id: str | None
    quotas: tuple[QuotaStateOut, ...]
    lines: tuple[LineOut, ...]


class PastDecisionOut(Struct, frozen=True, kw_only=True):
    """A refusal with its decision: `then` as it was, `now` as it would be today; empty if that is unknown.

    `otherwise` is whether today's decision differs; null if that is unknown. `verdict` says so in words.
    """

    refusal: RefusalOut
    then: tuple[LineOut, ...]
    now: tuple[LineOut, ...]
    otherwise: bool | None
    verdict: str


class PastDecisionList(Struct, frozen=True, kw_only=True):
    """Refusals with one request id, the newest first, at most 20 of `total`."""

    total: int
    decisions: tuple[PastDecisionOut, ...]


class WhoOut(Struct, frozen=True, kw_only=True):
    """The admin token of the request, its rights, and the defaults and required fields of keys."""

    name: str
    rights: Literal["read", "write"]
    tenant: str | None
    scopes: tuple[str, ...]
    """The scopes of the catalogue that it may grant."""
    plans: tuple[str, ...]
    environments: tuple[str, ...]
    """Environments of keys, the default first."""
    default_scopes: tuple[str, ...]
    """The scopes of keys that are issued without scopes; `default_plan` likewise."""
    default_plan: str | None
    required: tuple[str, ...]
    """Fields that a key must have when it is issued."""


class DueOut(Struct, frozen=True, kw_only=True):
    """A key that expires or retires within 14 days, or that is older than `keys.max_age`."""

    key: PublicKey
    why: str
    at: str


class AnomalyOut(Struct, frozen=True, kw_only=True):
    """An anomaly in the use of keys."""

    kind: str
    key_id: str | None
    at: str
    address: str
    detail: str


class QuotaUsageOut(Struct, frozen=True, kw_only=True):
    """A quota of a key, and what is left of it; null if it is counted by something that only a request has."""

    name: str
    limit: int
    remaining: int | None
    resets_at: str | None
    note: str


class QuotaUsageList(Struct, frozen=True, kw_only=True):
    """The quotas on the routes that a key may use."""

    quotas: tuple[QuotaUsageOut, ...]


class NearlyUsedUpOut(Struct, frozen=True, kw_only=True):
    """A quota of which a key has used 80 % or more."""

    key: PublicKey
    quota: QuotaUsageOut


class TenantNearlyUsedUpOut(Struct, frozen=True, kw_only=True):
    """A quota of which the keys of a tenant (in one environment, if given) have used 80 % or more."""

    tenant: str
    environment: str | None
    quota: QuotaUsageOut


class HealthOut(Struct, frozen=True, kw_only=True):
    """Whether requests can be decided on and served. `problems` and `remarks` are as in `/readyz?verbose`."""

    ready: bool
    problems: tuple[str, ...]
    remarks: tuple[str, ...]
    config_sha256: str
    config_since: str
    upstream_failed: RefusalOut | None
    """The newest request since the start that was not served because of the upstream.

    An administrator of one tenant sees when and why, not which request.
    """
    observing: tuple[str, ...]
    """What is only observed and not enforced (`mode: observe`), in words; empty if everything is enforced."""


class OverviewOut(Struct, frozen=True, kw_only=True):
    """The state of keys and traffic."""

    keys: dict[str, int] | None
    """Keys by status; null for an administrator of one tenant."""
    requests_by_class: dict[str, int]
    """Requests with a key in the last 24 hours, by status class (`2xx`)."""
    due: tuple[DueOut, ...]
    unusual: tuple[AnomalyOut, ...]
    """The newest first."""
    health: HealthOut
    refusals_by_reason: dict[str, int] | None
    """Since `refusals_since`, with and without a key; null for an administrator of one tenant."""
    refusals_since: str
    nearly_used_up: tuple[NearlyUsedUpOut, ...]
    """The fullest first, as in `tenants_nearly_used_up`."""
    tenants_nearly_used_up: tuple[TenantNearlyUsedUpOut, ...]
