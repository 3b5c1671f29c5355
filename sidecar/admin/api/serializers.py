"""From the values of the inner rooms to what the API gives."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from sidecar.admin.api.schemas import (
    AuditOut,
    ExplanationOut,
    LineOut,
    PlanOut,
    QuotaOut,
    QuotaStateOut,
    RouteOut,
    ScopeOut,
)
from sidecar.admin.auth import Admin
from sidecar.config.settings import Config
from sidecar.core.model import Allow, Deny, Quota, QuotaState, Route
from sidecar.core.units import rfc3339
from sidecar.gate.explain import Explanation
from sidecar.keys.ports import AuditRow

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
    return {name: _told(name, value) for name, value in state.items()}


def _told(name: str, value: Any) -> Any:
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
        all_scopes=tuple(sorted(policy.all_scopes)),
        tenant_param=policy.tenant_param,
        environment_param=policy.environment_param,
        environments=tuple(sorted(policy.environments)),
        quotas={charge.quota.name: charge.cost for charge in policy.charges},
        pass_through=policy.pass_through,
        answered=policy.respond is not None,
    )


def explanation_out(explanation: Explanation) -> ExplanationOut:
    decision = explanation.decision
    refused = decision if isinstance(decision, Deny) else None
    key = decision.principal.key if decision.principal else refused.key if refused else None
    return ExplanationOut(
        decision="allow" if isinstance(decision, Allow) else "deny",
        reason=refused.reason.value if refused else None,
        status=explanation.status,
        route=decision.route.name if decision.route else None,
        where=decision.route.where if decision.route else None,
        key_id=key.id if key else None,
        quotas=tuple(map(_quota_state_told, decision.quota_states)),
        lines=tuple(LineOut(label=line.label, text=line.text) for line in explanation.lines),
    )


def _quota_state_told(state: QuotaState) -> QuotaStateOut:
    resets_at = rfc3339(int(state.resets_at) * 1_000_000)
    return QuotaStateOut(name=state.quota.name, limit=state.limit, remaining=state.remaining, resets_at=resets_at)
