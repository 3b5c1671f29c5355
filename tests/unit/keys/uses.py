"""Requests of keys, as the gate decides them, for the tests of what is counted."""

from typing import Any

from sidecar.core.errors import Reason
from sidecar.core.model import Allow, ApiKey, Deny, Policy, Principal, RequestHead, Route

HOUR_SECONDS = 3600


def a_route(name: str) -> Route:
    return Route(name=name, methods=frozenset({"GET"}), pattern="/**", policy=Policy())


def a_head(agent: bytes | None = b"curl/8.5") -> RequestHead:
    headers = ((b"Host", b"api"), *(() if agent is None else ((b"user-AGENT", agent),)))
    return RequestHead(method="GET", target="/", headers=headers, peer="192.0.2.1")


def allowed(key: ApiKey | None, *, route: str = "GET /a", address: str = "192.0.2.1") -> Allow:
    return Allow(
        route=a_route(route),
        principal=None if key is None else Principal(key=key, scopes=frozenset()),
        target="/",
        headers=(),
        host=b"api",
        request_id="r",
        client_address=address,
    )


def refused(key: ApiKey | None, reason: Reason, **fields: Any) -> Deny:
    given = {"route": a_route("GET /a"), "client_address": "192.0.2.1", **fields}
    return Deny(reason=reason, key=key, request_id="r", **given)
