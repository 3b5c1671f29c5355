"""Formats times, numbers, statuses and curl commands for people, and renders pages with their security headers."""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sidecar.admin.api.routes import DEPENDENCIES
from sidecar.admin.auth import Admin, Session
from sidecar.admin.middleware import ADMIN
from sidecar.admin.web.view_models import Frame, Moment, StatusBadge
from sidecar.config.build.config import Config
from sidecar.config.build.modes import in_one_line, observing
from sidecar.config.build.policy import NAME_OF_VARIABLE, VARIABLE
from sidecar.core.credentials import header_value
from sidecar.core.model import EVERY, ApiKey, KeyStatus, Quota, Route, Source
from sidecar.core.patterns import parse_pattern, parts_of
from sidecar.core.units import counted

# The curl command of a new key.


def command_for(config: Config, key: ApiKey, text: str, routes: Iterable[Route], *, clients: str) -> str:
    """Return a curl command that uses the key, or nothing if no listener or no route is known.

    text: the plaintext of the key. clients: URL of the data listener.
    """
    route = min((route for route in routes if not route.policy.public), key=_rank, default=None)
    if route is None or not clients:
        return ""
    return " ".join(["curl", *_arguments(config.keys.sources[0], route, key, text, clients)])


def _rank(route: Route) -> tuple[bool, bool, int]:
    """Sort key: GET first, then routes without parameters, then short ones."""
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
            yield f"-H {shlex.quote(f'{source.name}: {header_value(source, text)}')}"
        case "cookie":
            yield f"-H {shlex.quote(f'Cookie: {source.name}={text}')}"
        case "query":
            address += f"?{source.name}={text}"
    yield shlex.quote(address)


def _path(route: Route, key: ApiKey) -> str:
    """Return a path that matches the route's pattern and that this key may request."""
    policy, segments = route.policy, list[str]()
    for segment in parse_pattern(route.pattern).segments:
        parts = parts_of(segment)
        bound = {policy.tenant_param: key.tenant, policy.environment_param: key.environment}
        value = bound.get(parts.name, "1") if parts else None
        segments.append(parts.fill("1" if value in (None, EVERY) else str(value)) if parts else segment)
    return "/" + "/".join(segments)


# Times, numbers and statuses.

MICROSECONDS: Final = 1_000_000
_UNITS: Final = (("year", 31_536_000), ("month", 2_592_000), ("day", 86_400), ("hour", 3_600), ("minute", 60))


def moment(at: int, now: int) -> Moment:
    """Format a time. `at` and `now` are in microseconds."""
    when = datetime.fromtimestamp(at // MICROSECONDS, UTC)
    exact = f"{when:%Y-%m-%d %H:%M:%S} UTC"
    return Moment(relative=_distance(at, now), exact=exact, machine=f"{when:%Y-%m-%dT%H:%M:%SZ}")


def moment_or_none(at: int | None, now: int) -> Moment | None:
    return None if at is None else moment(at, now)


def _distance(at: int, now: int) -> str:
    seconds = abs(now - at) // MICROSECONDS
    if seconds < 60:
        return "just now" if at <= now else "in less than a minute"
    unit, size = next((unit, size) for unit, size in _UNITS if seconds >= size)
    distance = counted(seconds // size, unit)
    return f"{distance} ago" if at <= now else f"in {distance}"


def sentence(text: str) -> str:
    """Turn `is missing` into `Is missing.`."""
    return f"{text[:1].upper()}{text[1:]}."


def percent(part: float, whole: float) -> int:
    """Return 0 to 100: 0 only for nothing, 100 only for the whole."""
    if part <= 0 or whole <= 0:
        return 0
    return 100 if part >= whole else min(99, max(1, round(100 * part / whole)))


def share_text(part: int, whole: int) -> str:
    """Return a share such as `12% of requests`."""
    if not part:
        return "0% of requests"
    return f"{percent(part, whole)}% of requests" if part * 100 >= whole else "under 1% of requests"


def route_link(name: str) -> str:
    """Return the address of a route's page."""
    return f"/policy/{quote(name, safe='')}"


def span_of(seconds: int) -> str:
    """Format a duration such as `24 hours` or `7 days`."""
    unit, size = next(((u, s) for u, s in _UNITS[2:] if seconds % s == 0), ("second", 1))
    return counted(seconds // size, unit)


def limit_text(quota: Quota, limit: int) -> str:
    """Format a limit such as `10,000 per hour`."""
    period = quota.period if isinstance(quota.period, str) else span_of(quota.period).removeprefix("1 ")
    return f"{limit:,} per {period}"


def status_badge(key: ApiKey, now: int) -> StatusBadge:
    """Return the status of `key` at `now` (microseconds)."""
    if key.status is KeyStatus.REVOKED:
        return StatusBadge(kind="revoked", label="Revoked")
    if key.status is KeyStatus.DISABLED:
        return StatusBadge(kind="disabled", label="Disabled")
    if key.expires_at is not None and key.expires_at <= now:
        return StatusBadge(kind="expired", label="Expired")
    if key.retires_at is not None:
        if key.retires_at <= now:
            return StatusBadge(kind="retired", label="Retired")
        return StatusBadge(kind="retiring", label="Retiring")
    return StatusBadge(kind="active", label="Active")


def status_note(key: ApiKey, now: int) -> str:
    """Explain a status that needs an explanation."""
    match status_badge(key, now).kind:
        case "revoked":
            return "Every request with this key is refused permanently."
        case "disabled":
            return "Every request with this key is refused until it is enabled again."
        case "expired":
            return "This key is past its expiry. Change the expiry, or issue a new key."
        case "retired":
            return "Another key has replaced this one, and the overlap is over."
        case "retiring":
            return "Another key replaces this one. Both work until this one retires."
    return ""


HERE: Final = Path(__file__).parent
SESSION: Final = web.RequestKey("session", Session)

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
PAGE_HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": _POLICY,
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # With no-referrer, a browser sends `Origin: null` with the forms of this site.
    "Referrer-Policy": "same-origin",
}


@cache
def environment() -> Environment:
    """Return the one of this process: it keeps what is compiled."""
    loader = FileSystemLoader(HERE / "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


class Templates:
    """The templates of the package. Every value is escaped, and an undefined name is an error."""

    def bare(self, name: str, *, status: int = 200, **given: Any) -> web.Response:
        """Render a page without a frame, for users who are not signed in."""
        text = environment().get_template(name).render(given)
        return web.Response(text=text, status=status, content_type="text/html", headers=PAGE_HEADERS)

    def page(
        self, request: web.Request, name: str, *, here: str = "keys", status: int = 200, **given: Any
    ) -> web.Response:
        """Render a page for a signed-in user. here: its entry in the navigation."""
        return self.bare(name, status=status, frame=frame_of(request, here), **given)


TEMPLATES: Final = web.AppKey("templates", Templates)


def frame_of(request: web.Request, here: str) -> Frame:
    admin, session, file = request[ADMIN], request.get(SESSION), request.app[DEPENDENCIES].key_file
    return Frame(
        here=here,
        who="Environment token" if admin.name == NAME_OF_VARIABLE else admin.name,
        rights=_rights(admin),
        may_write=admin.may_write and file is None,
        note="" if file is None else file.note(admin),
        pending=_pending(request),
        observing=_observing(request, admin),
        proof=session.proof if session is not None else "",
    )


def _pending(request: web.Request) -> str:
    """Empty for an administrator of one tenant, who can do nothing about it."""
    parts, admin = request.app[DEPENDENCIES], request[ADMIN]
    refused = parts.running.reloads.pending if parts.running.reloads is not None else None
    if refused is None or admin.tenant is not None:
        return ""
    since = moment(int(refused.since * MICROSECONDS), parts.clock.micros()).relative
    errors = counted(refused.total, "error")
    return f"The configuration file was refused {since} ({errors}). The one before it stays in force."


def _observing(request: web.Request, admin: Admin) -> str:
    """What is not enforced, and since when; empty if every refusal is enforced. Without the log's backticks."""
    dependencies = request.app[DEPENDENCIES]
    found = observing(dependencies.config(), keys=admin.tenant is None)
    if not found:
        return ""
    since = moment(int(dependencies.running.config_since() * MICROSECONDS), dependencies.clock.micros())
    return f"{in_one_line([one.strip('`') for one in found])}, since {since.exact}"


def _rights(admin: Admin) -> str:
    rights = "Read and write" if admin.may_write else "Read only"
    if admin.name == NAME_OF_VARIABLE:
        return f"{VARIABLE}: {rights.lower()}"
    return rights if admin.tenant is None else f"{rights}, tenant {admin.tenant}"
