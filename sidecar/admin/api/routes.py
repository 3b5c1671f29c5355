"""The API on HTTP: a request to a Call, a Reply or a refusal to an answer."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Final, cast

import msgspec
from aiohttp import hdrs, web

from sidecar.admin.api.decoding import body_of, read_body, read_query
from sidecar.admin.api.handlers import KEY_OPERATIONS, VIEW_OPERATIONS
from sidecar.admin.api.operations import B, Call, NoBody, Operation, Operations, Q
from sidecar.admin.middleware import JSON, Handler
from sidecar.admin.problems import Flaw, Refusal, flawed, pointer_of, store_unavailable, unknown_key
from sidecar.admin.service import AdminService
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
OPERATIONS: Final = cast(Operations, (*KEY_OPERATIONS, *VIEW_OPERATIONS))

_IDEMPOTENCY_KEY: Final = "Idempotency-Key"
_SENDERS_NAME: Final = re.compile("[!-~]{1,255}")
_ENTITY_TAG: Final = re.compile(r'(W/)?"([!#-~]*)"')


def handler_of(operation: Operation[Q, B], desk_of: Callable[[web.Request], AdminService]) -> Handler:
    """What answers the operation's requests."""

    async def handle(request: web.Request) -> web.StreamResponse:
        service = desk_of(request)
        with refusing():
            reply = await operation.handle(service, await _call(operation, request, service))
        body = msgspec.json.encode(reply.value)
        status = reply.status or operation.statuses[0]
        return web.Response(status=status, body=body, content_type=JSON, headers=dict(reply.headers))

    return handle


async def _call(operation: Operation[Q, B], request: web.Request, service: AdminService) -> Call[Q, B]:
    """Raises Refusal."""
    query = read_query(list(request.query.items()), operation.query)
    raw = await body_of(request)
    if operation.body is NoBody:
        if raw.strip() not in (b"", b"{}"):
            raise flawed([Flaw(pointer="", detail="this takes no body")])
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
    return strong or ("",)  # What is no strong tag matches nothing.


def _idempotency_key(request: web.Request, body: msgspec.Struct, service: AdminService) -> IdempotencyKey | None:
    given = request.headers.getall(_IDEMPOTENCY_KEY, [])
    if not given:
        return None
    if len(given) > 1 or not _SENDERS_NAME.fullmatch(given[0]):
        detail = f"{_IDEMPOTENCY_KEY} must be given once, with 1 to 255 printable ASCII characters"
        raise Refusal(400, "invalid_request", detail)
    payload = request.path.encode() + b"\n" + msgspec.json.encode(body, order="sorted")
    return IdempotencyKey(token=service.admin.name, key=given[0], fingerprint=sha256(payload).hexdigest())


@contextmanager
def refusing() -> Iterator[None]:
    """What keys and store raise becomes a Refusal."""
    try:
        yield
    except InvalidKey as error:
        raise flawed(Flaw(pointer=_pointer(problem), detail=str(problem)) for problem in error.problems) from None
    except UnknownKey:
        raise unknown_key() from None
    except KeyChanged:
        raise Refusal(412, "key_changed", "the key is not any more as If-Match says: look at it again") from None
    except IdempotencyKeyReused:
        detail = "this Idempotency-Key was used for another request before: take a new one"
        raise Refusal(422, "idempotency_key_used", detail) from None
    except KeyConflict as error:
        raise Refusal(409, "conflict", str(error)) from None
    except StoreUnavailable:
        raise store_unavailable() from None


def _pointer(problem: str) -> str:
    return pointer_of(problem.path) if isinstance(problem, Violation) else ""
