"""Operations of the API that look at things: usage, audit, configuration, and the gate itself."""

from collections import Counter
from dataclasses import replace
from typing import Final

from sidecar.admin.api.decoding import given
from sidecar.admin.api.operations import Call, Operation, Reply
from sidecar.admin.api.schemas import AuditQuery, QuestionAsked, UsageQuery
from sidecar.admin.api.serializers import (
    audit_told,
    explanation_told,
    key_told,
    plans_told,
    quota_told,
    route_told,
    scopes_told,
)
from sidecar.admin.api_told import (
    AuditPage,
    DueTold,
    ExplanationTold,
    OverviewTold,
    PlanList,
    RouteList,
    ScopeList,
    UnusualTold,
    UsageList,
    UsageTold,
    WhoTold,
)
from sidecar.admin.problems import Flaw, flawed
from sidecar.admin.service import Desk
from sidecar.core.apikey import Secret
from sidecar.core.times import rfc3339
from sidecar.keys.ports import AuditFilter
from sidecar.usage.ports import DAY, UsageFilter

_UNUSUAL_EVENTS: Final = 20
_GATE: Final = "The gate"
_SIDECAR: Final = "This sidecar"


async def show_usage(desk: Desk, call: Call) -> Reply:
    asked = given(call.query)
    until = asked.get("until", desk.now)
    since = asked.get("since", until - DAY)
    if since >= until:
        raise flawed([Flaw(pointer="?since", detail="must be before `until`")])
    rows = await desk.usage(call.key_id, UsageFilter(since=since, until=until, by=asked["by"]))
    told = tuple(
        UsageTold(at=rfc3339(row.at), route=row.route, status_class=row.status_class, count=row.count) for row in rows
    )
    return Reply(value=UsageList(by=asked["by"], since=rfc3339(since), until=rfc3339(until), rows=told))


async def list_audit(desk: Desk, call: Call) -> Reply:
    wanted = AuditFilter(**given(call.query))
    rows = await desk.audit(replace(wanted, limit=wanted.limit + 1))
    page = rows[: wanted.limit]
    following = page[-1].id if len(rows) > len(page) else None
    return Reply(value=AuditPage(rows=tuple(map(audit_told, page)), next=following))


async def list_plans(desk: Desk, _: Call) -> Reply:
    config = desk.config
    quotas = tuple(map(quota_told, config.quotas.values()))
    return Reply(value=PlanList(plans=plans_told(config, desk.admin), quotas=quotas))


async def list_scopes(desk: Desk, _: Call) -> Reply:
    return Reply(value=ScopeList(scopes=scopes_told(desk.config, desk.admin)))


async def list_routes(desk: Desk, _: Call) -> Reply:
    return Reply(value=RouteList(routes=tuple(map(route_told, desk.config.routes))))


async def explain(desk: Desk, call: Call) -> Reply:
    asked: QuestionAsked = call.body
    if asked.key is not None and asked.secret is not None:
        raise flawed([Flaw(pointer="/secret", detail="give this or `key`, not both")])
    secret = Secret(text=asked.secret) if asked.secret is not None else None
    explanation = await desk.explain(asked.method, asked.target, key=asked.key, secret=secret)
    return Reply(value=explanation_told(explanation))


async def who_am_i(desk: Desk, _: Call) -> Reply:
    admin, config = desk.admin, desk.config
    told = WhoTold(
        name=admin.name,
        rights=admin.rights,
        tenant=admin.tenant,
        scopes=tuple(admin.grantable(config.catalogue)),
        plans=tuple(admin.plans_of(config.plans)),
    )
    return Reply(value=told)


async def overview(desk: Desk, _: Call) -> Reply:
    requests: Counter[str] = Counter()
    for row in await desk.usage(None, UsageFilter(since=desk.now - DAY, until=desk.now)):
        requests[f"{row.status_class}xx"] += row.count
    due = tuple(DueTold(key=key_told(one.key, desk.now), why=one.why, at=rfc3339(one.at)) for one in await desk.due())
    unusual = tuple(
        UnusualTold(
            kind=event.kind.value,
            key_id=event.key_id,
            at=rfc3339(event.at),
            address=event.address,
            detail=event.detail,
        )
        for event in await desk.unusual(limit=_UNUSUAL_EVENTS)
    )
    told = OverviewTold(keys=await desk.counts(), requests_by_class=dict(requests), due=due, unusual=unusual)
    return Reply(value=told)


OPERATIONS: Final = (
    Operation(
        name="showUsage",
        method="GET",
        path="/keys/{id}/usage",
        summary="Count the requests of a key by hour or day, route and class of status",
        handle=show_usage,
        answer=UsageList,
        query=UsageQuery,
        refusals=(404,),
        group="Usage and audit",
    ),
    Operation(
        name="listAudit",
        method="GET",
        path="/audit",
        summary="List changes of keys, the newest first",
        handle=list_audit,
        answer=AuditPage,
        query=AuditQuery,
        group="Usage and audit",
    ),
    Operation(
        name="explain",
        method="POST",
        path="/explain",
        summary="Ask what would come of a request, and why; nothing is taken from any quota",
        handle=explain,
        answer=ExplanationTold,
        body=QuestionAsked,
        refusals=(404,),
        group=_GATE,
    ),
    *(
        Operation(name=name, method="GET", path=path, summary=summary, handle=handle, answer=answer, group=group)
        for name, path, summary, handle, answer, group in (
            ("listRoutes", "/routes", "List the routes in force, with file and line", list_routes, RouteList, _GATE),
            ("listScopes", "/scopes", "List the scopes of the catalogue", list_scopes, ScopeList, _GATE),
            ("listPlans", "/plans", "List plans and quotas", list_plans, PlanList, _GATE),
            ("whoAmI", "/whoami", "Tell whose admin token this is", who_am_i, WhoTold, _SIDECAR),
            ("showOverview", "/overview", "Show how things stand", overview, OverviewTold, _SIDECAR),
        )
    ),
)
