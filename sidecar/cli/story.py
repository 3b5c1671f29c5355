"""A decision in words, for people."""

from collections.abc import Iterable, Iterator

from sidecar.config.model import Config
from sidecar.core.answers import rfc3339
from sidecar.core.errors import Denied
from sidecar.core.model import EVERY, Allow, Decision, Deny, Principal, RequestHead, Route
from sidecar.core.policy import missing_scopes
from sidecar.core.target import parse_target, readings
from sidecar.gate import Gate

_WIDTH = 14


def told(config: Config, head: RequestHead, decision: Decision, gate: Gate) -> list[str]:
    """The way from the target to the decision, a line each."""
    lines = [_line("request", f"{head.method} {head.target.partition('?')[0]}"), *_paths(head)]
    lines += _route(decision.route)
    lines += _key(config, decision)
    if decision.route is not None and decision.principal is not None:
        lines += _demands(decision.route, decision.principal)
    lines += _quotas(decision)
    if isinstance(decision, Allow):
        lines += _sent(decision)
        lines.append(_line("decision", "allow" if decision.principal else "allow, without a key of ours"))
    else:
        lines.append(_line("decision", f"deny: {decision.reason}, answered with {gate.answer(decision).status}"))
    return lines


def _line(label: str, text: str) -> str:
    return f"{label:<{_WIDTH}}{text}"


def _paths(head: RequestHead) -> Iterator[str]:
    try:
        paths = readings(parse_target(head.target, "localhost").path)
    except Denied as denied:
        yield _line("path", f"refused: {denied.reason}")
        return
    yield _line("path", paths[0])
    for other in paths[1:]:
        yield _line("  or read as", other)


def _route(route: Route | None) -> Iterator[str]:
    if route is None:
        yield _line("route", "none: what no route names is denied")
        return
    yield _line("route", f"{route.name}  ({route.where})")
    policy = route.policy
    if policy.public:
        yield _line("", "public: no key is needed")
    if policy.respond is not None:
        yield _line("", "answered by the sidecar itself")


def _key(config: Config, decision: Decision) -> Iterator[str]:
    key = decision.principal.key if decision.principal else decision.key if isinstance(decision, Deny) else None
    if key is None:
        yield _line("key", "none")
        return
    yield _line("key", f"{key.id}  {key.prefix}…  {key.name!r}  {key.status}")
    yield _line("", f"tenant {key.tenant or '-'}, environment {key.environment or '-'}, plan {key.plan or '-'}")
    if key.expires_at is not None:
        yield _line("", f"expires {rfc3339(key.expires_at / 1_000_000)}")
    yield _line("  scopes held", _joined(config.catalogue.expand(key.scopes)))


def _demands(route: Route, principal: Principal) -> Iterator[str]:
    policy, key = route.policy, principal.key
    if policy.any_scopes:
        yield _line("scopes", f"any of: {_joined(policy.any_scopes)}")
    if policy.all_scopes:
        yield _line("scopes", f"all of: {_joined(policy.all_scopes)}")
    if missing := missing_scopes(policy, principal.scopes):
        yield _line("  missing", _joined(missing))
    if policy.tenant_param:
        yield _line("tenant", f"{{{policy.tenant_param}}} must be {_bound(key.tenant)}")
    if policy.environment_param:
        yield _line("environment", f"{{{policy.environment_param}}} must be {_bound(key.environment)}")
    if policy.environments:
        yield _line(
            "environment", f"keys of {_joined(policy.environments)} only; this one is of {key.environment or '-'}"
        )


def _bound(value: str | None) -> str:
    if value == EVERY:
        return "anything: the key holds for every one"
    return value or "that of the key, which has none"


def _quotas(decision: Decision) -> Iterator[str]:
    for state in decision.quota_states:
        left = f"{state.remaining} of {state.limit} left"
        yield _line("quota", f"{state.quota.name}: {left}, whole again at {rfc3339(int(state.resets_at))}")
    if isinstance(decision, Deny) and decision.refused_quota is not None:
        refused = decision.refused_quota
        yield _line("  used up", f"{refused.quota.name}; try again in {refused.retry_after_seconds} s")


def _sent(allow: Allow) -> Iterator[str]:
    if allow.route.policy.respond is not None:
        return
    yield _line("forwarded as", allow.target.partition("?")[0])
    for name, value in allow.headers:
        yield _line("  header", f"{name.decode('latin-1')}: {value.decode('latin-1')}")


def _joined(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
