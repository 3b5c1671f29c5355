"""What templates are given: texts and shapes ready to be shown, so that no template computes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sidecar.admin.web.charts import Chart, Spark


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What is around every page: who is signed in, where it is, and the proof that its forms are ours."""

    here: str
    """The entry of the navigation that is marked."""
    who: str
    reach: str
    """What this administrator may do, in words."""
    may_write: bool
    proof: str
    """The session's token for forms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A time as people say it, and exactly."""

    said: str
    """`3 minutes ago`."""
    exact: str
    """`2026-01-31 12:00:00 UTC`."""
    machine: str
    """RFC 3339."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One choice of a form."""

    value: str
    label: str
    chosen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a key stands: a class for its colour, and a word."""

    kind: str
    """active, retiring, disabled, expired, retired or revoked."""
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRow:
    """A key as a line of a table."""

    id: str
    name: str
    prefix: str
    tenant: str
    environment: str
    effective_status: Standing
    last_used: Moment | None
    requests: str
    """Over the last day."""
    spark: Spark


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyList:
    """A page of keys, what was asked for, and the way to the next page."""

    rows: tuple[KeyRow, ...]
    search: str
    tenant: str
    environments: tuple[Option, ...]
    standings: tuple[Option, ...]
    one_tenant: bool
    """Whether the administrator sees one tenant only, which then is no filter."""
    filtered: bool
    first: str | None
    """Address of the first page, where this is not it."""
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeChoice:
    """A scope of the catalogue, what it means, and what it opens."""

    name: str
    description: str
    includes: tuple[str, ...]
    opens: tuple[str, ...]
    """Routes that a key with this scope alone may use."""
    chosen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaField:
    """A quota whose limit a key may have of its own."""

    name: str
    said: str
    """`10,000 per hour`."""
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyForm:
    """The form that issues or changes a key: what was filled in, what to choose from, what is wrong."""

    name: str = ""
    tenant: str = ""
    fixed_tenant: str | None = None
    environments: tuple[Option, ...] = ()
    scopes: tuple[ScopeChoice, ...] = ()
    other_scopes: tuple[str, ...] = ()
    """Granted already, and not among `scopes`: wildcards, and names that the catalogue lost."""
    plans: tuple[Option, ...] = ()
    quotas: tuple[QuotaField, ...] = ()
    metadata: str = ""
    """A `name=value` a line."""
    expiry: tuple[Option, ...] = ()
    expires_on: str = ""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Field to what is wrong with it; the empty field is for what belongs to none."""
    once: str = ""
    """Makes a second sending of the same form harmless."""
    etag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSecret:
    """A key that was just issued, with its plaintext for the only time."""

    id: str
    name: str
    text: str = field(repr=False)
    command: str = field(repr=False)
    """A curl line that works, empty where no listener of clients is known."""
    opens: tuple[str, ...]
    replaces: str = ""
    """Id of the key that it takes the place of."""
    retires: Moment | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A labelled value; `moment` and `link` where it is one."""

    label: str
    value: str = ""
    moment: Moment | None = None
    link: str = ""
    chips: tuple[str, ...] = ()
    mono: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRow:
    """A route and what it asks for."""

    name: str
    where: str
    needs: str
    quotas: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaRow:
    """A quota of a key, and what is left of it now. `percent` is what is used."""

    name: str
    said: str
    left: str
    percent: int
    kind: str
    """Class of its colour: empty, `warn` or `bad`."""
    resets: Moment | None
    note: str = ""
    key_id: str = ""
    key_name: str = ""


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
    """One value that a change has changed."""

    label: str
    before: str | None
    """None where there was no key before."""
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """Who did what to which key."""

    said: str
    actor: str
    source: str
    moment: Moment
    key_id: str
    key_name: str
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPage:
    """One key."""

    id: str
    name: str
    effective_status: Standing
    standing_note: str
    facts: tuple[Fact, ...]
    routes: tuple[RouteRow, ...]
    quotas: tuple[QuotaRow, ...]
    chart: Chart | None
    """None where nothing was counted in the span."""
    spans: tuple[Option, ...]
    by_route: tuple[UsageByRoute, ...]
    audit: tuple[AuditEntry, ...]
    actions: tuple[str, ...]
    """Of rotate, change, disable, enable and revoke, those that make sense now."""
    done: str = ""
    """What was just done, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirm:
    """What is about to be done to a key, before it is done."""

    id: str
    name: str
    prefix: str
    tenant: str
    verb: str
    title: str
    button: str
    grave: bool
    effects: tuple[str, ...]
    last_used: Moment | None
    requests: str
    overlaps: tuple[Option, ...] = ()
    etag: str
    once: str
    problem: str = ""


# What the templates of the overview, the audit trail and the explanation are given.


@dataclass(frozen=True, slots=True, kw_only=True)
class CountRow:
    """Something counted, and its part of the whole in percent."""

    name: str
    count: str
    percent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPage:
    """Audit entries, what was asked for, and the way on."""

    entries: tuple[AuditEntry, ...]
    key: str
    actor: str
    since: str
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
class Event:
    """Something unusual that a key, or nobody's key, has done."""

    said: str
    detail: str
    moment: Moment
    key_id: str = ""
    key_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DueRow:
    """A key that wants something done about it, and by when."""

    key_id: str
    key_name: str
    said: str
    moment: Moment
    last_used: Moment | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The first page."""

    intro: str
    first_steps: bool
    """Whether there is no key at all."""
    tiles: tuple[Tile, ...]
    chart: Chart | None
    unusual: tuple[Event, ...]
    due: tuple[DueRow, ...]
    due_within: str
    refusals: tuple[CountRow, ...] | None
    """None where the administrator may not see them."""
    refusals_since: str
    quotas: tuple[QuotaRow, ...]
    near_percent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A decision in words."""

    allowed: bool
    title: str
    summary: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The question, and the answer where one was asked."""

    methods: tuple[Option, ...]
    target: str
    example: str
    key: str
    problem: str = ""
    told: Told | None = None
