"""Shows a past decision as it was recorded, and how a configuration decides on the same request today.

A record has no headers, no query and no body, and of a key only its rights. Anything that does not follow from the
record is reported as unknown, never guessed.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sidecar.config.build.config import Config
from sidecar.config.build.modes import Modes, Part
from sidecar.core.error_responses import SHOWN_AS_INVALID_KEY
from sidecar.core.errors import Denied, Reason
from sidecar.core.model import Allow, Decision, Deny, Quota
from sidecar.core.quotas import limit_of
from sidecar.core.routing import NO_ROUTE
from sidecar.core.target import parse_target, readings
from sidecar.gate.causes import considered
from sidecar.gate.compile import route_table
from sidecar.gate.explain import Explanation, Line, Question, charges, explain, redacted, shown_reading
from sidecar.gate.gate import Gate
from sidecar.gate.observation import NO_VALID_KEY
from sidecar.keys.cache import KeyFinder
from sidecar.limiter.memory import MemoryLimiter
from sidecar.limiter.port import Limiter
from sidecar.rehearsal.diff.outcomes import Caller, Judge, parsed
from sidecar.rehearsal.recorded import RecordedRequest

_OF_THE_KEY: Final = SHOWN_AS_INVALID_KEY | {Reason.INVALID_KEY}
_OF_THE_UPSTREAM: Final = frozenset(
    {
        Reason.UPSTREAM_UNREACHABLE,
        Reason.UPSTREAM_INVALID,
        Reason.UPSTREAM_TIMEOUT,
        Reason.UPSTREAM_BUSY,
        Reason.BODY_TOO_LARGE,
        Reason.REQUEST_TIMEOUT,
        Reason.INTERNAL,
    }
)
"""Reasons that arise after the gate has let a request through, or outside of the gate."""
_OF_THE_MOMENT: Final = {
    Reason.STORE_UNAVAILABLE: "the store could not be read. See sidecar doctor",
    Reason.LIMITER_UNAVAILABLE: "quotas could not be counted. See sidecar doctor",
    Reason.TOO_MANY_FAILURES: "too many wrong keys had come from the address. keys.failures says how many may",
    Reason.LOOP_DETECTED: "the request had come this way before. An upstream leads back to the sidecar",
}
_OF_THE_HEAD: Final = frozenset(
    {Reason.BAD_REQUEST, Reason.BAD_HEADER, Reason.HEADERS_TOO_LARGE, Reason.UNSUPPORTED_CODING}
)
_UNDECODABLE: Final = re.compile(r"[\ud800-\udfff]|\\ud[89a-f][0-9a-f]{2}")
_OMITTED: Final = frozenset({"request", "key", "scopes held", "quota", "forwarded as", "header", "decision"})
"""Labels of an explanation that belong to the record, or to what is not recorded."""
_ROUTES: Final = "routes"


@dataclass(frozen=True, slots=True, kw_only=True)
class PastDecision:
    """then: the recorded decision. now: how the configuration decides today; empty if that is unknown."""

    then: Sequence[Line]
    now: Sequence[Line]
    otherwise: bool | None
    """Whether today's decision differs; None if that is unknown."""
    verdict: str
    """That, and why, in a sentence or two."""


async def past_decision(
    record: RecordedRequest,
    config: Config,
    gate_of: Callable[[KeyFinder, Limiter], Gate],
    *,
    missing: Collection[str] = (),
    quotas: Sequence[str] = (),
    is_cut: bool = False,
    randbelow: Callable[[int], int],
) -> PastDecision:
    """No quota is taken.

    missing: scopes that are known to have been missing. quotas: the known rest of quotas, in words. is_cut: whether the
    path was cut.
    """
    then = list(_recorded(record, config, missing, quotas))
    if record.would_deny in NO_VALID_KEY and not _unknown(record, config, is_cut=is_cut):
        wrong, verdict = _with_wrong_key(record, Reason(record.would_deny), config)
        return PastDecision(then=then, now=(), otherwise=wrong, verdict=verdict)
    reason = _why_unknown(record, config, is_cut=is_cut)
    if reason:
        return PastDecision(then=then, now=(), otherwise=None, verdict=reason)
    question = Question(method=record.method, target=record.path, key=record.key)
    found = await explain(question, config, gate_of, MemoryLimiter(), randbelow=randbelow)
    now = list(_judged(found, config, record))
    otherwise, verdict = _compared(record, found.decision, config)
    return PastDecision(then=then, now=now, otherwise=otherwise, verdict=verdict)


# The recorded decision.


def _recorded(
    record: RecordedRequest, config: Config, missing: Collection[str], quotas: Sequence[str]
) -> Iterator[Line]:
    yield Line("request", redacted(config, record.request_id) or "without an id")
    yield Line("time", record.time)
    asked = redacted(config, f"{record.method} {record.path_alone}")
    yield Line("asked", asked if record.method else "malformed: no request could be read")
    if hidden := record.hidden:
        yield Line("", f"its path is {hidden} in the record")
    yield Line("from", record.client_address or "not known")
    yield Line("answered", str(record.status) + (f": {record.reason}" if record.reason else ""))
    if record.cut:
        yield Line("", "the sidecar ended the connection before the response was whole")
    if record.would_deny:
        yield Line("would deny", f"{record.would_deny}: it went on all the same, because the refusal was only observed")
    if record.cause:
        yield Line("cause", record.cause)
    yield Line("route", _named_route(record) or "none: no route named it, or it was refused before")
    yield from _recorded_key(record)
    if missing:
        yield Line("missing", ", ".join(sorted(missing)))
    for place, quota in enumerate(quotas):
        yield Line("" if place else "quotas", quota)
    if record.quota:
        yield Line("used up", f"{record.quota} of {record.limit}; free again after {record.retry_after or '?'} s")
    yield Line("config", _config(record, config))


def _recorded_key(record: RecordedRequest) -> Iterator[Line]:
    if record.key_id is None:
        yield Line("key", "a credential that is not a key" if record.credential == "pass_through" else _no_key(record))
        return
    yield Line("key", f"{record.key_id}  {record.key_prefix or ''}…")
    values = (record.tenant, record.environment, record.plan)
    yield Line("", "tenant {}, environment {}, plan {}".format(*(value or "-" for value in values)))
    yield Line("scopes", f"granted then: {', '.join(record.scopes) or 'none, or not recorded'}")


def _no_key(record: RecordedRequest) -> str:
    return "one that nobody knows" if (record.would_deny or record.reason) in _OF_THE_KEY else "none"


def _config(record: RecordedRequest, config: Config) -> str:
    if record.config is None:
        return "not recorded: the line is of an older version"
    if config.sha256.startswith(record.config):
        return f"{record.config}, the same as today"
    return f"{record.config}; today's is {config.sha256[: len(record.config)]}"


# Today's decision.


def _why_unknown(record: RecordedRequest, config: Config, *, is_cut: bool) -> str:
    """Return why today's decision is unknown, as a sentence; empty if it is known."""
    if beyond := _beyond_configuration(record):
        return f"No configuration decides this: {beyond}."
    unknown = _unknown(record, config, is_cut=is_cut)
    return f"Today's decision cannot be told: {unknown}." if unknown else ""


def _beyond_configuration(record: RecordedRequest) -> str:
    if record.reason in _OF_THE_MOMENT:
        return _OF_THE_MOMENT[Reason(record.reason)]
    if record.reason not in _OF_THE_KEY:
        return ""
    if record.key_id is None:
        return "nobody knew the key. Given the key, sidecar explain says what is wrong with it"
    return f"the key was no longer valid. See sidecar keys show {record.key_id}"


def _unknown(record: RecordedRequest, config: Config, *, is_cut: bool) -> str:
    reason, path = record.reason, record.path
    if not record.method or reason in _OF_THE_HEAD:
        return "it was refused for its head, which is not recorded"
    if reason in _OF_THE_UPSTREAM and record.route is None:
        return "it failed before it was decided on"
    if is_cut or record.hidden:
        return f"its path is {record.hidden or 'cut'} in the record"
    if not path.startswith("/") or _UNDECODABLE.search(path):
        return "its target is no path, or has bytes that are not recorded as they came"
    if record.credential == "pass_through":
        return "it came with a credential that is not a key, and those are not recorded"
    if record.config is None and record.key_id is None and config.keys.pass_through:
        return "the line is of an older version, which does not say whether a credential came that is not a key"
    if record.method == "OPTIONS" and record.key_id is None and reason is None and record.would_deny is None:
        return "it may have been CORS preflights (CORS), whose headers are not recorded"
    return ""


def _judged(found: Explanation, config: Config, record: RecordedRequest) -> Iterator[Line]:
    decision = found.decision
    yield Line("decision", _decision(decision))
    label = ""
    for line in found.lines:
        label = line.label or label
        # For an unmatched request, the nearest routes follow below.
        if label not in _OMITTED and not (label == "cause" and not line.label):
            yield line
    if decision.route is not None and decision.route.policy.charges:
        yield Line("counts", charges(decision.route.policy))
    yield from _other_readings(config, record)
    for place, (route, why) in enumerate(considered(config, record.method, record.path)):
        yield Line("" if place else _ROUTES, f"{route.name} ({route.where}): {why}")


def _other_readings(config: Config, record: RecordedRequest) -> Iterator[Line]:
    """The route of each reading of an ambiguous path."""
    table, keep_slash = route_table(config), config.keep_slash
    try:
        every = readings(parse_target(record.path, "localhost").path, keep_slash=keep_slash)
    except Denied:
        return
    matches = [table.match(record.method, one) for one in every]
    if all(match == matches[0] for match in matches):
        return
    for place, (one, match) in enumerate(zip(every, matches, strict=True)):
        shown = redacted(config, shown_reading(one, keep_slash=keep_slash))
        yield Line("" if place else "readings", f"{shown} leads to {match.route.name if match else 'no route'}")


def _decision(decision: Decision) -> str:
    if isinstance(decision, Deny):
        return f"refuse: {decision.reason}"
    seen = decision.would_deny
    return "let through" if seen is None else f"would deny: {seen.reason}; goes on because {seen.because}"


def _compared(record: RecordedRequest, decision: Decision, config: Config) -> tuple[bool | None, str]:
    """Return whether the decision would be different, and a sentence that says so."""
    seen = decision.would_deny if isinstance(decision, Allow) else None
    now = decision.reason if isinstance(decision, Deny) else None if seen is None else seen.reason
    if Reason.QUOTA_EXCEEDED in (record.reason, record.would_deny):
        return _without_quota(record, decision, config)
    beside = record.reason in _OF_THE_UPSTREAM
    then = record.would_deny or (None if beside else record.reason)
    if (then, record.would_deny is not None) == (now, seen is not None):
        after = "; what went wrong came after it" if beside else ""
        by = "" if _route_of(decision) == _named_route(record) else _by_another(decision)
        on = "" if seen is None else f": it goes on, because {seen.because}"
        return False, f"Today's configuration decides the same{by}{after}{on}."
    outcome = "it lets it through" if now is None else f"it refuses it, {now}"
    if seen is not None:
        outcome = f"it lets it go on, though it would be refused for {now}, because {seen.because}"
    if record.config and config.sha256.startswith(record.config):
        return None, f"The configuration is the same, and {outcome}: a header or query that is not recorded decided."
    return True, f"Today's configuration decides otherwise: {outcome}."


def _by_another(decision: Decision) -> str:
    return f", by another route: {_route_of(decision) or 'none'}"


def _with_wrong_key(record: RecordedRequest, reason: Reason, config: Config) -> tuple[bool, str]:
    """The decision for a request that was forwarded without its wrong key and without an identity."""
    outcome = Judge(config).judge(record.method, parsed(record.path), Caller(None, wrong_key=reason))
    if outcome.reason is not None:
        return True, f"Today's configuration decides otherwise: it refuses it, {outcome.reason}."
    modes = Modes(config)
    route = next((each for each in config.routes if each.name == outcome.route), modes.unmatched)
    because = modes.because(route, None)
    return False, f"Today's configuration decides the same: it goes on without the wrong key, because {because}."


def _without_quota(record: RecordedRequest, decision: Decision, config: Config) -> tuple[bool | None, str]:
    """What is left of a quota is known only at the time; the configuration says if it is counted, and its limit."""
    if isinstance(decision, Deny):
        return True, f"Today's configuration refuses it before any quota is counted: {decision.reason}."
    quota = next((one.quota for one in decision.route.policy.charges if one.quota.name == record.quota), None)
    if record.quota is None:
        return (
            None,
            f"Today's configuration lets it through as far as quotas allow{_observed_quotas(decision, config)}.",
        )
    if quota is None:
        return True, f"Today's configuration decides otherwise: it does not count {record.quota} on this route."
    limit, then = limit_of(quota, record.key, config.plans), _then_and_now(record, decision, quota, config)
    if limit == record.limit:
        return None, f"Today's configuration has the same limit of {record.quota}: what is left of it decides{then}."
    words = f"has {'no limit' if limit is None else f'a limit of {limit}'} for this key"
    return None, f"Today {record.quota} {words}, in place of {record.limit}: what is left decides{then}."


def _then_and_now(record: RecordedRequest, allow: Allow, quota: Quota, config: Config) -> str:
    """The text about the quota's mode, if it is observed now, or was then."""
    if why := _observed(allow, [quota], config).get(quota.name):
        return f". It is only observed, because {why}"
    return ". It is enforced today, and was only observed then" if record.would_deny else ""


def _observed_quotas(allow: Allow, config: Config) -> str:
    quotas = [charge.quota for charge in allow.route.policy.charges]
    observed = _observed(allow, quotas, config)
    if observed:
        return f"; {'; '.join(f'{name} is only observed, because {why}' for name, why in observed.items())}"
    return "; which one refused is not recorded"


def _observed(allow: Allow, quotas: Iterable[Quota], config: Config) -> Mapping[str, str]:
    """Why each of these quotas is only observed, for those that are."""
    modes, key = Modes(config), None if allow.principal is None else allow.principal.key
    found = {one.name: modes.because(allow.route, key, [Part(f"quota {one.name}", one.mode)]) for one in quotas}
    return {name: why for name, why in found.items() if why}


def _named_route(record: RecordedRequest) -> str | None:
    return None if record.route == NO_ROUTE else record.route


def _route_of(decision: Decision) -> str | None:
    return None if decision.route is None or decision.route.name == NO_ROUTE else decision.route.name
