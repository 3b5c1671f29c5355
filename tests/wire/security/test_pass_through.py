"""Over sockets: credentials that pass without our key, on the data and the forward-auth listener."""

import pytest

from tests.harness.recording import Upstream
from tests.harness.running import Sidecar, StartSidecar
from tests.wire.forward_auth.asking import DIALECTS, FILES, Decider, start_decider, status_of
from tests.wire.security.site import BASE, KEYS

PASSING = """\
  pass_through:
    - {header: X-Session}
    - {header: X-Forwarded-User}
    - {header: X-Auth-Request-User}
    - {cookie: session}
"""
TRUSTING = "trusted_proxies: [127.0.0.1]\n"
KEEPING = "identity:\n  keep: [X-Auth-Request-User]\n"
STRANGER = "127.0.0.2"
ANYONES = [("X-Session", "s3"), ("Cookie", "session=1")]
OF_PROXIES = [("X-Forwarded-User", "ann"), ("X-Auth-Request-User", "ann")]


@pytest.fixture(scope="module")
def sidecar(start_shared_sidecar: StartSidecar) -> Sidecar:
    return start_shared_sidecar(TRUSTING + BASE.replace("identity:\n", KEEPING) + KEYS + PASSING)


@pytest.fixture(scope="module")
def decider(start_shared_sidecar: StartSidecar) -> Decider:
    text = (FILES / "sidecar.yaml").read_text(encoding="utf-8")
    text = text.replace("identity:\n", KEEPING).replace("keys:\n", f"keys:\n{PASSING}")
    return start_decider(start_shared_sidecar, text, {"Kr": "read"})


@pytest.mark.requirement("S2.14")
@pytest.mark.parametrize("source", [STRANGER, ""], ids=["a stranger", "a proxy"])
@pytest.mark.parametrize("field", ANYONES)
def test_a_credential_for_the_service_reaches_it_from_anyone(
    sidecar: Sidecar, upstream: Upstream, field: tuple[str, str], source: str
) -> None:
    assert sidecar.ask("GET", "/items/x", [field], source=source).status == 200
    assert upstream.last().all(field[0]) == [field[1]]


def test_the_access_log_records_the_kind_of_credential(sidecar: Sidecar) -> None:
    brought = {"none": [], "pass_through": [("X-Session", "s3")], "key": [("Authorization", "Bearer hv_live_wrong")]}
    for kind, headers in brought.items():
        sidecar.ask("GET", f"/items/{kind}", headers)
        line = sidecar.logged(lambda line, path=f"/items/{kind}": line["path"] == path)
        assert line.get("credential", "none") == kind


@pytest.mark.requirement("S2.14")
@pytest.mark.parametrize("field", OF_PROXIES)
def test_a_user_header_of_proxies_lets_no_untrusted_peer_pass(
    sidecar: Sidecar, upstream: Upstream, field: tuple[str, str]
) -> None:
    assert sidecar.ask("GET", "/items/x", [field], source=STRANGER).status == 401
    assert upstream.requests() == []
    assert sidecar.ask("GET", "/items/x", [field]).status == 200
    assert upstream.last().all(field[0]) == [field[1]]


@pytest.mark.requirement("S2.14")
@pytest.mark.parametrize("field", [*ANYONES, *OF_PROXIES])
def test_a_credential_that_would_not_reach_the_service_lets_nobody_pass(
    sidecar: Sidecar, upstream: Upstream, field: tuple[str, str]
) -> None:
    name, value = field
    empty = "session=" if name == "Cookie" else ""
    for fields in (
        [field, ("Connection", name)],
        [field, field],
        [(name, empty)],
        [(name.replace("-", "_") + "_", value)],
    ):
        assert sidecar.ask("GET", "/items/x", fields).status == 401, fields
    assert upstream.requests() == []


@pytest.mark.requirement("S5.2")
@pytest.mark.parametrize("dialect", DIALECTS)
def test_through_a_proxy_that_asks_a_client_can_bring_its_own_credential_only(decider: Decider, dialect: str) -> None:
    for field in ANYONES:
        assert decider.ask(dialect, "GET", "/items/x", [field]).status == 200
    assert status_of(decider.ask(dialect, "GET", "/items/x", [OF_PROXIES[1]])) == 401
    told = status_of(decider.ask(dialect, "GET", "/items/x", [OF_PROXIES[0]]))
    assert told == (401 if dialect == "envoy" else 400)
