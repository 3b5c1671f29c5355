"""Why the admin API refuses, as problem+json (RFC 9457)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web

PROBLEM_JSON = "application/problem+json"
_STORE_RETRY_SECONDS = "5"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaw:
    """One thing that is wrong with a request: a JSON pointer (RFC 6901) into the body, or `?name`, and what."""

    pointer: str
    detail: str


def pointer_of(path: Iterable[str]) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in path)


class Refusal(Exception):
    """The request is not carried out. Whoever answers makes a problem or a page of it.

    code: a machine code that stays the same. detail: for people; holds nothing secret.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        flaws: Iterable[Flaw] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.flaws = tuple(flaws)
        self.headers = dict(headers or {})


def unauthorized(detail: str = "present an admin token: `Authorization: Bearer …`") -> Refusal:
    challenge = {"WWW-Authenticate": 'Bearer realm="sidecar admin"'}
    return Refusal(401, "unauthorized", detail, headers=challenge)


def unknown_key() -> Refusal:
    """Also for a key that exists and is not the administrator's to see: the two must not be told apart."""
    return Refusal(404, "unknown_key", "there is no such key")


def flawed(flaws: Iterable[Flaw]) -> Refusal:
    return Refusal(400, "invalid_request", "the request is not as it must be; see errors", flaws=flaws)


def forbidden(detail: str, flaws: Iterable[Flaw] = ()) -> Refusal:
    return Refusal(403, "forbidden", detail, flaws=flaws)


def store_unavailable() -> Refusal:
    """Its own message tells of files and hosts, which readiness tells to operators."""
    detail = "the key store does not answer; the sidecar's readiness says why"
    return Refusal(503, "store_unavailable", detail, headers={"Retry-After": _STORE_RETRY_SECONDS})


def problem(refusal: Refusal) -> web.Response:
    """The answer of the API."""
    told: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(refusal.status).phrase,
        "status": refusal.status,
        "code": refusal.code,
        "detail": refusal.detail,
    }
    if refusal.flaws:
        told["errors"] = [{"pointer": flaw.pointer, "detail": flaw.detail} for flaw in refusal.flaws]
    return web.Response(
        status=refusal.status, body=msgspec.json.encode(told), content_type=PROBLEM_JSON, headers=refusal.headers
    )
