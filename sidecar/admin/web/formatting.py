"""Times, numbers and names as people say them."""

import shlex
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Final

from sidecar.admin.web.view_models import Moment, Standing
from sidecar.config.build.config import Config
from sidecar.core.model import EVERY, ApiKey, KeyStatus, Quota, Route, Source
from sidecar.core.routing import is_param, parse_pattern
from sidecar.core.units import counted

# A curl line that a key opens a door with.


def command_for(config: Config, key: ApiKey, text: str, routes: Iterable[Route], *, clients: str) -> str:
    """The line; empty where no listener or no route is known. text: the plaintext. clients: URL of the listener."""
    route = min((route for route in routes if not route.policy.public), key=_rank, default=None)
    if route is None or not clients:
        return ""
    return " ".join(["curl", *_arguments(config.keys.sources[0], route, key, text, clients)])


def _rank(route: Route) -> tuple[bool, bool, int]:
    """Reading before writing, nothing to fill in before something, short before long."""
    return _method(route) != "GET", "{" in route.pattern, len(route.pattern)


def _method(route: Route) -> str:
    return "GET" if route.methods & {"GET", EVERY} else min(route.methods)


def _arguments(source: Source, route: Route, key: ApiKey, text: str, clients: str) -> Iterator[str]:
    yield "-i"
    if (method := _method(route)) != "GET":
        yield f"-X {method}"
    address = clients + _path(route, key)
    match source.kind:
        case "header":
            value = f"{source.scheme} {text}" if source.scheme else text
            yield f"-H {shlex.quote(f'{source.name}: {value}')}"
        case "cookie":
            yield f"-H {shlex.quote(f'Cookie: {source.name}={text}')}"
        case "query":
            address += f"?{source.name}={text}"
    yield shlex.quote(address)


def _path(route: Route, key: ApiKey) -> str:
    """A path that the route's pattern matches, and this key may ask for."""
    policy, filled = route.policy, []
    for segment in parse_pattern(route.pattern).segments:
        bound = {f"{{{policy.tenant_param}}}": key.tenant, f"{{{policy.environment_param}}}": key.environment}
        value = bound.get(segment, "1") if is_param(segment) else segment
        filled.append("1" if value in (None, EVERY) else str(value))
    return "/" + "/".join(filled)


MICROSECONDS: Final = 1_000_000
_UNITS: Final = (("year", 31_536_000), ("month", 2_592_000), ("day", 86_400), ("hour", 3_600), ("minute", 60))


def moment(at: int, now: int) -> Moment:
    """`at` and `now` in microseconds."""
    when = datetime.fromtimestamp(at // MICROSECONDS, UTC)
    exact = f"{when:%Y-%m-%d %H:%M:%S} UTC"
    return Moment(said=_distance(at, now), exact=exact, machine=f"{when:%Y-%m-%dT%H:%M:%SZ}")


def moment_or_none(at: int | None, now: int) -> Moment | None:
    return None if at is None else moment(at, now)


def _distance(at: int, now: int) -> str:
    seconds = abs(now - at) // MICROSECONDS
    if seconds < 60:
        return "just now" if at <= now else "in less than a minute"
    unit, size = next((unit, size) for unit, size in _UNITS if seconds >= size)
    said = counted(seconds // size, unit)
    return f"{said} ago" if at <= now else f"in {said}"


def sentence(text: str) -> str:
    """`Is missing.` of `is missing`."""
    return f"{text[:1].upper()}{text[1:]}."


def percent(part: float, whole: float) -> int:
    """From 0 to 100; never 0 for something, never 100 for less than the whole."""
    if part <= 0 or whole <= 0:
        return 0
    return 100 if part >= whole else min(99, max(1, round(100 * part / whole)))


def part_said(part: int, whole: int) -> str:
    """`12% of them`."""
    if not part:
        return "none of them"
    return f"{percent(part, whole)}% of them" if part * 100 >= whole else "under 1% of them"


def span_of(seconds: int) -> str:
    """`24 hours`, `7 days`."""
    unit, size = next(((u, s) for u, s in _UNITS[2:] if seconds % s == 0), ("second", 1))
    return counted(seconds // size, unit)


def quota_said(quota: Quota, limit: int) -> str:
    """`10,000 per hour`."""
    period = quota.period if isinstance(quota.period, str) else span_of(quota.period).removeprefix("1 ")
    return f"{limit:,} per {period}"


def effective_status(key: ApiKey, now: int) -> Standing:
    """How `key` stands at `now` (microseconds)."""
    if key.status is KeyStatus.REVOKED:
        return Standing(kind="revoked", said="Revoked")
    if key.status is KeyStatus.DISABLED:
        return Standing(kind="disabled", said="Disabled")
    if key.expires_at is not None and key.expires_at <= now:
        return Standing(kind="expired", said="Expired")
    if key.retires_at is not None:
        if key.retires_at <= now:
            return Standing(kind="retired", said="Retired")
        return Standing(kind="retiring", said="Retiring")
    return Standing(kind="active", said="Active")


def standing_note(key: ApiKey, now: int) -> str:
    """What the standing means, where that needs a word."""
    match effective_status(key, now).kind:
        case "revoked":
            return "Every request with this key is refused, for ever."
        case "disabled":
            return "Every request with this key is refused until it is enabled again."
        case "expired":
            return "This key is past its expiry. Change the expiry, or issue a new key."
        case "retired":
            return "Another key has taken the place of this one, and the overlap is over."
        case "retiring":
            return "Another key has taken the place of this one. Both work until this one retires."
    return ""
