"""Why the gate refuses a request, for the operator: what exactly is wrong, and what to do about it.

Clients get less detail. No sentence contains any part of a key.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from shlex import quote
from typing import Final

from sidecar.config.build.config import Config
from sidecar.core.apikey import ALPHABET, QUOTES, pasted
from sidecar.core.credentials import parameters
from sidecar.core.errors import Denied, Reason
from sidecar.core.model import EVERY, ApiKey, Deny, Policy, RequestHead, Route, Source
from sidecar.core.patterns import parse_pattern, parts_of
from sidecar.core.policy import DENIED, missing_in_words, takes_environment
from sidecar.core.routing import NEVER_ROUTED, Match, known_spelling
from sidecar.core.target import parse_target
from sidecar.core.units import counted, rfc3339
from sidecar.gate.compile import key_format, key_prefixes, route_table

_NEAREST: Final = 3
_MOST_CONSIDERED: Final = 5
"""Routes to show that match a path besides the one that decides; there are seldom more."""
_LIKE: Final = 0.5
"""How similar a segment of the path and one of a route must be to suspect a typo."""
_SCHEME: Final = re.compile(r"([A-Za-z]{1,20}):?\s")
_STAR: Final = "* is no path: the sidecar itself responds to `OPTIONS *` (204), and takes no other method with it"
_PLAIN: Final = {
    Reason.BAD_REQUEST: "the request does not follow RFC 9112",
    Reason.BAD_TARGET: "the path has a character or an encoding that no path may have: write others as %XX, in UTF-8",
    Reason.AMBIGUOUS_TARGET: "the path can be read in ways that lead to different routes: send its plain form",
    Reason.BAD_HEADER: "a header field is malformed, or the key stands where it would reach the service",
    Reason.TOO_MANY_FAILURES: "too many wrong keys came from this address: keys.failures of the configuration",
    Reason.STORE_UNAVAILABLE: "the store cannot be read now: see sidecar doctor",
    Reason.LIMITER_UNAVAILABLE: "quotas cannot be counted now: see sidecar doctor",
}


def causes(config: Config, head: RequestHead, presented: str | None, deny: Deny) -> Iterator[str]:
    """Yield the causes of the refusal. presented: the text sent as the key; None if no key was needed."""
    match deny.reason:
        case Reason.MISSING_CREDENTIAL:
            yield _missing(config, presented)
            if deny.route is None:
                yield from _no_route(config, head)
        case Reason.INVALID_KEY | Reason.MALFORMED_CREDENTIAL:
            yield _in_query(config, head, presented) or key_fault(config, presented or "")
        case Reason.EXPIRED_KEY | Reason.DISABLED_KEY | Reason.REVOKED_KEY | Reason.RETIRED_KEY:
            yield _ended(deny)
        case Reason.NO_ROUTE if deny.route is not None and deny.route.policy.deny:
            yield f"the route denies every request (deny: true): {deny.route.where}"
        case Reason.NO_ROUTE:
            yield from _no_route(config, head)
        case Reason.BAD_TARGET if not head.target.startswith("/"):
            yield "a path begins with /"
        case Reason.METHOD_NOT_ALLOWED:
            yield _method(head.method) if head.target != "*" else _STAR
        case Reason.KEY_NOT_ACCEPTED:
            yield _no_keys_here(deny.route)
        case Reason.INSUFFICIENT_SCOPE | Reason.WRONG_TENANT | Reason.WRONG_ENVIRONMENT:
            yield _not_granted(config, deny)
        case Reason.QUOTA_EXCEEDED if deny.refused_quota is not None:
            refused = deny.refused_quota
            yield f"the quota {refused.quota.name} of {refused.limit} is used up until {_time(refused.resets_at)}"
        case reason:
            yield _PLAIN.get(reason, "see the troubleshooting page of the guide")


def _time(seconds: float) -> str:
    return rfc3339(int(seconds) * 1_000_000)


# The key.


def _missing(config: Config, presented: str | None) -> str:
    places = " or ".join(map(_place, config.keys.sources))
    return f"{'no key was sent' if presented is None else 'the key that was read is empty'}: it goes in {places}"


def _in_query(config: Config, head: RequestHead, presented: str | None) -> str:
    """What is wrong with a key in the query; empty where none stands there that is to blame."""
    prefixes = tuple(filter(None, key_prefixes(config)))
    found = [pair for pair in parameters(head.target.partition("?")[2]) if pair[1].startswith(prefixes)]
    if not found:
        return ""
    taken = {source.name for source in config.keys.sources if source.kind == "query"}
    if not taken:
        return "a key stands in the query, where keys.from takes none: send it in a header"
    if presented is not None:
        return "two keys were sent, one of them in the query: send one"
    return key_fault(config, found[0][1]) if found[0][0] in taken else ""


def _place(source: Source) -> str:
    match source.kind:
        case "header" if source.part is not None:
            user = "KEY:" if source.part == "username" else ":KEY"
            return f"`{source.name}: {source.scheme}` as the {source.part} (curl -u {user})"
        case "header" if source.in_list:
            return f"`{source.name}`, as one of the protocols"
        case "header":
            return f"`{source.name}: {source.scheme + ' ' if source.scheme else ''}KEY`"
        case "cookie":
            return f"the cookie {source.name}"
        case "query":
            return f"the query, as {source.name}=KEY"


def key_fault(config: Config, text: str) -> str:
    """Say what is wrong with a text that is not a key of this sidecar."""
    if pasted(text) != text:
        return _wrapping(text)
    prefixes = config.keys.environments
    own = max((prefix for prefix in prefixes.values() if text.startswith(prefix)), key=len, default=None)
    if own is not None:
        return _form_fault(config, text, own)
    if any(text.startswith(keys.prefix) for keys in config.keys.imported):
        return "it begins like an imported key, but the store has no such key: mistyped, cut, or never imported"
    foreign = (keys.prefix for keys in config.keys.imported if keys.prefix)
    expected = ", ".join(sorted({*prefixes.values(), *foreign}))
    if any(text.lower().startswith(prefix.lower()) for prefix in prefixes.values()):
        return f"upper and lower case count: keys begin with {expected}"
    form = key_format(config)
    for before in {text.find(prefix) for prefix in prefixes.values() if prefix in text}:
        if form.check(text[before:], prefixes.values()):
            return f"something stands before the key ({counted(before, 'character')}): send the key alone"
    return f"it begins with none of the prefixes of this configuration: {expected}"


def _wrapping(text: str) -> str:
    scheme = _SCHEME.match(text)
    if scheme is not None:
        return f"it begins with {scheme[1]!r}, which stands before the key already: send the key alone"
    if text[0] in QUOTES or text[-1] in QUOTES:
        return "quotes stand around it: send the key without them"
    return "it has spaces or other characters around it: send the key alone"


def _form_fault(config: Config, text: str, prefix: str) -> str:
    form = key_format(config)
    tail, length = text[len(prefix) :], len(prefix) + form.length
    strange = next((place for place, char in enumerate(tail, len(prefix) + 1) if char not in ALPHABET), None)
    if strange is not None:
        return f"its character {strange} never occurs in keys: they have letters and digits after {prefix}"
    if len(text) != length:
        what = "it is cut" if len(text) < length else "something was added to it"
        return f"{what}: it has {len(text)} characters, and keys that begin with {prefix} have {length}"
    if form.check(text, [prefix]) is None:
        return "its checksum does not fit: mistyped, or cut and put together again"
    return "it is well-formed, but the store has no such key: is it of another installation, or is its pepper missing?"


def _ended(deny: Deny) -> str:
    key = deny.key
    if key is None:
        return "the key is no longer valid"
    match deny.reason:
        case Reason.EXPIRED_KEY:
            return f"the key expired {rfc3339(key.expires_at)}: sidecar keys change {key.id} --expires 90d"
        case Reason.RETIRED_KEY:
            return f"the key was replaced, and retired {rfc3339(key.retires_at)}: use the one that was issued for it"
        case Reason.DISABLED_KEY:
            return f"the key was disabled {rfc3339(key.disabled_at)}: sidecar keys enable {key.id}"
        case _:
            return f"the key was revoked {rfc3339(key.revoked_at)}, which is final: issue another one"


def _no_keys_here(route: Route | None) -> str:
    what = "what no route names" if route is None else f"the route {route.name} ({route.where})"
    return f"{what} takes no keys, only credentials of keys.pass_through (pass_through: only): send one of those alone"


def _not_granted(config: Config, deny: Deny) -> str:
    if deny.principal is None or deny.route is None:
        return "the key is not valid for this resource"
    key, policy = deny.principal.key, deny.route.policy
    environment = key.environment or "none"
    match deny.reason:
        case Reason.WRONG_TENANT:
            return f"the path names another tenant than that of the key, {key.tenant or 'which has none'}"
        case Reason.WRONG_ENVIRONMENT if not takes_environment(policy, key):
            wanted = ", ".join(sorted(policy.environments))
            return f"the key is of environment {environment}, and the route takes keys of {wanted} only"
        case Reason.WRONG_ENVIRONMENT:
            return f"the path names another environment than that of the key, {environment}"
        case _:
            return _lacking(key, policy, deny.principal.scopes, config.keys.scopes_per_key)


def _lacking(key: ApiKey, policy: Policy, held: frozenset[str], number: int | None) -> str:
    """Of scopes that any one of is enough, the command names the first. number: of the scopes that each key has."""
    lacking = sorted(policy.all_scopes - held)
    either = sorted(policy.any_scopes) if policy.any_scopes.isdisjoint(held) else []
    what = missing_in_words(policy, held)
    wanted = dict.fromkeys([*lacking, *either[:1]])
    spare = [scope for scope in key.scopes if scope not in wanted]
    scopes = [*(spare if number is None else spare[: max(0, number - len(wanted))]), *wanted]
    if number is not None and len(scopes) != number:
        return f"the key lacks {what}, and each key has exactly {counted(number, 'scope')}: issue another one"
    options = " ".join(f"--scope {quote(scope)}" for scope in scopes)
    return f"the key lacks {what}: sidecar keys change {key.id} {options}"


# The route.


def _method(method: str) -> str:
    if method in NEVER_ROUTED:
        return f"{method} is never let through"
    spelling = known_spelling(method)
    if spelling is not None and spelling != method:
        return f"the case of a method counts: write {spelling}"
    return "no route names this method, and it is not a registered one"


def _no_route(config: Config, head: RequestHead) -> Iterator[str]:
    try:
        path = parse_target(head.target, "localhost").path
    except Denied:
        return
    methods = route_table(config).methods([path])
    if methods:
        yield f"routes for this path take {', '.join(methods)}, not {head.method}"
    else:
        yield "no route names this path"
    fitting = [route for route in config.routes if not methods or route.methods & {head.method, EVERY}]
    for route, why in _nearest(fitting, path, config.case_sensitive):
        yield f"{route.name} ({route.where}): {why}"


def considered(config: Config, method: str, target: str) -> Iterator[tuple[Route, str]]:
    """Yield the routes closest to a request's path, the one that decides first, each with its outcome."""
    try:
        path = parse_target(target, "localhost").path
    except Denied:
        return
    chosen = route_table(config).match(method, path)
    if chosen is not None:
        yield chosen.route, "matches"
    others = [route for route in config.routes if chosen is None or route is not chosen.route]
    matching = [(route, why) for route in others if (why := _matching(config, route, method, path, chosen))]
    yield from matching[:_MOST_CONSIDERED]
    far = [route for route in others if all(route is not one for one, _ in matching)]
    yield from _nearest(far, path, config.case_sensitive)


def _matching(config: Config, route: Route, method: str, path: str, chosen: Match | None) -> str:
    """Say why another route than `route` decides, if its pattern matches the path; empty if it does not."""
    alone = route_table(replace(config, routes=(route,), unmatched=replace(config.unmatched, policy=DENIED)))
    if chosen is not None and alone.match(method, path) is not None:
        return f"matches, too, but {chosen.route.name} is more specific"
    if taken := [one for one in sorted(route.methods) if alone.match(one, path) is not None]:
        return f"its path matches, but it takes {', '.join(taken)}, not {method}"
    return ""


def _nearest(routes: Iterable[Route], path: str, case_sensitive: bool) -> Sequence[tuple[Route, str]]:
    """Return the closest routes, and what does not match."""
    segments = path[1:].split("/")
    rated = []
    for place, route in enumerate(routes):
        matched, why = _compared(route, segments, case_sensitive)
        if matched > 0:
            rated.append((-matched, place, route, why))
    return [(route, why) for _, _, route, why in sorted(rated, key=lambda one: one[:2])[:_NEAREST]]


def _compared(route: Route, segments: Sequence[str], case_sensitive: bool) -> tuple[float, str]:
    """Return how many segments match before the first that does not, and why that one does not."""
    pattern = parse_pattern(route.pattern)
    for place, wanted in enumerate(pattern.segments):
        if place == len(segments):
            return place, f"the path ends before {wanted or 'its trailing /'!r}"
        found = segments[place]
        if (found if case_sensitive else found.lower()) == (wanted if case_sensitive else wanted.lower()):
            continue
        if _is_param(wanted) and found:
            continue
        likeness = SequenceMatcher(None, found.lower(), wanted.lower()).ratio()
        close = likeness if likeness >= _LIKE and not _is_param(wanted) else 0.0
        return place + close, f"{wanted!r} is expected in place {place + 1} of the path"
    more = "/".join(segments[len(pattern.segments) :])
    return len(
        pattern.segments
    ), "the path has one / too many at its end" if not more else "the path goes on after it ends"


def _is_param(segment: str) -> bool:
    return parts_of(segment) is not None
