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
    """A route that a key may not use, and why. opened_by: scopes, each of which would open it, the first few."""

    name: str
    link: str
    why: str
    opened_by: tuple[str, ...]
    others: int
    """How many more would."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyReach:
    """What a key reaches. near: routes that want of scopes alone closes; barred: those that no scope would open."""

    allowed: tuple[RouteRow, ...]
    near: tuple[ClosedRow, ...]
    barred: tuple[ClosedRow, ...]
    closed: str
    """How many are closed, in words."""
    more: str
    """How many are not shown, in words; empty for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeCell:
    """What came of requests; empty texts for none. detail: refusals by what was wrong.

    observed: allowed ones that only `mode: observe` let through.
    """

    allowed: str = ""
    refused: str = ""
    detail: str = ""
    faults: str = ""
    observed: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRow:
    """A route of the policy. marks: what is special about it, in words. where: the file without folders."""

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
    """What is wrong with a configuration file, and where: empty where the file itself is good."""

    where: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingConfig:
    """The configuration that was refused. more: how many problems are not shown, in words; empty for none."""

    since: Moment
    at: Moment
    problems: tuple[ProblemRow, ...]
    more: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyPage:
    """The routes that fit, and the filters. first, next: addresses of pages. restart: options that wait for one."""

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
    """Since when `counted` of the rows counts; empty where the administrator may not see that."""
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
    """Who reaches a route, in a sentence; with keys: which, and how many by tenant and by scope."""

    summary: str
    note: str
    """What was not looked at; empty for nothing."""
    keys: tuple[ReachKey, ...]
    tenants: tuple[CountRow, ...]
    scopes: tuple[CountRow, ...]
    tenant: str
    """Of which tenant alone they are; empty for every one."""
    every: str
    """Address of the page with keys of every tenant."""
    first: str | None
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutePage:
    """One route. counted: None where the administrator may not see it."""

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
