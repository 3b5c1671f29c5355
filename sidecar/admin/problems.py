"""The error responses of the admin API: problem details (RFC 9457)."""

from collections.abc import Iterable, Mapping
from http import HTTPStatus

import msgspec
from aiohttp import web

from sidecar.keys.ports import NotWritten, StoreUnavailable

PROBLEM_JSON = "application/problem+json"
_STORE_RETRY_SECONDS = "5"


class FieldError(msgspec.Struct, frozen=True, kw_only=True):
    """One invalid field: a JSON pointer (RFC 6901) into the body, or `?name` in the query, and what is wrong."""

    pointer: str
    detail: str


class ProblemDetails(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a request was not carried out (RFC 9457)."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: tuple[FieldError, ...] = ()


def pointer_of(path: Iterable[str]) -> str:
    """The JSON pointer (RFC 6901) to `path`."""
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in path)


class Problem(Exception):
    """The request is not carried out. The middleware turns this into problem details or into a page.

    code: a stable machine code. detail: for people; contains nothing secret.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Iterable[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})


def unauthorized(detail: str = "present an admin token: `Authorization: Bearer …`") -> Problem:
    challenge = {"WWW-Authenticate": 'Bearer realm="sidecar admin"'}
    return Problem(401, "unauthorized", detail, headers=challenge)


def unknown_key() -> Problem:
    """404 for a missing key, and for a key of another tenant: the response must not tell the two apart."""
    return Problem(404, "unknown_key", "there is no such key")


def unknown_request() -> Problem:
    """404 for an id without a recent refusal, and for one of another tenant's key."""
    detail = "none of the newest refusals of this process has this request id: sidecar why ID looks in the access log"
    return Problem(404, "unknown_request", detail)


def invalid_request(errors: Iterable[FieldError]) -> Problem:
    return Problem(400, "invalid_request", "the request is not valid; see errors", errors=errors)


def forbidden(detail: str, errors: Iterable[FieldError] = ()) -> Problem:
    return Problem(403, "forbidden", detail, errors=errors)


def store_unavailable(error: StoreUnavailable) -> Problem:
    """503. The store's own message names files and hosts, which only operators may read (in the readiness check)."""
    detail = "the key store is unavailable; the sidecar's readiness check says why"
    if isinstance(error, NotWritten):
        why = f"the key store {error.cause}" if error.cause else "the sidecar's readiness check says why"
        detail = f"the change was not written: {why}"
    return Problem(503, "store_unavailable", detail, headers={"Retry-After": _STORE_RETRY_SECONDS})


def problem_response(problem: Problem) -> web.Response:
    """The problem as an HTTP response."""
    details = ProblemDetails(
        type="about:blank",
        title=HTTPStatus(problem.status).phrase,
        status=problem.status,
        code=problem.code,
        detail=problem.detail,
        errors=problem.errors,
    )
    return web.Response(
        status=problem.status, body=msgspec.json.encode(details), content_type=PROBLEM_JSON, headers=problem.headers
    )
