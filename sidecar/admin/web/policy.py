"""The pages of the policy: all routes, one route with the keys that reach it, and a refused configuration."""

from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from typing import Final
from urllib.parse import unquote, urlencode

from aiohttp import web

from sidecar.admin.api.routes import service_of
from sidecar.admin.policy import (
    REFUSALS,
    Outcome,
    Outcomes,
    RouteFilter,
    audience,
    config_state,
    counted_outcomes,
    fitting_routes,
    last_day,
    needs,
    outcomes_by_route,
    route_named,
)
from sidecar.admin.service import AdminService
from sidecar.admin.web.explain import answered, asked, example_of
from sidecar.admin.web.formatting import MICROSECONDS, TEMPLATES, limit_text, moment, route_link
from sidecar.admin.web.policy_views import (
    OutcomeCell,
    PendingConfig,
    PolicyPage,
    PolicyRow,
    ProblemRow,
    RoutePage,
)
from sidecar.admin.web.reach import route_reach
from sidecar.admin.web.stats import count_rows, latest_refusals, slot_of, usage_chart
from sidecar.admin.web.view_models import CountRow, Explanation, Fact, Option
from sidecar.config.build.modes import Modes
from sidecar.core.apikey import looks_secret
from sidecar.core.model import EVERY, Policy, Route
from sidecar.core.routing import NO_ROUTE
from sidecar.core.units import counted
from sidecar.gate.explain import charges

_PAGE_SIZE: Final = 200
_USED: Final[Mapping[str, str]] = {"": "Used or not", "yes": "Used", "no": "Unused"}
_REFUSED: Final[Mapping[Outcome, str]] = {
    "credential": "no or wrong key",
    "permission": "not allowed",
    "quota": "over quota",
    "malformed": "malformed",
}

# All routes.


async def show_policy(request: web.Request) -> web.Response:
    """Show the routes that match the filters, and a configuration that was refused."""
    return await _policy_page(request, asked(service_of(request)), 200)


async def try_policy(request: web.Request) -> web.Response:
    """Explain the submitted request, above the routes."""
    return await _policy_page(request, *await answered(request))


async def _policy_page(request: web.Request, ask: Explanation, status: int) -> web.Response:
    service, wanted = service_of(request), _filter(request)
    stored = outcomes_by_route(await service.usage(None, last_day(service.now)))
    since_start = counted_outcomes(service)
    routes = fitting_routes(service.config, wanted, stored, since_start)
    modes = Modes(service.config)
    start, link = _start(request.query.get("from", ""), len(routes)), _linking(wanted)
    shown = map(service.shown_route, routes[start : start + _PAGE_SIZE])
    view = PolicyPage(
        intro=_intro(service),
        pending=_pending(service),
        restart=", ".join(config_state(service).needs_restart),
        ask=ask,
        rows=tuple(_row(modes, route, stored, since_start) for route in shown),
        search=wanted.search,
        scopes=_scopes(service, wanted.scope),
        used=_used(wanted),
        filtered=wanted != RouteFilter(),
        total=counted(sum(route.name != NO_ROUTE for route in routes), "route"),
        counted_since="" if since_start is None else moment(service.running_since, service.now).relative,
        first=link(0) if start else None,
        next=link(start + _PAGE_SIZE) if start + _PAGE_SIZE < len(routes) else None,
    )
    return request.app[TEMPLATES].page(request, "policy.html", here="policy", status=status, view=view)


def _filter(request: web.Request) -> RouteFilter:
    """The form's values from the address; text that may be a key is not shown again."""
    given = {name: value.strip() for name, value in request.query.items() if not looks_secret(value)}
    used = given.get("used", "")
    return RouteFilter(
        search=given.get("search", ""),
        scope=given.get("scope", ""),
        used="yes" if used == "yes" else "no" if used == "no" else "any",
    )


def _start(text: str, number: int) -> int:
    start = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    return start if start < number else 0


def _linking(wanted: RouteFilter) -> Callable[[int], str]:
    used = wanted.used if wanted.used in _USED else ""
    given = {"search": wanted.search, "scope": wanted.scope, "used": used}
    kept = {name: value for name, value in given.items() if value}
    return lambda start: f"/policy?{urlencode({**kept, 'from': start})}#routes"


def _intro(service: AdminService) -> str:
    state = config_state(service)
    since = moment(int(state.since * MICROSECONDS), service.now).relative
    of = "" if state.path is None else f" of {state.path}"
    return f"{counted(len(service.config.routes), 'route')}{of} (sha256 {state.sha256[:12]}), loaded {since}."


def _pending(service: AdminService) -> PendingConfig | None:
    refused = config_state(service).pending
    if refused is None:
        return None
    hidden = refused.total - len(refused.problems)
    return PendingConfig(
        since=moment(int(refused.since * MICROSECONDS), service.now),
        at=moment(int(refused.at * MICROSECONDS), service.now),
        problems=tuple(ProblemRow(where=one.where, message=one.message) for one in refused.problems),
        more=counted(hidden, "more error" if refused.problems else "error") if hidden else "",
    )


def _scopes(service: AdminService, chosen: str) -> tuple[Option, ...]:
    names = dict.fromkeys([*service.config.catalogue.scopes, *([chosen] if chosen else [])])
    every = Option(value="", label="Any scope")
    return every, *(Option(value=name, label=name, chosen=name == chosen) for name in names)


def _used(wanted: RouteFilter) -> tuple[Option, ...]:
    return tuple(Option(value=value, label=text, chosen=value == wanted.used) for value, text in _USED.items())


def _row(
    modes: Modes, route: Route, stored: Mapping[str, Outcomes], since_start: Mapping[str, Outcomes] | None
) -> PolicyRow:
    return PolicyRow(
        name=route.name,
        link=route_link(route.name),
        marks=tuple(_marks(modes, route)),
        needs=needs(route),
        quotas=charges(route.policy),
        where=route.where.rpartition("/")[2],
        day=_cell(stored.get(route.name)),
        counted=None if since_start is None else _cell(since_start.get(route.name)),
    )


def _marks(modes: Modes, route: Route) -> Iterator[str]:
    policy = route.policy
    if modes.because(route, None):
        yield "observed"
    if route.name == NO_ROUTE:
        yield "requests that match no route"
    if policy.public:
        yield "public"
    if policy.deny:
        yield "deny"
    if policy.respond is not None:
        yield f"responds {policy.respond.status}"
    if policy.forward.upstream is not None:
        yield f"upstream {policy.forward.upstream}"


def _cell(outcomes: Outcomes | None) -> OutcomeCell:
    if outcomes is None:
        return OutcomeCell()
    allowed, errors = outcomes.allowed, outcomes.server_errors
    by_kind = ((outcomes.count(kind), _REFUSED[kind]) for kind in REFUSALS)
    faults, observed = outcomes.count("fault"), outcomes.would_deny.total()
    return OutcomeCell(
        allowed=f"{allowed:,} allowed{f', {errors:,} of them 5xx' if errors else ''}" if allowed else "",
        refused=f"{outcomes.refused:,} refused" if outcomes.refused else "",
        detail=", ".join(f"{count:,} {text}" for count, text in by_kind if count),
        faults=f"{faults:,} not served" if faults else "",
        observed=f"{observed:,} would be refused" if observed else "",
    )


# One route.


async def show_route(request: web.Request) -> web.Response:
    """Show what a route requires, the outcomes of its requests, and who can reach it."""
    service, route = service_of(request), _route_of(request)
    key = request.query.get("key", "")
    return await _route_page(request, route, asked(service, **_example(route), key=key), 200)


async def try_route(request: web.Request) -> web.Response:
    """Explain the submitted request, on the page of the route."""
    route = _route_of(request)
    return await _route_page(request, route, *await answered(request))


def _route_of(request: web.Request) -> Route:
    """Raises Problem 404. Reads the raw path, because names contain slashes and `%`."""
    return route_named(service_of(request).config, unquote(request.rel_url.raw_path.removeprefix("/policy/")))


def _example(route: Route) -> dict[str, str]:
    method = "GET" if route.methods & {"GET", EVERY} else min(route.methods)
    return {"method": method, "target": example_of(route.pattern)}


async def _route_page(request: web.Request, route: Route, ask: Explanation, status: int) -> web.Response:
    service, link, wanted = service_of(request), route_link(route.name), last_day(service_of(request).now)
    rows = [row for row in await service.usage(None, wanted) if row.route == route.name]
    outcomes = outcomes_by_route(rows).get(route.name, Outcomes())
    since_start, slot = counted_outcomes(service), slot_of(request, wanted)
    counts = None if since_start is None else since_start.get(route.name, Outcomes())
    view = RoutePage(
        name=route.name,
        link=link,
        marks=tuple(_marks(Modes(service.config), route)),
        needs=needs(route),
        facts=tuple(_facts(service, service.shown_route(route))),
        chart=usage_chart(rows, wanted, "24 hours", link=lambda at: f"{link}?at={at}#latest", slot=slot)
        if rows
        else None,
        day=_cell(outcomes),
        by_reason=_by_reason(outcomes.denied, link),
        observed=_by_reason(outcomes.would_deny, link),
        counted=None if counts is None else _cell(counts),
        counted_by_reason=() if counts is None else _by_reason(counts.denied, link),
        counted_observed=() if counts is None else _by_reason(counts.would_deny, link),
        counted_since=moment(service.running_since, service.now).relative,
        reach=await route_reach(request, service, route),
        ask=ask,
        latest=latest_refusals(service, request, key_id=None, slot=slot, of_route=route.name),
    )
    return request.app[TEMPLATES].page(request, "route.html", here="policy", status=status, view=view)


def _by_reason(counts: Mapping[str, int], link: str) -> tuple[CountRow, ...]:
    return count_rows(counts, lambda reason: f"{link}?{urlencode({'reason': reason})}#latest")


def _facts(service: AdminService, route: Route) -> Iterator[Fact]:
    policy = route.policy
    methods = ("Every method",) if EVERY in route.methods else tuple(sorted(route.methods))
    yield Fact(label="Methods", chips=methods)
    yield Fact(label="Path", value=route.pattern, mono=True)
    if policy.any_scopes:
        yield Fact(label="Any of", chips=tuple(sorted(policy.any_scopes)))
    if policy.all_scopes and not policy.deny:
        yield Fact(label="All of", chips=tuple(sorted(policy.all_scopes)))
    if policy.environments:
        yield Fact(label="Environments", chips=tuple(sorted(policy.environments)))
    yield Fact(label="Quotas", chips=tuple(_quotas(policy)))
    yield from _forwarding(route)
    if service.config.keys.pass_through and policy.pass_through and not policy.public:
        yield Fact(label="Other credentials", value="are passed on: the service checks them")
    yield Fact(label="Defined in", value=route.where or "Default for what matches no route", mono=bool(route.where))


def _quotas(policy: Policy) -> Iterator[str]:
    for charge in policy.charges:
        by = " and ".join(subject.value for subject in charge.quota.by)
        cost = "" if charge.cost == 1 else f", {charge.cost} each"
        yield f"{charge.quota.name}: {limit_text(charge.quota, charge.quota.limit)} by {by}{cost}"


def _forwarding(route: Route) -> Iterator[Fact]:
    policy, forward = route.policy, route.policy.forward
    if policy.respond is not None:
        yield Fact(label="Responds", value=f"with {policy.respond.status}, by the sidecar itself")
    elif audience(route) != "nobody":
        upstream = f"upstream {forward.upstream}" if forward.upstream else "the default upstream"
        yield Fact(label="Goes to", value=upstream)
    if forward.strip_prefix is not None:
        yield Fact(label="Prefix taken off", value=forward.strip_prefix or "None", mono=True)
    if forward.answer_timeout_seconds is not None:
        yield Fact(label="Waits", value=f"{forward.answer_timeout_seconds:g} s for the head of the response")
    if forward.body_bytes is not None:
        bounded = isfinite(forward.body_bytes)
        yield Fact(label="Body", value=f"up to {int(forward.body_bytes):,} bytes" if bounded else "of any size")
    if policy.shared_cache:
        yield Fact(label="Caches", value="may give responses to one key to everybody")
    if policy.cors is not None:
        yield Fact(label="Scripts of", chips=tuple(sorted(policy.cors.origins)))
