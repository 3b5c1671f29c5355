"""Explains what the gate would decide about a request, without taking from any quota.

Also: which routes a key may use, without a request.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sidecar.config.build.config import Config
from sidecar.core.apikey import Secret
from sidecar.core.credentials import header_value
from sidecar.core.error_responses import ErrorResponses
from sidecar.core.errors import Denied
from sidecar.core.model import (
    EVERY,
    Allow,
    ApiKey,
    Bucket,
    Decision,
    Deny,
    Headers,
    Policy,
    Principal,
    RequestHead,
    Route,
    Taken,
)
from sidecar.core.policy import missing_scopes
from sidecar.core.routing import NO_ROUTE
from sidecar.core.target import KEPT_SLASH, parse_target, readings
from sidecar.core.units import rfc3339
from sidecar.gate.causes import causes
from sidecar.gate.compile import key_format, key_prefixes, responses
from sidecar.gate.gate import Gate
from sidecar.gate.reach import opens
from sidecar.keys.cache import MISS, CacheEntry, Found, KeyFinder, Miss
from sidecar.limiter.port import Limiter
from sidecar.telemetry.redaction import Redaction

# A decision in words.


class Line(NamedTuple):
    """One step of the explanation. A line without a label continues the one before."""

    label: str
    text: str


def steps(config: Config, head: RequestHead, decision: Decision, status: int | None) -> list[Line]:
    """The steps from the target to the decision, one line each."""
    lines = [
        Line("request", f"{head.method} {head.target.partition('?')[0]}"),
        *_paths(head, keep_slash=config.keep_slash),
    ]
    lines += _route(decision.route)
    lines += _key(config, decision)
    if decision.route is not None and decision.principal is not None:
        lines += _demands(decision.route, decision.principal)
    lines += _quotas(decision)
    if isinstance(decision, Allow):
        lines += _sent(config, decision)
        if decision.would_deny is not None:
            reason, because = decision.would_deny.reason, decision.would_deny.because
            lines.append(Line("decision", f"would deny: {reason}; observed because {because}"))
        else:
            lines.append(Line("decision", "allow" if decision.principal else "allow, without a key of the sidecar"))
    elif (head.method, head.target) == ("OPTIONS", "*"):
        lines.append(Line("decision", "none is needed: answered with 204"))
    else:
        lines.append(Line("decision", f"deny: {decision.reason}, answered with {status}"))
    return lines


def _paths(head: RequestHead, *, keep_slash: bool) -> Iterator[Line]:
    try:
        path = parse_target(head.target, "localhost").path
        others = readings(path, keep_slash=keep_slash)[1:]
    except Denied as denied:
        yield Line("path", f"refused: {denied.reason}")
        return
    yield Line("path", path)
    for other in others:
        yield Line("or read as", shown_reading(other, keep_slash=keep_slash))


def shown_reading(path: str, *, keep_slash: bool) -> str:
    """Return one reading of a path, fit to be shown."""
    return _printable(path.replace(KEPT_SLASH, "%2F") if keep_slash else path)


def _printable(path: str) -> str:
    """Write a control, or a byte that is not UTF-8, as `\\x00`: a terminal obeys the one and cannot show the other."""
    return "".join(char if char.isprintable() else _escaped(char) for char in path)


def _escaped(char: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))


def _route(route: Route | None) -> Iterator[Line]:
    if route is None:
        yield Line("route", "none: a request that matches no route is denied")
        return
    if route.name == NO_ROUTE and not route.policy.pass_through:
        yield Line("route", "none")
        return
    if route.name == NO_ROUTE:
        yield Line("route", f"none: `unmatched` lets only credentials pass that are not keys  ({route.where})")
        return
    yield Line("route", f"{route.name}  ({route.where})")
    policy = route.policy
    if policy.refuses_keys is not None:
        yield Line("", "pass_through: only: for credentials that are not keys, and never for a key")
    if policy.public:
        yield Line("", "public: no key is needed")
    if policy.deny:
        yield Line("", "denies every request")
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
    if key.retires_at is not None:
        yield Line("", f"was replaced, retires {rfc3339(key.retires_at)}")
    yield Line("scopes held", _joined(config.catalogue.expand(key.scopes)))


def _demands(route: Route, principal: Principal) -> Iterator[Line]:
    policy, key = route.policy, principal.key
    if policy.deny:
        return
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
        return "anything: the key is valid for every one"
    return value or "that of the key, which has none"


def _quotas(decision: Decision) -> Iterator[Line]:
    for state in decision.quota_states:
        left = f"{state.remaining} of {state.limit} left"
        yield Line("quota", f"{state.quota.name}: {left}, whole again at {rfc3339(int(state.resets_at) * 1_000_000)}")
    if (refusal := refusal_of(decision)) is not None and refusal.refused_quota is not None:
        refused = refusal.refused_quota
        then = "try again" if isinstance(decision, Deny) else "only observed; enforced, it would be free again"
        yield Line("used up", f"{refused.quota.name}; {then} in {refused.retry_after_seconds} s")


def _sent(config: Config, allow: Allow) -> Iterator[Line]:
    if allow.route.policy.respond is not None:
        return
    if (upstream := allow.route.policy.forward.upstream) is not None:
        yield Line("upstream", f"{upstream}, at {config.upstreams[upstream].address}")
    yield Line("forwarded as", allow.target.partition("?")[0])
    for name, value in allow.headers:
        yield Line("header", f"{name.decode('latin-1')}: {value.decode('latin-1')}")


def _joined(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


_HOST = (b"Host", b"localhost")
_HOLDING_TARGET = frozenset({"request", "path", "or read as", "forwarded as"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request to explain. With `key`, it carries a key: `secret`, or a made-up one of the right form."""

    method: str
    target: str
    """As on the wire: printable ASCII."""
    key: ApiKey | None = None
    secret: Secret | None = None
    """What the client presents; with `key` None, an unknown key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The decision, the status that the client would get (None: the upstream's), and the steps to it."""

    decision: Decision
    status: int | None
    lines: Sequence[Line]


async def explain(
    question: Question,
    config: Config,
    gate_of: Callable[[KeyFinder, Limiter], Gate],
    limiter: Limiter,
    *,
    randbelow: Callable[[int], int],
) -> Explanation:
    """limiter: only read, never taken from. randbelow: as `secrets.randbelow`."""
    text = _presented(question, config, randbelow)
    target = with_key_in_query(config, question.target, text) if text else question.target
    headers = (_HOST, *(presenting(config, text) if text else ()))
    gate = gate_of(_OneKey(question.key), _Peeking(limiter))
    head = RequestHead(method=question.method, target=target, headers=headers, peer="127.0.0.1")
    decision = await gate.decide(head)
    status = _status(responses(config), decision)
    hidden = _forms(config, text)
    lines = [_without(hidden, line) for line in steps(config, head, decision, status)]
    if (refusal := refusal_of(decision)) is not None:
        lines += _causes(question, config, refusal)
    return Explanation(decision=decision, status=status, lines=[_redacted(config, line) for line in lines])


def refusal_of(decision: Decision) -> Deny | None:
    """The denial, or what would be one without observe mode."""
    if isinstance(decision, Deny) or decision.would_deny is None:
        return decision if isinstance(decision, Deny) else None
    return Deny(
        reason=decision.would_deny.reason,
        route=None if decision.route.name == NO_ROUTE else decision.route,
        principal=decision.principal,
        request_id=decision.request_id,
        client_address=decision.client_address,
        refused_quota=decision.would_deny.quota,
    )


def _causes(question: Question, config: Config, deny: Deny) -> Iterator[Line]:
    """The causes, from the head of the question, which has no key in its query."""
    head = RequestHead(method=question.method, target=question.target, headers=(), peer="127.0.0.1")
    presented = None if question.secret is None else question.secret.text
    for place, cause in enumerate(causes(config, head, presented, deny)):
        yield Line("" if place else "cause", cause)


def redacted(config: Config, target: str) -> str:
    """A request-target without any key, fit to be shown."""
    return Redaction(key_prefixes(config)).text(target, longest=len(target))


def _redacted(config: Config, line: Line) -> Line:
    return line._replace(text=redacted(config, line.text)) if line.label in _HOLDING_TARGET else line


def _presented(question: Question, config: Config, randbelow: Callable[[int], int]) -> str:
    if question.secret is not None:
        return question.secret.text
    return "" if question.key is None else _made_up(config, question.key, randbelow)


def _forms(config: Config, secret: str) -> Sequence[str]:
    """The forms in which the key may be written in a header, the longest first."""
    halves = [header_value(source, secret) for source in config.keys.sources if source.part is not None]
    return (*halves, secret) if secret else ()


def _without(forms: Sequence[str], line: Line) -> Line:
    """Hide the key if the upstream gets it."""
    for form in forms:
        line = line._replace(text=line.text.replace(form, "(the key)"))
    return line


def _status(responses: ErrorResponses, decision: Decision) -> int | None:
    match decision:
        case Deny():
            return responses.status_of(decision.reason, decision.methods)
        case Allow() if (own := decision.route.policy.respond) is not None:
            return own.status
        case _:
            return None


def _made_up(config: Config, key: ApiKey, randbelow: Callable[[int], int]) -> str:
    form = key_format(config)
    prefixes = config.keys.environments
    environment = key.environment or EVERY
    return form.make(prefixes.get(environment) or next(iter(prefixes.values())), randbelow)


def presenting(config: Config, text: str) -> Headers:
    """The headers of a request with the key `text`, in the place where the configuration looks first."""
    source = config.keys.sources[0]
    match source.kind:
        case "header":
            return ((source.name.encode(), header_value(source, text).encode("utf-8", "surrogateescape")),)
        case "cookie":
            return ((b"Cookie", f"{source.name}={text}".encode("utf-8", "surrogateescape")),)
        case "query":
            return ()


def with_key_in_query(config: Config, target: str, text: str) -> str:
    """`target` with the key, if the configuration looks in the query first; otherwise unchanged."""
    source = config.keys.sources[0]
    if source.kind != "query":
        return target
    return f"{target}{'&' if '?' in target else '?'}{source.name}={text}"


class _OneKey:
    """A store with one key, which every plaintext finds."""

    def __init__(self, key: ApiKey | None) -> None:
        self._known = None if key is None else CacheEntry(key, epoch=0)

    def peek(self, secret_digest: bytes) -> Literal[Miss.MISS]:
        return MISS

    def uncount(self, found: Found) -> None:
        """Nothing is counted."""

    def remembers(self, secret_digest: bytes) -> bool:
        return True

    async def find(self, secret_digest: bytes, candidates: Callable[[], Mapping[bytes, str]]) -> CacheEntry | None:
        return self._known


class _Peeking:
    """A limiter that is only read, never taken from."""

    immediate = False

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter

    async def take(self, buckets: Sequence[Bucket], now: float) -> Taken:
        return await self._limiter.peek(buckets, now)

    async def peek(self, buckets: Sequence[Bucket], now: float) -> Taken:
        return await self._limiter.peek(buckets, now)

    def take_now(self, buckets: Sequence[Bucket], now: float) -> Taken | None:
        return self._limiter.peek_now(buckets, now)

    peek_now = take_now


# Which routes a key may use, and why, without a request.


def allowed_routes(config: Config, key: ApiKey) -> list[Route]:
    """Return the routes that `key` allows, in the configuration's order."""
    scopes = config.catalogue.expand(key.scopes)
    return [route for route in config.routes if opens(route.policy, key, scopes)]


def routes_for_scope(config: Config, scope: str) -> list[Route]:
    """Return the routes that require scopes, but only `scope` and the scopes it includes."""
    scopes = config.catalogue.expand([scope])
    return [
        route
        for route in config.routes
        if (route.policy.any_scopes or route.policy.all_scopes) and not missing_scopes(route.policy, scopes)
    ]


def requirements(policy: Policy) -> str:
    """Describe what a policy requires."""
    return ", ".join(_requirements(policy)) or "any valid key"


def charges(policy: Policy) -> str:
    """Return the names of the quotas that a policy counts, with the cost of a request unless it is one."""
    return ", ".join(
        charge.quota.name if charge.cost == 1 else f"{charge.quota.name} ({charge.cost} each)"
        for charge in policy.charges
    )


def _requirements(policy: Policy) -> Iterator[str]:
    if policy.deny:
        yield "nobody may pass"
        return
    if policy.public:
        yield "public"
    if policy.refuses_keys is not None:
        yield "no key: pass_through: only"
    if policy.any_scopes:
        yield _in_words(policy.any_scopes, " or ")
    if policy.all_scopes:
        yield _in_words(policy.all_scopes, " and ")
    if policy.tenant_param:
        yield f"{{{policy.tenant_param}}} is the key's tenant"
    if policy.environment_param:
        yield f"{{{policy.environment_param}}} is the key's environment"
    if policy.environments:
        yield f"keys of {_in_words(policy.environments, ' or ')}"


def _in_words(names: Iterable[str], conjunction: str) -> str:
    return conjunction.join(sorted(names))
