"""A path with a slash at its end is many frameworks' path without it; both must be allowed."""

import pytest

from sidecar.core.errors import Denied, Reason
from sidecar.core.model import Policy, Route
from sidecar.core.policy import authorize
from sidecar.core.routing import RouteTable
from tests.unit.core.samples import principal


def table(**policies: Policy) -> RouteTable:
    return RouteTable(
        [Route(name=name, methods=frozenset({"GET"}), pattern=name, policy=policy) for name, policy in policies.items()]
    )


FILES = table(
    **{
        "/files/**": Policy(any_scopes=frozenset({"read"})),
        "/files/{id}/secret": Policy(any_scopes=frozenset({"admin"})),
        "/open": Policy(public=True),
        "/open/**": Policy(any_scopes=frozenset({"read"})),
        "/{tenant}/home": Policy(tenant_param="tenant"),
        "/{tenant}/**": Policy(),
    }
)


def allowed(path: str, *scopes: str, **key: str) -> str:
    match = FILES.match("GET", path)
    caller = principal(*scopes, **key) if scopes or key else None
    try:
        return authorize(match, caller, foreign=False).route.name
    except Denied as denied:
        return denied.reason


def test_a_trailing_slash_does_not_bypass_a_narrower_route() -> None:
    assert allowed("/files/1/secret/", "read") == Reason.INSUFFICIENT_SCOPE
    assert allowed("/files/1/secret/", "read", "admin") == "/files/**"


def test_a_narrower_route_that_is_public_opens_nothing() -> None:
    assert allowed("/open/") == Reason.MISSING_CREDENTIAL
    assert allowed("/open/", "read") == "/open/**"


def test_bindings_hold_with_a_trailing_slash() -> None:
    assert allowed("/acme/home/", tenant="globex") == Reason.WRONG_TENANT
    assert allowed("/acme/home/", tenant="acme") == "/{tenant}/**"


@pytest.mark.parametrize("path", ["/", "/files/", "/files/1/"])
def test_a_trailing_slash_within_one_route_changes_nothing(path: str) -> None:
    found = FILES.match("GET", path)
    assert found is None or found.unslashed is None
