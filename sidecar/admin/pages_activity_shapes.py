"""What the templates of the overview, the audit trail and the explanation are given."""

from dataclasses import dataclass

from sidecar.admin.web.charts import Chart
from sidecar.admin.web.view_models import AuditEntry, Fact, Moment, Option, QuotaRow


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
