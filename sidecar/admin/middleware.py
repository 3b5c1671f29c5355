"""The middlewares of the admin listener. They check, in this order: Host, credential, content type, origin."""

import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from traceback import extract_tb
from typing import Any, Final

from aiohttp import hdrs, web

from sidecar.admin.auth import Admin, Tokens, TooManyFailures, WrongToken
from sidecar.admin.problems import Problem, forbidden, problem_response, store_unavailable, unauthorized
from sidecar.core.client_address import TrustedProxies
from sidecar.keys.ports import StoreUnavailable

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Middleware = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]

ADMIN: Final = web.RequestKey("admin", Admin)
JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"

_log = logging.getLogger(__name__)
_UNROUTED: Final = {
    404: ("not_found", "no such path; /api/docs lists the operations"),
    405: ("method_not_allowed", "this path does not support the method; see Allow"),
}
_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f]*:[0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{0,5})?")
_SAFE = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS})


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginPolicy:
    """How people sign in with a browser, which the web pages add to the API.

    open: method and path of the requests that need no credential (signing in). session: the digest of the admin token
    that started the request's session, or None without a session. problem_page: the response to a browser instead of
    problem details; it keeps the status, which is never a success.
    """

    open: frozenset[tuple[str, str]] = frozenset()
    session: Callable[[web.Request], bytes | None] = lambda _: None
    problem_page: Callable[[web.Request, Problem], Awaitable[web.StreamResponse]] | None = None


LOGIN: Final = web.AppKey("login", LoginPolicy)
PROXIES: Final = web.AppKey[Callable[[], TrustedProxies]]("proxies")
"""Peers whose forwarding header is trusted, in the current configuration."""


def client_address(request: web.Request) -> str:
    """The client's address as given by a trusted proxy, or else the peer's. Empty on a Unix socket."""
    proxies = request.app[PROXIES]()
    values = [value.encode("utf-8", "surrogateescape") for value in request.headers.getall(proxies.header.decode(), [])]
    return proxies.client_address(request.remote or "", {proxies.header: values})


def is_api(request: web.Request) -> bool:
    return request.path == "/api" or request.path.startswith("/api/")


def middlewares(tokens: Tokens, hosts: Callable[[], Sequence[str]]) -> Sequence[Any]:
    """The middlewares, outermost first. hosts: allowed host names besides localhost and the bound address."""
    return [
        web.middleware(one)
        for one in (_problems_to_responses, _host_check(hosts), _credential_check(tokens), _content_type, _same_origin)
    ]


async def _problems_to_responses(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Problem as problem:
        return await _response_to(request, problem)
    except web.HTTPRequestEntityTooLarge:
        return await _response_to(request, Problem(413, "body_too_large", "the body is larger than 1 MiB"))
    except web.HTTPException as other:
        if other.status < 400:
            raise
        allow = {str(hdrs.ALLOW): other.headers[hdrs.ALLOW]} if hdrs.ALLOW in other.headers else None
        code, detail = _UNROUTED.get(other.status, ("refused", other.reason))
        return await _response_to(request, Problem(other.status, code, detail, headers=allow))
    except StoreUnavailable as error:
        return await _response_to(request, store_unavailable(error))
    except Exception as error:
        # A bug only ends this request. The exception's message may contain a secret, so it is not logged.
        _log.error("an admin request failed: %s in %s", type(error).__name__, _place(error))
        return await _response_to(request, Problem(500, "internal", "internal error; the log has the details"))


def _place(error: BaseException) -> str:
    """The innermost frame of this package."""
    frames = [frame for frame in extract_tb(error.__traceback__) if "sidecar" in frame.filename]
    return f"{frames[-1].name}:{frames[-1].lineno}" if frames else "?"


async def _response_to(request: web.Request, problem: Problem) -> web.StreamResponse:
    page = request.app.get(LOGIN, LoginPolicy()).problem_page
    if page is None or is_api(request) or "text/html" not in request.headers.get(hdrs.ACCEPT, ""):
        return problem_response(problem)
    return await page(request, problem)


def _host_check(hosts: Callable[[], Sequence[str]]) -> Middleware:
    """Prevents DNS rebinding: an attacker may point a name of their own at this address."""

    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        fields = request.headers.getall(hdrs.HOST, [])
        name = _host_name(fields[0]) if len(fields) == 1 else None
        # aiohttp takes the host of an absolute target as the request's host.
        named_twice = len(fields) == 1 and request.host not in (fields[0], name)
        if name is None or named_twice or name not in {"localhost", *_bound(request), *hosts()}:
            raise Problem(421, "foreign_host", "the admin listener has no such host name; `admin.hosts` adds names")
        return await handler(request)

    return check


def _host_name(host: str) -> str | None:
    """The name or address in a Host header, in lower case, without port and brackets; None if it is malformed."""
    found = _HOST.fullmatch(host)
    return (found[1] or found[2]).lower() if found else None


def _bound(request: web.Request) -> tuple[str, ...]:
    """The address that the client connected to."""
    name = request.transport.get_extra_info("sockname") if request.transport else None
    if not isinstance(name, tuple):
        return ()
    address = ip_address(name[0].partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return (str(mapped or address),)


def _credential_check(tokens: Tokens) -> Middleware:
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        login = request.app.get(LOGIN, LoginPolicy())
        # The raw path: other spellings of an open path have no route.
        if (request.method, request.rel_url.raw_path) not in login.open:
            request[ADMIN] = await _admin_of(request, login, tokens)
        return await handler(request)

    return check


async def _admin_of(request: web.Request, login: LoginPolicy, tokens: Tokens) -> Admin:
    """The administrator who sent the request. Raises Problem."""
    text = _presented(request)
    if text is not None:
        return await sign_in(tokens, text, request)
    digest = login.session(request)
    admin = tokens.by_digest(digest) if digest is not None else None
    if admin is None:
        raise unauthorized()
    return admin


async def sign_in(tokens: Tokens, text: str, request: web.Request) -> Admin:
    """Raises Problem: 401, or 429 after too many wrong tokens from the address."""
    try:
        return await tokens.check(text, client_address(request))
    except WrongToken:
        raise unauthorized("unknown admin token") from None
    except TooManyFailures as limited:
        retry = {str(hdrs.RETRY_AFTER): str(limited.retry_after_seconds)}
        detail = "too many wrong admin tokens came from this address"
        raise Problem(429, "too_many_failures", detail, headers=retry) from None


def _presented(request: web.Request) -> str | None:
    """The admin token in Authorization, or None without that header. Raises Problem for another scheme."""
    fields = request.headers.getall(hdrs.AUTHORIZATION, [])
    if not fields:
        return None
    scheme, _, text = fields[0].partition(" ")
    if len(fields) > 1 or scheme.lower() != "bearer":
        raise unauthorized()
    return text.strip()


async def _content_type(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A form of another site can send only a few content types without a CORS preflight; JSON is not among them."""
    wanted = JSON if is_api(request) else FORM
    if request.method not in _SAFE and request.body_exists and request.content_type != wanted:
        raise Problem(415, "wrong_content_type", f"the body must be {wanted}")
    return await handler(request)


async def _same_origin(request: web.Request, handler: Handler) -> web.StreamResponse:
    if is_foreign(request):
        raise forbidden("requests from other sites are not allowed")
    return await handler(request)


def is_foreign(request: web.Request) -> bool:
    """Whether another site made the browser send the request.

    A link from another site to a page is allowed: it changes nothing, and only the person sees the page.
    """
    origins = request.headers.getall(hdrs.ORIGIN, [])
    own = request.headers.get(hdrs.HOST, "").lower()
    if any(origin.partition("://")[2].lower() != own for origin in origins):
        return True
    site = request.headers.get("Sec-Fetch-Site")
    if site is None:
        # An old browser that does not send Sec-Fetch-Site must send Origin with a change that a cookie authorizes.
        return not origins and request.method not in _SAFE and hdrs.AUTHORIZATION not in request.headers
    if site in ("same-origin", "none"):
        return False
    followed = request.headers.get("Sec-Fetch-Mode") == "navigate" and request.method in _SAFE
    return not (followed and not is_api(request))
