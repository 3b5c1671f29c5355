"""Between the structs of the API and the values of keys, gate and configuration."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from sidecar.admin.api.requests import (
    AuditQuery,
    KeyCreate,
    KeyQuery,
    KeysChange,
    KeyUpdate,
    Matching,
    RefusalQuery,
    RotationRequest,
)
from sidecar.admin.api.schemas import (
    AnomalyOut,
    AuditOut,
    ExplanationOut,
    HealthOut,
    LackOut,
    LineOut,
    NearlyUsedUpOut,
    PastDecisionOut,
    PlanOut,
    QuotaOut,
    QuotaStateOut,
    QuotaUsageOut,
    ReasonOut,
    RefusalOut,
    RouteOut,
    ScopeOut,
    ScopeUseOut,
    TenantNearlyUsedUpOut,
    UsageList,
    UsageOut,
)
from sidecar.admin.auth import Admin
from sidecar.admin.problems import FieldError, invalid_request
from sidecar.admin.running import Health, NearlyUsedUp, PastRefusal
from sidecar.admin.scopes import ScopeUse
from sidecar.config.build.config import Config
from sidecar.core.model import Allow, Deny, Quota, QuotaState, Route, Subject
from sidecar.core.quotas import QuotaUsage
from sidecar.core.units import microseconds, rfc3339
from sidecar.gate.explain import Explanation, Line
from sidecar.keys.ports import AuditFilter, AuditRow, KeyFilter, after_cursor
from sidecar.keys.records import public_key
from sidecar.keys.transitions import KeyChange, Rotation
from sidecar.keys.validation import NewKey
from sidecar.rehearsal.suggestions.suggest import Refused
from sidecar.telemetry.refusals import Refusal, RefusalFilter
from sidecar.usage.anomalies import Anomaly
from sidecar.usage.recorder import UsageFilter, UsageRow, observed_reason

V = TypeVar("V")
D = TypeVar("D")

# From a request to values. A field that the client left out is UNSET.


def given_or(value: V | UnsetType, default: D) -> V | D:
    """The value that the client gave, or `default`."""
    return default if value is UNSET else value


def time_of(value: str | V) -> int | V:
    """Microseconds of a time that the client gave; None and UNSET stay. Decoding has checked the text."""
    return microseconds(value) if isinstance(value, str) else value


def new_key(body: KeyCreate) -> NewKey:
    return NewKey(
        name=body.name,
        scopes=body.scopes,
        tenant=body.tenant,
        environment=body.environment,
        plan=body.plan,
        quotas=body.quotas,
        metadata=body.metadata,
        expires_at=time_of(body.expires_at),
    )


def key_change(body: KeyUpdate) -> KeyChange:
    return KeyChange(
        name=body.name,
        scopes=body.scopes,
        plan=body.plan,
        quotas=body.quotas,
        metadata=body.metadata,
        expires_at=time_of(body.expires_at),
    )


def rotation(body: RotationRequest, default_overlap_seconds: float) -> Rotation:
    return Rotation(
        overlap_seconds=given_or(body.overlap_seconds, default_overlap_seconds),
        expires_at=time_of(body.expires_at),
    )


def key_filter(query: KeyQuery, now: int) -> KeyFilter:
    """now: microseconds."""
    wanted = replace(_matching(query, now), sort=query.sort, limit=query.limit)
    return after_cursor(wanted, given_or(query.after, None))


def _matching(query: KeyQuery | Matching, now: int) -> KeyFilter:
    """now: microseconds."""
    unused = given_or(query.unused_for_seconds, None)
    return KeyFilter(
        tenant=given_or(query.tenant, None),
        environment=given_or(query.environment, None),
        effective_status=given_or(query.effective_status, None),
        search=given_or(query.search, None),
        unused_since=None if unused is None else now - unused * 1_000_000,
        sort="tenant",
    )


def selection(body: KeysChange, now: int) -> KeyFilter | Sequence[str]:
    """The filter or the ids. Raises Problem."""
    if (body.ids is UNSET) == (body.matching is UNSET):
        raise invalid_request([FieldError(pointer="", detail="give either `ids` or `matching`")])
    if body.matching is UNSET:
        return given_or(body.ids, ())
    if body.matching == Matching():
        raise invalid_request([FieldError(pointer="/matching", detail="must say which keys")])
    return _matching(body.matching, now)


def refusal_filter(query: RefusalQuery) -> RefusalFilter:
    return RefusalFilter(
        key_id=given_or(query.key_id, None),
        reason=given_or(query.reason, None),
        route=given_or(query.route, None),
        since=given_or(time_of(query.since), 0),
        until=given_or(time_of(query.until), None),
        limit=query.limit,
    )


def audit_filter(query: AuditQuery) -> AuditFilter:
    return AuditFilter(
        key_id=given_or(query.key_id, None),
        tenant=given_or(query.tenant, None),
        actor=given_or(query.actor, None),
        action=given_or(query.action, None),
        since=given_or(time_of(query.since), None),
        until=given_or(time_of(query.until), None),
        before_id=given_or(query.before_id, None),
        limit=query.limit,
    )


# From values to a response. Times are RFC 3339, in UTC.


_STORED_AS_JSON: Final = frozenset({"scopes", "quotas", "metadata"})


def audit_out(row: AuditRow) -> AuditOut:
    return AuditOut(
        id=row.id,
        at=rfc3339(row.at),
        actor=row.actor,
        source=row.source,
        action=row.action,
        key_id=row.key_id,
        before=_state(row.before),
        after=_state(row.after),
    )


def _state(state: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if state is None:
        return None
    return {name: _value_out(name, value) for name, value in state.items()}


def _value_out(name: str, value: Any) -> Any:
    if name.endswith("_at"):
        return rfc3339(value)
    return msgspec.json.decode(value) if name in _STORED_AS_JSON and isinstance(value, str) else value


def scopes_out(config: Config, admin: Admin) -> tuple[ScopeOut, ...]:
    grantable = set(admin.grantable(config.catalogue))
    return tuple(
        ScopeOut(
            name=scope.name,
            description=scope.description,
            includes=scope.includes,
            grantable=scope.name in grantable,
        )
        for scope in config.catalogue.scopes.values()
    )


def plans_out(config: Config, admin: Admin) -> tuple[PlanOut, ...]:
    return tuple(
        PlanOut(name=name, limits=dict(limits), grantable=admin.may_plan(name)) for name, limits in config.plans.items()
    )


def quota_out(quota: Quota) -> QuotaOut:
    per = quota.period if isinstance(quota.period, str) else f"{quota.period}s"
    by = tuple(subject.value for subject in quota.by)
    return QuotaOut(name=quota.name, limit=quota.limit, per=per, window=quota.window.value, by=by)


def route_out(route: Route) -> RouteOut:
    policy = route.policy
    return RouteOut(
        name=route.name,
        methods=tuple(sorted(route.methods)),
        pattern=route.pattern,
        where=route.where,
        public=policy.public,
        any_scopes=tuple(sorted(policy.any_scopes)),
        all_scopes=() if policy.deny else tuple(sorted(policy.all_scopes)),
        tenant_param=policy.tenant_param,
        environment_param=policy.environment_param,
        environments=tuple(sorted(policy.environments)),
        quotas={charge.quota.name: charge.cost for charge in policy.charges},
        pass_through=policy.pass_through,
        takes_keys=policy.refuses_keys is None,
        answered=policy.respond is not None,
        deny=policy.deny,
    )


def scope_use_out(use: ScopeUse) -> ScopeUseOut:
    one = use.suggestion
    return ScopeUseOut(
        since=rfc3339(use.since),
        until=rfc3339(use.until),
        suggestion=one.verdict,
        why=one.why or None,
        requests=one.requests,
        scopes=one.key.scopes,
        used=one.used,
        unused=one.unused,
        needed=one.needed,
        refused=tuple(_lack_out(each) for each in one.refused),
        command=use.command,
    )


def _lack_out(refused: Refused) -> LackOut:
    return LackOut(route=refused.route, lacks=refused.lacks, count=refused.count, observed=refused.observed)


def explanation_out(explanation: Explanation) -> ExplanationOut:
    decision = explanation.decision
    denied = decision if isinstance(decision, Deny) else None
    key = decision.principal.key if decision.principal else denied.key if denied else None
    return ExplanationOut(
        decision="allow" if isinstance(decision, Allow) else "deny",
        reason=denied.reason.value if denied else None,
        would_deny=decision.would_deny.reason.value if isinstance(decision, Allow) and decision.would_deny else None,
        status=explanation.status,
        route=decision.route.name if decision.route else None,
        where=decision.route.where if decision.route else None,
        key_id=key.id if key else None,
        quotas=tuple(map(_quota_state_out, decision.quota_states)),
        lines=_lines_out(explanation.lines),
    )


def explanation_as_json(explanation: Explanation) -> dict[str, Any]:
    """The same, ready for JSON outside the API."""
    found: dict[str, Any] = msgspec.to_builtins(explanation_out(explanation))
    return found


def _quota_state_out(state: QuotaState) -> QuotaStateOut:
    resets_at = rfc3339(int(state.resets_at) * 1_000_000)
    return QuotaStateOut(name=state.quota.name, limit=state.limit, remaining=state.remaining, resets_at=resets_at)


def anomaly_out(event: Anomaly) -> AnomalyOut:
    at = rfc3339(event.at)
    return AnomalyOut(kind=event.kind.value, key_id=event.key_id, at=at, address=event.address, detail=event.detail)


def usage_out(wanted: UsageFilter, until: int, rows: Sequence[UsageRow], by_reason: Sequence[UsageRow]) -> UsageList:
    counts = tuple(
        UsageOut(at=rfc3339(row.at), route=row.route, status_class=row.status_class, count=row.count) for row in rows
    )
    named = [(row, observed_reason(row.reason)) for row in by_reason if row.reason]
    return UsageList(
        by=wanted.by,
        since=rfc3339(wanted.since),
        until=rfc3339(until),
        rows=counts,
        reasons=tuple(_reason_out(row, row.reason) for row, observed in named if not observed),
        would_deny=tuple(_reason_out(row, observed) for row, observed in named if observed),
    )


def _reason_out(row: UsageRow, reason: str) -> ReasonOut:
    return ReasonOut(at=rfc3339(row.at), route=row.route, reason=reason, count=row.count)


def quota_usage_out(usage: QuotaUsage) -> QuotaUsageOut:
    state = usage.state
    return QuotaUsageOut(
        name=usage.quota.name,
        limit=usage.limit,
        remaining=None if state is None else state.remaining,
        resets_at=None if state is None else rfc3339(int(state.resets_at) * 1_000_000),
        note=usage.note,
    )


def nearly_used_up_out(one: NearlyUsedUp, now: int) -> NearlyUsedUpOut:
    return NearlyUsedUpOut(key=public_key(one.key, now), quota=quota_usage_out(one.usage))


def tenant_nearly_used_up_out(one: NearlyUsedUp) -> TenantNearlyUsedUpOut:
    environment = one.key.environment if Subject.ENVIRONMENT in one.usage.quota.by else None
    return TenantNearlyUsedUpOut(tenant=one.key.tenant or "", environment=environment, quota=quota_usage_out(one.usage))


def refusal_out(refusal: Refusal) -> RefusalOut:
    return RefusalOut(
        at=rfc3339(refusal.at),
        request_id=refusal.request_id or None,
        status=refusal.status,
        reason=refusal.reason.value,
        cause=None if refusal.cause is None else refusal.cause.value,
        route=refusal.route,
        method=refusal.method,
        path=refusal.path,
        address=refusal.address,
        key_id=refusal.key_id or None,
        prefix=refusal.prefix or None,
        config=refusal.config or None,
        observed=refusal.observed,
    )


def past_decision_out(one: PastRefusal) -> PastDecisionOut:
    decision = one.decision
    return PastDecisionOut(
        refusal=refusal_out(one.refusal),
        then=_lines_out(decision.then),
        now=_lines_out(decision.now),
        otherwise=decision.otherwise,
        verdict=decision.verdict,
    )


def _lines_out(lines: Iterable[Line]) -> tuple[LineOut, ...]:
    return tuple(LineOut(label=line.label, text=line.text) for line in lines)


def health_out(health: Health, config: Config, observing: Sequence[str]) -> HealthOut:
    failed = health.upstream_failed
    return HealthOut(
        ready=health.ready,
        problems=tuple(health.problems),
        remarks=tuple(health.remarks),
        config_sha256=config.sha256,
        config_since=rfc3339(int(health.config_since * 1_000_000)),
        upstream_failed=None if failed is None else refusal_out(failed),
        observing=tuple(observing),
    )
