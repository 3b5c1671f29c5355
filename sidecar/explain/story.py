"""A decision in words, for people."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sidecar.config.settings import Config
from sidecar.core.errors import Denied
from sidecar.core.model import EVERY, Allow, Decision, Deny, Principal, RequestHead, Route
from sidecar.core.policy import missing_scopes
from sidecar.core.target import parse_target, readings
from sidecar.core.units import rfc3339
from sidecar.gate.gate import Gate


class Line(NamedTuple):
    """One step of the story. A line without a label belongs to the one before."""

    label: str
    text: str


def told(config: Config, head: RequestHead, decision: Decision, gate: Gate) -> list[Line]:
    """The way from the target to the decision, a line each."""
    lines = [Line("request", f"{head.method} {head.target.partition('?')[0]}"), *_paths(head)]
    lines += _route(decision.route)
    lines += _key(config, decision)
    if decision.route is not None and decision.principal is not None:
        lines += _demands(decision.route, decision.principal)
    lines += _quotas(decision)
    if isinstance(decision, Allow):
        lines += _sent(decision)
        lines.append(Line("decision", "allow" if decision.principal else "allow, without a key of ours"))
    else:
        lines.append(Line("decision", f"deny: {decision.reason}, answered with {gate.answer(decision).status}"))
    return lines


def _paths(head: RequestHead) -> Iterator[Line]:
    try:
        paths = readings(parse_target(head.target, "localhost").path)
    except Denied as denied:
        yield Line("path", f"refused: {denied.reason}")
        return
    yield Line("path", paths[0])
    for other in paths[1:]:
        yield Line("or read as", other)


def _route(route: Route | None) -> Iterator[Line]:
    if route is None:
        yield Line("route", "none: what no route names is denied")
        return
    yield Line("route", f"{route.name}  ({route.where})")
    policy = route.policy
    if policy.public:
        yield Line("", "public: no key is needed")
    if policy.respond is not None:
        yield Line("", "answered by the sidecar itself")


def _key(config: Config, decision: Decision) -> Iterator[Line]:
    key = decision.principal.key if decision.principal else decision.key if isinstance(decision, Deny) else None
    if key is None:
        yield Line("key", "none")
        return
    yield Line("key", f"{key.id}  {key.prefix}…  {key.name!r}  {key.status}")
    yield Line("", f"tenant {key.tenant or '-'}, environment {key.environment or '-'}, plan {key.plan or '-'}")
    if key.expires_at is not None:
        yield Line("", f"expires {rfc3339(key.expires_at)}")
    yield Line("scopes held", _joined(config.catalogue.expand(key.scopes)))


def _demands(route: Route, principal: Principal) -> Iterator[Line]:
    policy, key = route.policy, principal.key
    if policy.any_scopes:
        yield Line("scopes", f"any of: {_joined(policy.any_scopes)}")
    if policy.all_scopes:
        yield Line("scopes", f"all of: {_joined(policy.all_scopes)}")
    if missing := missing_scopes(policy, principal.scopes):
        yield Line("missing", _joined(missing))
    if policy.tenant_param:
        yield Line("tenant", f"{{{policy.tenant_param}}} must be {_bound(key.tenant)}")
    if policy.environment_param:
        yield Line("environment", f"{{{policy.environment_param}}} must be {_bound(key.environment)}")
    if policy.environments:
        yield Line(
            "environment", f"keys of {_joined(policy.environments)} only; this one is of {key.environment or '-'}"
        )


def _bound(value: str | None) -> str:
    if value == EVERY:
        return "anything: the key holds for every one"
    return value or "that of the key, which has none"


def _quotas(decision: Decision) -> Iterator[Line]:
    for state in decision.quota_states:
        left = f"{state.remaining} of {state.limit} left"
        yield Line("quota", f"{state.quota.name}: {left}, whole again at {rfc3339(int(state.resets_at) * 1_000_000)}")
    if isinstance(decision, Deny) and decision.refused_quota is not None:
        refused = decision.refused_quota
        yield Line("used up", f"{refused.quota.name}; try again in {refused.retry_after_seconds} s")


def _sent(allow: Allow) -> Iterator[Line]:
    if allow.route.policy.respond is not None:
        return
    yield Line("forwarded as", allow.target.partition("?")[0])
    for name, value in allow.headers:
        yield Line("header", f"{name.decode('latin-1')}: {value.decode('latin-1')}")


def _joined(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
