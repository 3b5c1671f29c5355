"""Who reaches a route, on its page; and what a key reaches, on the page of the key."""

from typing import Final
from urllib.parse import urlencode

from aiohttp import web

from sidecar.admin.policy import Reach, audience, reach
from sidecar.admin.service import AdminService
from sidecar.admin.web.formatting import moment_or_none, route_link
from sidecar.admin.web.policy_views import ClosedRow, KeyReach, ReachKey, RouteReach, RouteRow
from sidecar.admin.web.stats import count_rows
from sidecar.admin.web.view_models import CountRow
from sidecar.core.apikey import looks_secret
from sidecar.core.model import ApiKey, Policy, Route
from sidecar.core.units import counted
from sidecar.gate.explain import allowed_routes, charges, requirements
from sidecar.gate.reach import ClosedRoute, closed_routes

_KEYS: Final = 50
_SUGGESTED: Final = 3
_MOST_CLOSED: Final = 100

# What a key reaches.


def key_reach(service: AdminService, key: ApiKey) -> KeyReach:
    """The routes that the key may use, and those that it may not: first those that a scope would open."""
    config = service.config
    closed = closed_routes(config, key)
    near = [one for one in closed if not one.bar]
    barred = [one for one in closed if one.bar]
    hidden = len(near[_MOST_CLOSED:]) + len(barred[_MOST_CLOSED:])
    return KeyReach(
        allowed=tuple(_route(service.shown_route(route)) for route in allowed_routes(config, key)),
        near=tuple(map(_closed, near[:_MOST_CLOSED])),
        barred=tuple(map(_closed, barred[:_MOST_CLOSED])),
        closed=counted(len(closed), "closed route"),
        more=counted(hidden, "more route") if hidden else "",
    )


def _route(route: Route) -> RouteRow:
    return RouteRow(
        name=route.name,
        link=route_link(route.name),
        where=route.where,
        needs=requirements(route.policy),
        quotas=charges(route.policy),
    )


def _closed(closed: ClosedRoute) -> ClosedRow:
    return ClosedRow(
        name=closed.route.name,
        link=route_link(closed.route.name),
        why=closed.bar or f"needs {_missing(closed)}",
        opened_by=tuple(closed.opened_by[:_SUGGESTED]),
        others=len(closed.opened_by[_SUGGESTED:]),
    )


def _missing(closed: ClosedRoute) -> str:
    policy = closed.route.policy
    every, some = sorted(policy.all_scopes & closed.missing), sorted(policy.any_scopes & closed.missing)
    return " and ".join([*every, *([" or ".join(some)] if some else [])])


# Who reaches a route.


async def route_reach(request: web.Request, service: AdminService, route: Route) -> RouteReach:
    """The keys that reach the route, of the tenant and from the cursor that the address names."""
    given = {name: value for name, value in request.query.items() if not looks_secret(value)}
    tenant, after, link = given.get("tenant", "").strip(), given.get("after", ""), route_link(route.name)
    found = await reach(service, route, tenant=tenant or None, after=after or None, limit=_KEYS)
    kept = {"tenant": tenant} if tenant else {}
    return RouteReach(
        summary=_summary(route, found, tenant=tenant, after=after),
        note="" if found.whole else "Not all keys were searched: Next continues with older ones.",
        keys=tuple(_reach_key(key, service.now) for key in found.keys),
        tenants=_tenants(found, link),
        scopes=count_rows(dict(found.scopes), lambda _: ""),
        tenant=tenant,
        every=f"{link}#reach",
        first=f"{link}?{urlencode(kept)}#reach" if after else None,
        next=f"{link}?{urlencode({**kept, 'after': found.next})}#reach" if found.next else None,
    )


def _summary(route: Route, found: Reach, *, tenant: str, after: str) -> str:
    match audience(route):
        case "everybody":
            return "Everybody: no key is needed."
        case "nobody":
            return "Nobody: every request is refused."
        case "no_key":
            return "No key: only requests without one, or with credentials that are not keys."
    of = f" of tenant {tenant}" if tenant else ""
    older = " among those after the previous page" if after else ""
    number = f"{found.count:,}" if found.count else "None"
    return f"{number} of {counted(found.looked_at, 'usable key')}{of}{older}{_bound(route.policy)}."


def _bound(policy: Policy) -> str:
    params = (("tenant", policy.tenant_param), ("environment", policy.environment_param))
    bounds = [f"{{{param}}} is its {what}" for what, param in params if param]
    return f", each where {' and '.join(bounds)}" if bounds else ""


def _tenants(found: Reach, link: str) -> tuple[CountRow, ...]:
    counts = {tenant or "": count for tenant, count in found.tenants}

    def address(tenant: str) -> str:
        return f"{link}?{urlencode({'tenant': tenant})}#reach" if tenant else ""

    return count_rows(counts, address)


def _reach_key(key: ApiKey, now: int) -> ReachKey:
    return ReachKey(
        id=key.id,
        name=key.name,
        prefix=key.prefix,
        tenant=key.tenant or "",
        environment=key.environment or "",
        scopes=key.scopes,
        last_used=moment_or_none(key.last_used_at, now),
    )
