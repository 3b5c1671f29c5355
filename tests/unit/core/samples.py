"""Sample values for tests of the rules."""

from collections.abc import Mapping
from typing import Any

from sidecar.core.model import ApiKey, Policy, Principal, Quota, QuotaState, Route
from sidecar.core.routing import Match


def api_key(**changes: Any) -> ApiKey:
    values: Mapping[str, Any] = {
        "id": "key_1",
        "name": "Ada's key",
        "prefix": "hv_live_abc1",
        "digest": b"d",
        "algorithm": "sha256",
        "created_at": 0,
        "created_by": "test",
    }
    return ApiKey(**{**values, **changes})


def principal(*scopes: str, **changes: Any) -> Principal:
    return Principal(key=api_key(**changes), scopes=frozenset(scopes))


def match(tenant: str | None = None, environment: str | None = None, name: str = "GET /a", **policy: Any) -> Match:
    route = Route(name=name, methods=frozenset({"GET"}), pattern="/a", policy=Policy(**policy))
    return Match(route, tenant, environment)


def quota(name: str = "general", limit: int = 10, **changes: Any) -> Quota:
    return Quota(name=name, limit=limit, period=changes.pop("period", "hour"), **changes)


def state(name: str = "general", **changes: Any) -> QuotaState:
    values: Mapping[str, Any] = {"limit": 10, "remaining": 4, "resets_at": 3600.0}
    return QuotaState(quota=quota(name), **{**values, **changes})
