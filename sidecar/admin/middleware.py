"""What every request to the admin listener passes first, in this order: Host, credential, content type, origin."""

import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from traceback import extract_tb
from typing import Any, Final

from aiohttp import hdrs, web

from sidecar.admin.auth import Admin, Slowed, Tokens, WrongToken
from sidecar.admin.problems import Refusal, forbidden, problem, store_unavailable, unauthorized
from sidecar.keys.ports import StoreUnavailable

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Middleware = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]

ADMIN: Final = web.RequestKey("admin", Admin)
JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"

_log = logging.getLogger(__name__)
_UNROUTED: Final = {
    404: ("not_found", "there is nothing here; /api/docs shows what there is"),
    405: ("method_not_allowed", "this is not done with that method; see Allow"),
}
_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f]*:[0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{0,5})?")
_SAFE = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS})


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginPolicy:
    """How a person without a credential is let in: what the page adds to the API.

    open: method and path of what needs none (signing in). session: the digest of the admin token that the request's
    session was begun with, None without a session. refused: answers in place of a problem where a browser asks for a
    page; it keeps the status, which is never a success.
    """

    open: frozenset[tuple[str, str]] = frozenset()
    session: Callable[[web.Request], bytes | None] = lambda _: None
    refused: Callable[[web.Request, Refusal], Awaitable[web.StreamResponse]] | None = None


ENTRANCE: Final = web.AppKey("entrance", LoginPolicy)


def is_api(request: web.Request) -> bool:
    return request.path == "/api" or request.path.startswith("/api/")


def guards(tokens: Tokens, hosts: Callable[[], Sequence[str]]) -> Sequence[Any]:
    """The middlewares, outermost first. hosts: names that a request may be sent to, beside localhost and ours."""
    return [
        web.middleware(one)
        for one in (_answering, _host_check(hosts), _credential_check(tokens), _content_type, _same_origin)
    ]


async def _answering(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refusal as refusal:
        return await _refused(request, refusal)
    except web.HTTPRequestEntityTooLarge:
        return await _refused(request, Refusal(413, "body_too_large", "the body may have 1 MiB at most"))
    except web.HTTPException as other:
        if other.status < 400:
            raise
        allow = {str(hdrs.ALLOW): other.headers[hdrs.ALLOW]} if hdrs.ALLOW in other.headers else None
        code, detail = _UNROUTED.get(other.status, ("refused", other.reason))
        return await _refused(request, Refusal(other.status, code, detail, headers=allow))
    except StoreUnavailable:
        return await _refused(request, store_unavailable())
    except Exception as error:  # A mistake of ours ends this request only, and a message may hold what is secret.
        _log.error("an admin request failed: %s in %s", type(error).__name__, _place(error))
        return await _refused(request, Refusal(500, "internal", "something went wrong here; the log says what"))


def _place(error: BaseException) -> str:
    """The innermost line of ours."""
    frames = [frame for frame in extract_tb(error.__traceback__) if "sidecar" in frame.filename]
    return f"{frames[-1].name}:{frames[-1].lineno}" if frames else "?"


async def _refused(request: web.Request, refusal: Refusal) -> web.StreamResponse:
    page = request.app.get(ENTRANCE, LoginPolicy()).refused
    if page is None or is_api(request) or "text/html" not in request.headers.get(hdrs.ACCEPT, ""):
        return problem(refusal)
    return await page(request, refusal)


def _host_check(hosts: Callable[[], Sequence[str]]) -> Middleware:
    """Against DNS rebinding: a name that someone else may point at this address is not ours."""

    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.getall(hdrs.HOST, [])
        name = _host_name(given[0]) if len(given) == 1 else None
        # Where the target names a host as well, aiohttp takes that one for the request's.
        named_twice = len(given) == 1 and request.host not in (given[0], name)
        if name is None or named_twice or name not in {"localhost", *_bound(request), *hosts()}:
            raise Refusal(421, "foreign_host", "this is not the host asked for; `admin.hosts` names others it may have")
        return await handler(request)

    return check


def _host_name(host: str) -> str | None:
    """The name or address of a Host header, in lower case and without port and brackets; None for anything else."""
    found = _HOST.fullmatch(host)
    return (found[1] or found[2]).lower() if found else None


def _bound(request: web.Request) -> tuple[str, ...]:
    """The address that the connection was made to."""
    name = request.transport.get_extra_info("sockname") if request.transport else None
    if not isinstance(name, tuple):
        return ()
    address = ip_address(name[0].partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return (str(mapped or address),)


def _credential_check(tokens: Tokens) -> Middleware:
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        login = request.app.get(ENTRANCE, LoginPolicy())
        # As it was sent, for what is sent in another way leads nowhere.
        if (request.method, request.rel_url.raw_path) not in login.open:
            request[ADMIN] = await _admin_of(request, login, tokens)
        return await handler(request)

    return check


async def _admin_of(request: web.Request, login: LoginPolicy, tokens: Tokens) -> Admin:
    """Raises Refusal."""
    text = _presented(request)
    if text is not None:
        return await sign_in(tokens, text, request)
    digest = login.session(request)
    admin = tokens.by_digest(digest) if digest is not None else None
    if admin is None:
        raise unauthorized()
    return admin


async def sign_in(tokens: Tokens, text: str, request: web.Request) -> Admin:
    """Raises Refusal: 401, or 429 where too many wrong tokens came from the address."""
    try:
        return await tokens.check(text, request.remote or "")
    except WrongToken:
        raise unauthorized("this admin token is not known") from None
    except Slowed as slowed:
        retry = {str(hdrs.RETRY_AFTER): str(slowed.retry_after_seconds)}
        detail = "too many wrong admin tokens came from this address"
        raise Refusal(429, "too_many_failures", detail, headers=retry) from None


def _presented(request: web.Request) -> str | None:
    """The admin token in Authorization. None where there is none. Raises Refusal for another scheme."""
    fields = request.headers.getall(hdrs.AUTHORIZATION, [])
    if not fields:
        return None
    scheme, _, text = fields[0].partition(" ")
    if len(fields) > 1 or scheme.lower() != "bearer":
        raise unauthorized()
    return text.strip()


async def _content_type(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A form of another site can send a few types without asking; JSON is not among them."""
    wanted = JSON if is_api(request) else FORM
    if request.method not in _SAFE and request.body_exists and request.content_type != wanted:
        raise Refusal(415, "wrong_content_type", f"the body must be {wanted}")
    return await handler(request)


async def _same_origin(request: web.Request, handler: Handler) -> web.StreamResponse:
    if is_foreign(request):
        raise forbidden("requests of other sites are not taken")
    return await handler(request)


def is_foreign(request: web.Request) -> bool:
    """Whether a browser says that another site made it send this.

    Following a link to a page is no such thing: what changes nothing, and is shown to nobody but the person.
    """
    origins = request.headers.getall(hdrs.ORIGIN, [])
    own = request.headers.get(hdrs.HOST, "").lower()
    if any(origin.partition("://")[2].lower() != own for origin in origins):
        return True
    site = request.headers.get("Sec-Fetch-Site")
    if site is None:
        # A browser that is too old to say so must at least name the origin of what a cookie lets it change.
        return not origins and request.method not in _SAFE and hdrs.AUTHORIZATION not in request.headers
    if site in ("same-origin", "none"):
        return False
    followed = request.headers.get("Sec-Fetch-Mode") == "navigate" and request.method in _SAFE
    return not (followed and not is_api(request))
