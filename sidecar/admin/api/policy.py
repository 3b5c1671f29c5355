"""The operations of the API on the policy in force, and their handlers."""

from dataclasses import replace
from typing import Final

from sidecar.admin.api.operations import ONE_KEY, Bare, Call, NoBody, NoQuery, Operation, Reply
from sidecar.admin.api.policy_schemas import (
    ConfigurationOut,
    KeyReachOut,
    PolicyOut,
    PolicyQuery,
    ReachOut,
    ReachQuery,
    closed_route_out,
    configuration_out,
    reach_out,
    route_policy_out,
)
from sidecar.admin.api.serializers import given_or, route_out
from sidecar.admin.policy import (
    RouteFilter,
    config_state,
    counted_outcomes,
    fitting_routes,
    last_day,
    outcomes_by_route,
    reach,
    route_named,
)
from sidecar.admin.service import AdminService
from sidecar.config.build.modes import Modes
from sidecar.core.units import rfc3339
from sidecar.gate.explain import allowed_routes
from sidecar.gate.reach import closed_routes

_GATE: Final = "The gate"
_SIDECAR: Final = "This sidecar"


async def show_policy(service: AdminService, call: Call[PolicyQuery, NoBody]) -> Reply:
    query, wanted = call.query, last_day(service.now)
    stored = outcomes_by_route(await service.usage(None, wanted))
    counted = counted_outcomes(service)
    filter_ = RouteFilter(search=given_or(query.search, ""), scope=given_or(query.scope, ""), used=query.used)
    routes = map(service.shown_route, fitting_routes(service.config, filter_, stored, counted))
    modes = Modes(service.config)
    policy = PolicyOut(
        routes=tuple(route_policy_out(modes, route, stored, counted) for route in routes),
        since=rfc3339(wanted.since),
        counted_since=rfc3339(service.running_since),
    )
    return Reply(value=policy)


async def show_reach(service: AdminService, call: Call[ReachQuery, NoBody]) -> Reply:
    query = call.query
    route = route_named(service.config, query.route)
    tenant, after = given_or(query.tenant, None), given_or(query.after, None) or None
    found = await reach(service, route, tenant=tenant, after=after, limit=query.limit)
    return Reply(value=reach_out(route, found, service.now))


async def show_key_reach(service: AdminService, call: Bare) -> Reply:
    key = await service.get(call.key_id)
    allowed = tuple(route_out(service.shown_route(route)) for route in allowed_routes(service.config, key))
    closed = [replace(one, route=service.shown_route(one.route)) for one in closed_routes(service.config, key)]
    return Reply(value=KeyReachOut(allowed=allowed, closed=tuple(map(closed_route_out, closed))))


async def show_configuration(service: AdminService, _: Bare) -> Reply:
    return Reply(value=configuration_out(config_state(service)))


POLICY_OPERATIONS: Final = (
    Operation(
        name="showPolicy",
        method="GET",
        path="/policy",
        summary="Show what each route requires, and what came of its requests",
        query=PolicyQuery,
        body=NoBody,
        handle=show_policy,
        response=PolicyOut,
        group=_GATE,
    ),
    Operation(
        name="showReach",
        method="GET",
        path="/policy/reach",
        summary="Show which keys can reach a route, by tenant and by scope",
        query=ReachQuery,
        body=NoBody,
        handle=show_reach,
        response=ReachOut,
        problems=(404,),
        unknown="The configuration in force has no such route.",
        group=_GATE,
    ),
    Operation(
        name="showKeyReach",
        method="GET",
        path=f"{ONE_KEY}/reach",
        summary="List the routes that a key may use, and what keeps it from the others",
        query=NoQuery,
        body=NoBody,
        handle=show_key_reach,
        response=KeyReachOut,
        problems=(404,),
        group=_GATE,
    ),
    Operation(
        name="showConfiguration",
        method="GET",
        path="/configuration",
        summary="Show the configuration in force, and the one that was refused in its place",
        query=NoQuery,
        body=NoBody,
        handle=show_configuration,
        response=ConfigurationOut,
        group=_SIDECAR,
    ),
)
