"""The web page of the admin listener. The server renders every page, and each works without scripts."""

from typing import Final

from aiohttp import hdrs, web

from sidecar.admin.auth import Sessions
from sidecar.admin.middleware import LOGIN, Handler, LoginPolicy
from sidecar.admin.web.audit import list_audit
from sidecar.admin.web.explain import explain, show_explain
from sidecar.admin.web.issue import change, issue, show_change, show_issue
from sidecar.admin.web.key import VERBS, carry_out, confirm, show_key
from sidecar.admin.web.keys import carry_out_many, confirm_many, export_keys, list_keys
from sidecar.admin.web.overview import show_overview
from sidecar.admin.web.rendering import HERE, PAGE_HEADERS, TEMPLATES, Templates
from sidecar.admin.web.sign_in import SESSIONS, begin, end, refused, session_of, show_sign_in
from sidecar.admin.web.stats import INSTRUMENTS, Instruments
from sidecar.core.units import Clock

_STATIC: Final = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "chevron.svg": "image/svg+xml",
}
_KEY: Final = "/keys/{id}"
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
            web.get("/audit", list_audit),
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
