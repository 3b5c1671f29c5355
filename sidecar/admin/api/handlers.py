"""The operations of the API on usage, audit, policy and state, and their handlers."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from sidecar.admin.api.operations import ONE_KEY, Bare, Call, NoBody, NoQuery, Operation, Reply
from sidecar.admin.api.requests import (
    AuditQuery,
    ExplainRequest,
    RefusalQuery,
    UsageQuery,
)
from sidecar.admin.api.schemas import (
    AuditPage,
    DueOut,
    ExplanationOut,
    OverviewOut,
    PastDecisionList,
    PlanList,
    QuotaUsageList,
    RefusalList,
    RouteList,
    RouteOut,
    ScopeList,
    ScopeUseOut,
    UsageList,
    WhoOut,
)
from sidecar.admin.api.serializers import (
    anomaly_out,
    audit_filter,
    audit_out,
    explanation_out,
    given_or,
    health_out,
    nearly_used_up_out,
    past_decision_out,
    plans_out,
    quota_out,
    quota_usage_out,
    refusal_filter,
    refusal_out,
    route_out,
    scope_use_out,
    scopes_out,
    tenant_nearly_used_up_out,
    time_of,
    usage_out,
)
from sidecar.admin.problems import FieldError, invalid_request, unknown_request
from sidecar.admin.service import AdminService
from sidecar.core.apikey import Secret
from sidecar.core.model import Route
from sidecar.core.units import rfc3339
from sidecar.gate.explain import allowed_routes
from sidecar.keys.records import public_key
from sidecar.telemetry.refusals import RefusalFilter
from sidecar.usage.recorder import DAY, UsageFilter

_MAX_ANOMALIES: Final = 20
_MAX_NEAR: Final = 20
_USE: Final = "Usage and audit"
_GATE: Final = "The gate"
_SIDECAR: Final = "This sidecar"


async def show_usage(service: AdminService, call: Call[UsageQuery, NoBody]) -> Reply:
    """Usage of the key in the path, or of all keys together without one."""
    key_id = call.key_id or None
    until = given_or(time_of(call.query.until), service.now)
    since = given_or(time_of(call.query.since), until - DAY)
    if since >= until:
        raise invalid_request([FieldError(pointer="?since", detail="must be before `until`")])
    wanted = UsageFilter(since=since, until=until, by=call.query.by)
    rows = await service.usage(key_id, wanted)
    by_reason = await service.usage(key_id, replace(wanted, with_reasons=True))
    return Reply(value=usage_out(wanted, until, rows, by_reason))


async def show_quotas(service: AdminService, call: Bare) -> Reply:
    key = await service.get(call.key_id)
    return Reply(value=QuotaUsageList(quotas=tuple(map(quota_usage_out, await service.quota_usage(key)))))


async def show_routes(service: AdminService, call: Bare) -> Reply:
    key = await service.get(call.key_id)
    return Reply(value=RouteList(routes=_routes_out(service, allowed_routes(service.config, key))))


def _routes_out(service: AdminService, routes: Iterable[Route]) -> tuple[RouteOut, ...]:
    return tuple(route_out(service.shown_route(route)) for route in routes)


async def show_scope_use(service: AdminService, call: Bare) -> Reply:
    key = await service.get(call.key_id)
    return Reply(value=scope_use_out(await service.scope_use(key)))


async def list_refusals(service: AdminService, call: Call[RefusalQuery, NoBody]) -> Reply:
    refusals = service.refusals(refusal_filter(call.query))
    return Reply(value=RefusalList(refusals=tuple(map(refusal_out, refusals))))


async def show_refusals(service: AdminService, call: Bare) -> Reply:
    """Refusals with the request id in the path."""
    found = service.refusals(RefusalFilter(request_id=call.key_id))
    if not found:
        raise unknown_request()
    decisions = await service.past_refusals(found)
    return Reply(value=PastDecisionList(total=len(found), decisions=tuple(map(past_decision_out, decisions))))


async def list_audit(service: AdminService, call: Call[AuditQuery, NoBody]) -> Reply:
    wanted = audit_filter(call.query)
    rows = await service.audit(replace(wanted, limit=wanted.limit + 1), key_name=given_or(call.query.name, None))
    page = rows[: wanted.limit]
    following = page[-1].id if len(rows) > len(page) else None
    return Reply(value=AuditPage(rows=tuple(map(audit_out, page)), next=following))


async def list_plans(service: AdminService, _: Bare) -> Reply:
    config = service.config
    quotas = tuple(map(quota_out, config.quotas.values()))
    return Reply(value=PlanList(plans=plans_out(config, service.admin), quotas=quotas))


async def list_scopes(service: AdminService, _: Bare) -> Reply:
    return Reply(value=ScopeList(scopes=scopes_out(service.config, service.admin)))


async def list_routes(service: AdminService, _: Bare) -> Reply:
    return Reply(value=RouteList(routes=_routes_out(service, service.config.routes)))


async def explain(service: AdminService, call: Call[NoQuery, ExplainRequest]) -> Reply:
    body = call.body
    if body.key is not None and body.secret is not None:
        raise invalid_request([FieldError(pointer="/secret", detail="give either this or `key`")])
    secret = Secret(text=body.secret) if body.secret is not None else None
    explanation = await service.explain(body.method, body.target, key=body.key, secret=secret)
    return Reply(value=explanation_out(explanation))


async def who_am_i(service: AdminService, _: Bare) -> Reply:
    admin, config = service.admin, service.config
    who = WhoOut(
        name=admin.name,
        rights=admin.rights,
        tenant=admin.tenant,
        scopes=tuple(admin.grantable(config.catalogue)),
        plans=tuple(admin.plans_of(config.plans)),
        environments=tuple(config.keys.environments),
        default_scopes=config.keys.default_scopes,
        default_plan=config.keys.default_plan,
        required=tuple(config.keys.require),
    )
    return Reply(value=who)


async def overview(service: AdminService, _: Bare) -> Reply:
    requests: Counter[str] = Counter()
    for row in await service.usage(None, UsageFilter(since=service.now - DAY, until=service.now)):
        requests[f"{row.status_class}xx"] += row.count
    due = tuple(
        DueOut(key=public_key(one.key, service.now), why=one.why, at=rfc3339(one.at))
        for one in await service.upcoming()
    )
    unusual = tuple(map(anomaly_out, await service.unusual(limit=_MAX_ANOMALIES)))
    near = (await service.nearly_used_up())[:_MAX_NEAR]
    counts = service.counts_by_reason()
    state = OverviewOut(
        keys=await service.counts(),
        requests_by_class=dict(requests),
        due=due,
        unusual=unusual,
        health=health_out(await service.health(), service.config, service.observing),
        refusals_by_reason=None if counts is None else dict(counts),
        refusals_since=rfc3339(service.running_since),
        nearly_used_up=tuple(nearly_used_up_out(one, service.now) for one in near if not one.of_tenant),
        tenants_nearly_used_up=tuple(tenant_nearly_used_up_out(one) for one in near if one.of_tenant),
    )
    return Reply(value=state)


VIEW_OPERATIONS: Final = (
    *(
        Operation(
            name=name,
            method="GET",
            path=path,
            summary=summary,
            query=UsageQuery,
            body=NoBody,
            handle=show_usage,
            response=UsageList,
            problems=problems,
            group=_USE,
        )
        for name, path, summary, problems in (
            (
                "showUsage",
                f"{ONE_KEY}/usage",
                "Count the requests of a key by hour or day, route and status class",
                (404,),
            ),
            ("showTotalUsage", "/usage", "Count the requests of all keys together, in the same way", ()),
        )
    ),
    Operation(
        name="listRefusals",
        method="GET",
        path="/refusals",
        summary="List the newest refusals of this process, at most 200, the newest first",
        query=RefusalQuery,
        body=NoBody,
        handle=list_refusals,
        response=RefusalList,
        group=_USE,
    ),
    Operation(
        name="showRefusals",
        method="GET",
        path="/refusals/{id}",
        summary="Show the newest refusals with this request id, each as it was decided then and would be now",
        query=NoQuery,
        body=NoBody,
        handle=show_refusals,
        response=PastDecisionList,
        problems=(404,),
        group=_USE,
    ),
    Operation(
        name="listAudit",
        method="GET",
        path="/audit",
        summary="List changes to keys, the newest first",
        query=AuditQuery,
        body=NoBody,
        handle=list_audit,
        response=AuditPage,
        group=_USE,
    ),
    Operation(
        name="explain",
        method="POST",
        path="/explain",
        summary="Explain how the gate would decide on a request; nothing is taken from quotas",
        query=NoQuery,
        body=ExplainRequest,
        handle=explain,
        response=ExplanationOut,
        problems=(404,),
        group=_GATE,
    ),
    *(
        Operation(
            name=name,
            method="GET",
            path=path,
            summary=summary,
            query=NoQuery,
            body=NoBody,
            handle=handle,
            response=response,
            problems=(404,) if "{id}" in path else (),
            group=group,
        )
        for name, path, summary, handle, response, group in (
            ("listRoutes", "/routes", "List the routes, with file and line", list_routes, RouteList, _GATE),
            ("showQuotas", f"{ONE_KEY}/quotas", "Show what a key has left", show_quotas, QuotaUsageList, _USE),
            ("showKeyRoutes", f"{ONE_KEY}/routes", "List the routes that a key may use", show_routes, RouteList, _GATE),
            (
                "showScopeUse",
                f"{ONE_KEY}/scope-use",
                "Show which scopes a key needed lately, and which it could do without",
                show_scope_use,
                ScopeUseOut,
                _USE,
            ),
            ("listScopes", "/scopes", "List the scopes of the catalogue", list_scopes, ScopeList, _GATE),
            ("listPlans", "/plans", "List plans and quotas", list_plans, PlanList, _GATE),
            ("whoAmI", "/whoami", "Show the admin token of this request", who_am_i, WhoOut, _SIDECAR),
            ("showOverview", "/overview", "Show the state of keys and traffic", overview, OverviewOut, _SIDECAR),
        )
    ),
)
