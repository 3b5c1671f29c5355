"""Behind forward auth, scripts of other origins may read refusals; the rest is between the service and the proxy."""

import pytest

from tests.harness.running import StartSidecar
from tests.wire.forward_auth.asking import DIALECTS, FILES, Decider, start_decider, status_of

APP = ("Origin", "https://app.test")


@pytest.fixture(scope="module")
def sharing(start_shared_sidecar: StartSidecar) -> Decider:
    text = (FILES / "sidecar.yaml").read_text(encoding="utf-8")
    return start_decider(start_shared_sidecar, text + 'cors: {origins: ["https://app.test"]}\n')


@pytest.mark.parametrize("dialect", DIALECTS)
def test_refusals_are_decorated_and_nothing_else_is(sharing: Decider, dialect: str) -> None:
    for status, key, target in ((401, "", "/items/7"), (403, "Kw", "/items/7"), (400, "", "/items/%zz")):
        response = sharing.ask(dialect, "GET", target, [APP], key=key)
        assert status_of(response) == status
        assert response.header("Access-Control-Allow-Origin") == APP[1]
        assert response.header("Vary") == "Origin"
    response = sharing.ask(dialect, "GET", "/items/7", [APP], key="Kr")
    assert response.status == 200
    assert {name.lower() for name, _ in response.headers}.isdisjoint({"access-control-allow-origin", "vary"})


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_preflight_is_not_let_through_without_a_key(sharing: Decider, dialect: str) -> None:
    """Any 2xx would let it pass to the service."""
    response = sharing.ask(dialect, "OPTIONS", "/items/7", [APP, ("Access-Control-Request-Method", "GET")])
    assert status_of(response) == 401


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_unlisted_origin_gets_no_headers(sharing: Decider, dialect: str) -> None:
    response = sharing.ask(dialect, "GET", "/items/7", [("Origin", "https://evil.test")])
    assert status_of(response) == 401
    assert response.all("Access-Control-Allow-Origin") == []
