"""The admin listener's application: the API and its documents."""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from aiohttp import hdrs, web

from sidecar import __version__
from sidecar.admin.api.openapi import document, page
from sidecar.admin.api.routes import OPERATIONS, ROOT, handler_of
from sidecar.admin.auth import Tokens
from sidecar.admin.middleware import ADMIN, JSON, PROXIES, client_address, middlewares
from sidecar.admin.service import AdminDependencies, AdminService
from sidecar.core.client_address import TrustedProxies

BODY_LIMIT: Final = 1024 * 1024
DEPENDENCIES: Final = web.AppKey("dependencies", AdminDependencies)
TOKENS: Final = web.AppKey("tokens", Tokens)

_POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_DOCS_POLICY = f"{_POLICY}; style-src 'self'"
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""Headers of each response, unless its handler sets them."""


def admin_app(
    dependencies: AdminDependencies,
    tokens: Tokens,
    *,
    hosts: Callable[[], Sequence[str]],
    proxies: Callable[[], TrustedProxies],
) -> web.Application:
    """The API. `add_pages` adds the web pages to it.

    hosts: names that a request may name beside localhost and the bound address.
    proxies: whose forwarding header is believed.
    """
    app = web.Application(middlewares=middlewares(tokens, hosts), client_max_size=BODY_LIMIT)
    app[DEPENDENCIES] = dependencies
    app[TOKENS] = tokens
    app[PROXIES] = proxies
    for operation in OPERATIONS:
        for method in ("GET", "HEAD") if operation.method == "GET" else (operation.method,):
            app.router.add_route(method, ROOT + operation.path, handler_of(operation, service_of))
    _add_documents(app)
    app.on_response_prepare.append(_finish_head)
    return app


def _add_documents(app: web.Application) -> None:
    schema = document(OPERATIONS, root=ROOT, version=__version__)
    text, html = msgspec.json.encode(schema), page(schema)

    async def openapi(_: web.Request) -> web.Response:
        return web.Response(body=text, content_type=JSON)

    async def docs(_: web.Request) -> web.Response:
        return web.Response(text=html, content_type="text/html", headers={"Content-Security-Policy": _DOCS_POLICY})

    app.router.add_get("/api/openapi.json", openapi)
    app.router.add_get("/api/docs", docs)


def service_of(request: web.Request) -> AdminService:
    """The service, limited to what the administrator who sent the request may see and do."""
    return AdminService(request.app[DEPENDENCIES], request[ADMIN], address=client_address(request))


async def _finish_head(_: web.Request, response: web.StreamResponse) -> None:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers[hdrs.CACHE_CONTROL] = "no-store"
    response.headers.popall(hdrs.SERVER, None)
