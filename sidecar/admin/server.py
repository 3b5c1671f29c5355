"""The admin listener: an application of its own, on an address of its own."""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from aiohttp import hdrs, web

from sidecar import __version__
from sidecar.admin.api.openapi import document, page
from sidecar.admin.api.routes import OPERATIONS, ROOT, handler_of
from sidecar.admin.auth import Tokens
from sidecar.admin.middleware import ADMIN, JSON, guards
from sidecar.admin.service import AdminDependencies, AdminService

BODY_LIMIT: Final = 1024 * 1024
DEPENDENCIES: Final = web.AppKey("ports", AdminDependencies)
TOKENS: Final = web.AppKey("tokens", Tokens)

_POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_READING = f"{_POLICY}; style-src 'self'"
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""What an answer carries unless its handler says otherwise."""


def admin_app(ports: AdminDependencies, tokens: Tokens, *, hosts: Callable[[], Sequence[str]]) -> web.Application:
    """The API. What a browser shows is added to it by `add_pages`.

    hosts: names that a request may be sent to, beside localhost and the bound address.
    """
    app = web.Application(middlewares=guards(tokens, hosts), client_max_size=BODY_LIMIT)
    app[DEPENDENCIES] = ports
    app[TOKENS] = tokens
    for operation in OPERATIONS:
        for method in ("GET", "HEAD") if operation.method == "GET" else (operation.method,):
            app.router.add_route(method, ROOT + operation.path, handler_of(operation, desk_of))
    _add_documents(app)
    app.on_response_prepare.append(_finish_head)
    return app


def _add_documents(app: web.Application) -> None:
    described = document(OPERATIONS, root=ROOT, version=__version__)
    text, html = msgspec.json.encode(described), page(described)

    async def openapi(_: web.Request) -> web.Response:
        return web.Response(body=text, content_type=JSON)

    async def docs(_: web.Request) -> web.Response:
        return web.Response(text=html, content_type="text/html", headers={"Content-Security-Policy": _READING})

    app.router.add_get("/api/openapi.json", openapi)
    app.router.add_get("/api/docs", docs)


def desk_of(request: web.Request) -> AdminService:
    """What the administrator who sent the request may see and do."""
    return AdminService(request.app[DEPENDENCIES], request[ADMIN], address=request.remote or "")


async def _finish_head(_: web.Request, response: web.StreamResponse) -> None:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers[hdrs.CACHE_CONTROL] = "no-store"
    response.headers.popall(hdrs.SERVER, None)
