"""View models of the policy: its routes, one route, the keys that reach it, and what a key reaches."""

from dataclasses import dataclass

from sidecar.admin.web.charts import Chart
from sidecar.admin.web.view_models import CountRow, Explanation, Fact, LatestRefusals, Moment, Option


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRow:
    """A route that a key may use, the address of its page, and what it requires."""

    name: str
    link: str
    where: str
    needs: str
    quotas: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedRow:
    """A route that a key may not use, and why. opened_by: the first few scopes, each of which would open it."""

    name: str
    link: str
    why: str
    opened_by: tuple[str, ...]
    others: int
    """The number of further scopes that would open it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyReach:
    """The routes of a key. near: routes that it lacks only scopes for; barred: routes that no scope would open."""

    allowed: tuple[RouteRow, ...]
    near: tuple[ClosedRow, ...]
    barred: tuple[ClosedRow, ...]
    closed: str
    """The number of closed routes, in words."""
    more: str
    """The number of routes that are not shown, in words; empty for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeCell:
    """The outcomes of requests; empty texts for none. detail: refusals by cause.

    observed: allowed requests that only `mode: observe` let through.
    """

    allowed: str = ""
    refused: str = ""
    detail: str = ""
    faults: str = ""
    observed: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRow:
    """A route of the policy. marks: its special properties, in words. where: the file without folders."""

    name: str
    link: str
    marks: tuple[str, ...]
    needs: str
    quotas: str
    where: str
    day: OutcomeCell
    counted: OutcomeCell | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemRow:
    """A problem of a configuration file. where: its place; empty if the file itself is valid."""

    where: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingConfig:
    """The configuration that was refused. more: the number of problems that are not shown, in words; empty for none."""

    since: Moment
    at: Moment
    problems: tuple[ProblemRow, ...]
    more: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyPage:
    """The matching routes, and the filters. first, next: addresses of pages. restart: options that need a restart."""

    intro: str
    pending: PendingConfig | None
    restart: str
    ask: Explanation
    rows: tuple[PolicyRow, ...]
    search: str
    scopes: tuple[Option, ...]
    used: tuple[Option, ...]
    filtered: bool
    total: str
    counted_since: str
    """The beginning of the period of `counted` in the rows; empty if the administrator may not see it."""
    first: str | None
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReachKey:
    """A key that reaches a route."""

    id: str
    name: str
    prefix: str
    tenant: str
    environment: str
    scopes: tuple[str, ...]
    last_used: Moment | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteReach:
    """Who can reach a route, in a sentence; for keys: which, and how many by tenant and by scope."""

    summary: str
    note: str
    """What was not searched; empty for nothing."""
    keys: tuple[ReachKey, ...]
    tenants: tuple[CountRow, ...]
    scopes: tuple[CountRow, ...]
    tenant: str
    """The tenant whose keys are shown; empty for all tenants."""
    every: str
    """The address of the page with the keys of every tenant."""
    first: str | None
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutePage:
    """One route. counted: None if the administrator may not see it."""

    name: str
    link: str
    marks: tuple[str, ...]
    needs: str
    facts: tuple[Fact, ...]
    chart: Chart | None
    day: OutcomeCell
    by_reason: tuple[CountRow, ...]
    observed: tuple[CountRow, ...]
    counted: OutcomeCell | None
    counted_by_reason: tuple[CountRow, ...]
    counted_observed: tuple[CountRow, ...]
    counted_since: str
    reach: RouteReach
    ask: Explanation
    latest: LatestRefusals
