"""The web page of the admin listener, and signing in. The server renders every page; each works without scripts."""

from collections.abc import Mapping
from typing import Final

from aiohttp import hdrs, web

from sidecar.admin.api.routes import TOKENS
from sidecar.admin.auth import LONGEST_SECONDS, Sessions, digest_of
from sidecar.admin.middleware import LOGIN, Handler, LoginPolicy, sign_in
from sidecar.admin.problems import Problem, unauthorized
from sidecar.admin.web.audit import list_audit
from sidecar.admin.web.explain import explain, show_explain, show_refusals
from sidecar.admin.web.formatting import HERE, PAGE_HEADERS, SESSION, TEMPLATES, Templates, sentence
from sidecar.admin.web.issue import change, issue, show_change, show_issue
from sidecar.admin.web.key import VERBS, carry_out, confirm, show_key
from sidecar.admin.web.key_form import form_of
from sidecar.admin.web.keys import carry_out_many, confirm_many, export_keys, list_keys
from sidecar.admin.web.overview import show_overview
from sidecar.admin.web.policy import show_policy, show_route, try_policy, try_route
from sidecar.admin.web.stats import INSTRUMENTS, Instruments
from sidecar.core.units import Clock
from sidecar.core.upstream_request import ADMIN_COOKIES

_COOKIE, _SECURE_COOKIE = ADMIN_COOKIES
_REFRESH: Final = "X-Refresh"
"""The header of a page that refreshes itself, which does not count as use of its session."""
SESSIONS: Final = web.AppKey("sessions", Sessions)

_TITLES: Final[Mapping[int, str]] = {
    400: "That is not possible",
    403: "Not allowed",
    404: "Not found",
    405: "Not found",
    408: "Request timed out",
    409: "That is not possible",
    412: "Changed by someone else",
    413: "Too large",
    421: "Unknown host",
    429: "Too many wrong tokens",
    503: "The key store is not available",
}


def session_of(request: web.Request) -> bytes | None:
    """Return the digest of the admin token that started the cookie's session, or None without a session."""
    used = _REFRESH not in request.headers
    session = request.app[SESSIONS].find(_session_id(request), used=used)
    if session is None:
        return None
    request[SESSION] = session
    return session.digest


async def show_sign_in(request: web.Request) -> web.Response:
    """Show the form, which leads to the overview.

    The status is 401, as for every page without a session; browsers show its body all the same.
    """
    response = _form(request, 401, "/")
    response.headers.update(unauthorized().headers)
    return response


async def begin(request: web.Request) -> web.Response:
    """Start a session for a valid admin token. The token itself is not kept."""
    fields = await form_of(request)
    token, wanted = fields.get("token", "").strip(), _local(fields.get("next", "/"))
    try:
        await sign_in(request.app[TOKENS], token, request)
    except Problem as refusal:
        wrong = "This token is wrong." if refusal.status == 401 else _wait(refusal)
        response = _form(request, refusal.status, wanted, wrong)
        response.headers.update(refusal.headers)
        return response
    _forget(request)
    session_id = request.app[SESSIONS].begin(digest_of(token))
    response = web.Response(status=303, headers={hdrs.LOCATION: wanted})
    response.set_cookie(
        _SECURE_COOKIE if _is_https(request) else _COOKIE,
        session_id,
        max_age=LONGEST_SECONDS,
        path="/",
        httponly=True,
        samesite="Strict",
        secure=_is_https(request),
    )
    return response


async def end(request: web.Request) -> web.Response:
    """End the session. Its cookie is worthless from now on."""
    await form_of(request)
    _forget(request)
    response = web.Response(status=303, headers={hdrs.LOCATION: "/sign-in"})
    for name in ADMIN_COOKIES:
        secure = name == _SECURE_COOKIE
        response.del_cookie(name, path="/", httponly=True, samesite="Strict", secure=secure)
    return response


async def refused(request: web.Request, refusal: Problem) -> web.StreamResponse:
    """Show an error as a page instead of a problem document. Without a session that is the form to sign in."""
    if refusal.status == 401:
        reading = request.method in (hdrs.METH_GET, hdrs.METH_HEAD)
        response = _form(request, 401, _local(request.path_qs) if reading else "/", unchanged=not reading)
    else:
        title = _TITLES.get(refusal.status, "Something went wrong")
        problems = [flaw.detail for flaw in refusal.errors]
        detail = sentence(refusal.detail)
        response = request.app[TEMPLATES].bare(
            "refused.html", status=refusal.status, title=title, detail=detail, problems=problems
        )
    response.headers.update(refusal.headers)
    return response


def _form(request: web.Request, status: int, wanted: str, wrong: str = "", *, unchanged: bool = False) -> web.Response:
    """unchanged: the session had ended before a change was submitted, and the form says that nothing was changed."""
    values = {"next": wanted, "wrong": wrong, "unchanged": unchanged}
    return request.app[TEMPLATES].bare("sign_in.html", status=status, **values)


def _forget(request: web.Request) -> None:
    request.app[SESSIONS].end(_session_id(request))


def _wait(refusal: Problem) -> str:
    seconds = refusal.headers.get(hdrs.RETRY_AFTER, "60")
    return f"Too many wrong tokens from your address. Try again in {seconds} seconds."


def _local(address: str) -> str:
    """Return `address` if it is a path on this site, else `/`. A browser reads `//` and `/\\` as another host."""
    is_ours = address.startswith("/") and not address.startswith(("//", "/\\")) and address.isprintable()
    return address if is_ours and not address.startswith(("/sign-", "/static/")) else "/"


def _session_id(request: web.Request) -> str:
    """Return the id in the session's cookie. Over HTTPS another host or plain HTTP may have set the unsecured one."""
    unsecured = "" if _is_https(request) else request.cookies.get(_COOKIE, "")
    return request.cookies.get(_SECURE_COOKIE, unsecured)


def _is_https(request: web.Request) -> bool:
    """Return whether the browser uses HTTPS, also behind a proxy. A forged header only loses its own cookie.

    Of several proxies, the first one talks to the browser. The browser itself says it in the Origin of our own forms.
    """
    proxied = request.headers.get("X-Forwarded-Proto", "").partition(",")[0].strip()
    forwarded = request.forwarded[0].get("proto", "") if request.forwarded else ""
    ours = request.headers.get(hdrs.ORIGIN, "").lower() == f"https://{request.host.lower()}"
    return request.secure or ours or "https" in (proxied.lower(), forwarded.lower())


_STATIC: Final = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "chevron.svg": "image/svg+xml",
}
_KEY: Final = "/keys/{id}"
_ROUTE: Final = "/policy/{route:.+}"
_VERB: Final = f"{_KEY}/{{verb:{VERBS}}}"


def add_pages(app: web.Application, instruments: Instruments, *, clock: Clock) -> None:
    """Add the pages to the admin listener's application.

    Without a session only the sign-in form and its static files are open; they hold nothing secret.
    """
    app[TEMPLATES] = Templates()
    app[INSTRUMENTS] = instruments
    app[SESSIONS] = Sessions(clock=clock, new_token=instruments.new_token)
    app[LOGIN] = LoginPolicy(open=_open_paths(), session=session_of, problem_page=refused)
    app.router.add_routes(
        [
            web.get("/", show_overview),
            web.get("/sign-in", show_sign_in),
            web.post("/sign-in", begin),
            web.post("/sign-out", end),
            web.get("/keys", list_keys),
            web.get("/keys/new", show_issue),
            web.post("/keys/new", issue),
            web.get("/keys/export", export_keys, allow_head=False),
            web.get("/keys/many", confirm_many),
            web.post("/keys/many", carry_out_many),
            web.get(_KEY, show_key),
            web.get(f"{_KEY}/change", show_change),
            web.post(f"{_KEY}/change", change),
            web.get(_VERB, confirm),
            web.post(_VERB, carry_out),
            web.get("/refusals/{id}", show_refusals),
            web.get("/audit", list_audit),
            web.get("/policy", show_policy),
            web.post("/policy", try_policy),
            web.get(_ROUTE, show_route),
            web.post(_ROUTE, try_route),
            web.get("/explain", show_explain),
            web.post("/explain", explain),
        ]
    )
    for name, content_type in _STATIC.items():
        app.router.add_get(f"/static/{name}", _file(name, content_type))


def _open_paths() -> frozenset[tuple[str, str]]:
    files = {(method, f"/static/{name}") for name in _STATIC for method in (hdrs.METH_GET, hdrs.METH_HEAD)}
    return frozenset({(hdrs.METH_GET, "/sign-in"), (hdrs.METH_POST, "/sign-in"), *files})


def _file(name: str, content_type: str) -> Handler:
    """Return a handler for a static file, which is read once at start."""
    body = (HERE / "static" / name).read_bytes()

    async def send(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=PAGE_HEADERS)

    return send
