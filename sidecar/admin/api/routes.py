"""The admin listener's application: the API and its documents. A request becomes a Call, a Reply a response."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Final, cast

import msgspec
from aiohttp import hdrs, web

from sidecar import __version__
from sidecar.admin.api.handlers import VIEW_OPERATIONS
from sidecar.admin.api.key_handlers import KEY_OPERATIONS
from sidecar.admin.api.openapi import document, page
from sidecar.admin.api.operations import B, Call, NoBody, Operation, Operations, Q, body_of, read_body, read_query
from sidecar.admin.api.policy import POLICY_OPERATIONS
from sidecar.admin.auth import Tokens
from sidecar.admin.middleware import ADMIN, JSON, PROXIES, Handler, client_address, middlewares
from sidecar.admin.problems import FieldError, Problem, invalid_request, pointer_of, store_unavailable, unknown_key
from sidecar.admin.reading import AdminDependencies
from sidecar.admin.service import AdminService
from sidecar.core.client_address import TrustedProxies
from sidecar.keys.ports import (
    IdempotencyKey,
    IdempotencyKeyReused,
    KeyChanged,
    KeyConflict,
    StoreUnavailable,
    UnknownKey,
)
from sidecar.keys.validation import InvalidKey, Violation

ROOT: Final = "/api/v1"
OPERATIONS: Final = cast(Operations, (*KEY_OPERATIONS, *VIEW_OPERATIONS, *POLICY_OPERATIONS))

_IDEMPOTENCY_KEY: Final = "Idempotency-Key"
_KEY: Final = re.compile("[!-~]{1,255}")
_ENTITY_TAG: Final = re.compile(r'(W/)?"([!#-~]*)"')


def handler_of(operation: Operation[Q, B], service_of: Callable[[web.Request], AdminService]) -> Handler:
    """The HTTP handler of an operation."""

    async def handle(request: web.Request) -> web.StreamResponse:
        service = service_of(request)
        with translated_errors():
            reply = await operation.handle(service, await _call(operation, request, service))
        body = msgspec.json.encode(reply.value)
        status = reply.status or operation.statuses[0]
        return web.Response(status=status, body=body, content_type=JSON, headers=dict(reply.headers))

    return handle


async def _call(operation: Operation[Q, B], request: web.Request, service: AdminService) -> Call[Q, B]:
    """Decode the request. Raises Problem."""
    query = read_query(list(request.query.items()), operation.query)
    raw = await body_of(request)
    if operation.body is NoBody:
        if raw.strip() not in (b"", b"{}"):
            raise invalid_request([FieldError(pointer="", detail="this operation has no body")])
        raw = b"{}"
    elif not operation.body_required:
        raw = raw or b"{}"
    body = read_body(raw, operation.body)
    return Call(
        key_id=request.match_info.get("id", ""),
        query=query,
        body=body,
        matches=_matches(request) if operation.takes_if_match else (),
        idempotency_key=_idempotency_key(request, body, service) if operation.takes_idempotency_key else None,
    )


def _matches(request: web.Request) -> tuple[str, ...]:
    text = ",".join(request.headers.getall(hdrs.IF_MATCH, []))
    if not text or text.strip() == "*":
        return ()
    strong = tuple(tag for weak, tag in _ENTITY_TAG.findall(text) if not weak)
    return strong or ("",)  # If-Match compares strongly (RFC 9110 section 13.1.1): a weak tag matches nothing.


def _idempotency_key(request: web.Request, body: msgspec.Struct, service: AdminService) -> IdempotencyKey | None:
    fields = request.headers.getall(_IDEMPOTENCY_KEY, [])
    if not fields:
        return None
    if len(fields) > 1 or not _KEY.fullmatch(fields[0]):
        detail = f"send {_IDEMPOTENCY_KEY} once, with 1 to 255 printable ASCII characters"
        raise Problem(400, "invalid_request", detail)
    payload = request.path.encode() + b"\n" + msgspec.json.encode(body, order="sorted")
    return IdempotencyKey(token=service.admin.name, key=fields[0], fingerprint=sha256(payload).hexdigest())


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turns the exceptions of keys and store into a Problem."""
    try:
        yield
    except InvalidKey as error:
        raise invalid_request(
            FieldError(pointer=_pointer(problem), detail=str(problem)) for problem in error.problems
        ) from None
    except UnknownKey:
        raise unknown_key() from None
    except KeyChanged:
        raise Problem(412, "key_changed", "the key has changed and no longer matches If-Match: read it again") from None
    except IdempotencyKeyReused:
        detail = "this Idempotency-Key was used for another request: use a new one"
        raise Problem(422, "idempotency_key_used", detail) from None
    except KeyConflict as error:
        raise Problem(409, "conflict", str(error)) from None
    except StoreUnavailable as error:
        raise store_unavailable(error) from None


def _pointer(problem: str) -> str:
    return pointer_of(problem.path) if isinstance(problem, Violation) else ""


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

    hosts: allowed host names besides localhost and the bound address. proxies: peers whose forwarding header is
    trusted.
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
