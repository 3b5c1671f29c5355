"""View models: the values that templates show, ready formatted, so that no template computes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sidecar.admin.web.charts import Chart, Spark


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The frame of every page. proof: the session's token against cross-site request forgery. note: empty for none.

    pending: the note about a refused configuration; empty for none.
    """

    here: str
    who: str
    rights: str
    may_write: bool
    note: str
    pending: str
    observing: str
    proof: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A time: relative to now (`3 minutes ago`), exact (`2026-01-31 12:00:00 UTC`), and for machines (RFC 3339)."""

    relative: str
    exact: str
    machine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One choice of a form."""

    value: str
    label: str
    chosen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusBadge:
    """The status of a key: a CSS class (active, retiring, disabled, expired, retired or revoked) and a label."""

    kind: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRow:
    """A key as a row of the list."""

    id: str
    name: str
    prefix: str
    tenant: str
    environment: str
    status: StatusBadge
    scopes: tuple[str, ...]
    plan: str
    ends: Moment | None
    """When it expires or retires; None if it never does."""
    last_used: Moment | None
    requests: str
    """Over the last day."""
    spark: Spark


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyList:
    """A page of keys and the filters.

    total: how many match on all pages (`1,204 keys`). first, next: addresses of pages; first is None on the first one.
    export: address of all that match, as CSV. all_to_disable, all_to_revoke: addresses of the pages that do so; None
    where nothing is filtered. done: what was done to many keys, or empty. done_kind: its CSS class, good or warn.
    """

    rows: tuple[KeyRow, ...]
    search: str
    tenant: str
    environments: tuple[Option, ...]
    standings: tuple[Option, ...]
    one_tenant: bool
    filtered: bool
    sorts: tuple[Option, ...]
    unused: tuple[Option, ...]
    total: str
    first: str | None
    next: str | None
    export: str
    all_to_disable: str | None
    all_to_revoke: str | None
    done: str
    done_kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenKey:
    """A key among many that will be disabled or revoked."""

    id: str
    name: str
    prefix: str
    tenant: str
    status: StatusBadge
    last_used: Moment | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ManyKeys:
    """The page that lists which keys an action would change, and asks to confirm it."""

    action: str
    title: str
    destructive: bool
    effects: tuple[str, ...]
    keys: tuple[ChosenKey, ...]
    tenants: str
    unused_since: str
    """Keys that were used after this time (microseconds) are skipped; empty: regardless of use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeChoice:
    """A scope of the catalogue, its description, and its routes."""

    name: str
    description: str
    includes: tuple[str, ...]
    opens: tuple[str, ...]
    """Routes that this scope alone allows."""
    chosen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaField:
    """A quota for which a key may have its own limit."""

    name: str
    limit: str
    """`10,000 per hour`."""
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyForm:
    """The form that issues or changes a key: its values, its choices, and its problems."""

    name: str = ""
    tenant: str = ""
    fixed_tenant: str | None = None
    environments: tuple[Option, ...] = ()
    scopes: tuple[ScopeChoice, ...] = ()
    other_scopes: tuple[str, ...] = ()
    """Granted scopes that are not in `scopes`: wildcards, and names that the catalogue no longer has."""
    plans: tuple[Option, ...] = ()
    quotas: tuple[QuotaField, ...] = ()
    metadata: str = ""
    """Lines of `name=value`."""
    expiry: tuple[Option, ...] = ()
    expires_on: str = ""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Field to its problem; the empty name is for problems of no single field."""
    idempotency_key: str = ""
    """The idempotency key: submitting the same form twice issues one key."""
    etag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSecret:
    """A key that was just issued, with its plaintext, which is shown only here, and a curl command, if one is known."""

    id: str
    name: str
    text: str = field(repr=False)
    command: str = field(repr=False)
    """A curl command that works; empty if no data listener is known."""
    opens: tuple[str, ...]
    replaces: str = ""
    retires: Moment | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A labelled value, which may be a time or a link."""

    label: str
    value: str = ""
    moment: Moment | None = None
    link: str = ""
    chips: tuple[str, ...] = ()
    mono: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaRow:
    """A quota of a key, and what is left of it now. `percent` is the used part."""

    name: str
    limit: str
    left: str
    percent: int
    kind: str
    """CSS class of its colour: empty, `warn` or `bad`."""
    resets: Moment | None
    note: str = ""
    link: str = ""
    """Address of the key, or of the tenant's keys, and its `name`."""
    subject: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountRow:
    """A count of a reason, its percentage of the largest one, and the newest refusals for that reason."""

    name: str
    count: str
    percent: int
    link: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalRow:
    """A refused request, and the addresses that explain it; empty if there is nothing to explain."""

    moment: Moment
    reason: str
    observed: bool
    status: int
    request: str
    route: str
    address: str
    key_id: str
    prefix: str
    why: str
    explain: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LatestRefusals:
    """The newest refusals, and their filters."""

    action: str
    """Address of the page."""
    rows: tuple[RefusalRow, ...]
    total: str
    reasons: tuple[Option, ...]
    routes: tuple[Option, ...]
    slot: str
    """Their hour or day; empty for any."""
    kept: tuple[tuple[str, str], ...]
    """Names and values in the address that the filters keep."""
    filtered: bool
    with_key: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageByRoute:
    """Requests of one route by class of status."""

    route: str
    total: str
    good: str
    client_errors: str
    server_errors: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One changed value."""

    label: str
    before: str | None
    """None if the key is new."""
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """Who did what to which key."""

    action: str
    actor: str
    source: str
    moment: Moment
    key_id: str
    key_name: str
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPage:
    """One key.

    chart: None if nothing was counted in the period. slot: the hour or day that `by_route`, `by_reason` and `latest`
    are of; empty for the whole span, whose address is `whole`. actions: those of rotate, change, disable, enable and
    revoke that are possible now. done: a sentence about what was just done.
    """

    id: str
    name: str
    status: StatusBadge
    status_note: str
    facts: tuple[Fact, ...]
    quotas: tuple[QuotaRow, ...]
    chart: Chart | None
    spans: tuple[Option, ...]
    slot: str
    whole: str
    by_route: tuple[UsageByRoute, ...]
    by_reason: tuple[CountRow, ...]
    observed: tuple[CountRow, ...]
    latest: LatestRefusals
    audit: tuple[AuditEntry, ...]
    actions: tuple[str, ...]
    done: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirm:
    """An action on a key that waits for confirmation."""

    id: str
    name: str
    prefix: str
    tenant: str
    verb: str
    title: str
    button: str
    destructive: bool
    effects: tuple[str, ...]
    last_used: Moment | None
    requests: str
    overlaps: tuple[Option, ...] = ()
    etag: str
    idempotency_key: str
    problem: str = ""


# The overview, the audit trail and the explanation.


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPage:
    """A page of audit entries, the filters, and the links to other pages."""

    entries: tuple[AuditEntry, ...]
    key: str
    name: str
    actor: str
    tenant: str
    one_tenant: bool
    since: str
    until: str
    actions: tuple[Option, ...]
    filtered: bool
    first: str | None
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One number of the overview."""

    name: str
    value: str
    note: str
    link: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Whether a part works."""

    name: str
    good: bool
    value: str
    link: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An anomaly, with or without a key."""

    title: str
    detail: str
    moment: Moment
    key_id: str = ""
    key_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DueRow:
    """A key that is due for replacement, why, and by when."""

    key_id: str
    key_name: str
    reason: str
    moment: Moment
    last_used: Moment | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The first page. refusals: None if the administrator may not see them."""

    intro: str
    first_steps: bool
    tiles: tuple[Tile, ...]
    chart: Chart | None
    unusual: tuple[Event, ...]
    due: tuple[DueRow, ...]
    due_within: str
    refusals: tuple[CountRow, ...] | None
    refusals_since: str
    latest: LatestRefusals
    states: tuple[State, ...]
    quotas: tuple[QuotaRow, ...]
    near_percent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainResult:
    """A decision, explained."""

    allowed: bool
    title: str
    summary: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The form, and the result if it was submitted."""

    methods: tuple[Option, ...]
    target: str
    example: str
    key: str
    problem: str = ""
    result: ExplainResult | None = None
