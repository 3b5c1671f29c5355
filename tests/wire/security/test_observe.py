"""What `mode: observe` forwards, byte for byte: no identity, no wrong key, nothing malformed."""

import pytest

from tests.harness.framing import AMBIGUOUS
from tests.harness.headers import disguises
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.targets import CLIMBS, MALFORMED
from tests.wire.forward_auth.asking import DIALECTS, FILES, start_decider
from tests.wire.forward_auth.asking import IDENTITY as ASKED
from tests.wire.security.site import CONFIG, IDENTITY, Site

OBSERVE = CONFIG.replace("identity:\n", "identity:\n  would_deny: X-Would-Deny\n") + "mode: observe\n"


@pytest.fixture(scope="module")
def shared_sidecar(start_shared_sidecar: StartSidecar) -> Sidecar:
    return start_shared_sidecar(OBSERVE)


def unknown(text: str) -> str:
    return f"{text[:-1]}{'a' if text[-1] != 'a' else 'b'}"


@pytest.mark.requirement("S2.1")
@pytest.mark.parametrize("name", [*disguises("X-Auth-Key-Id"), *disguises("X-Would-Deny")])
def test_forged_identity_headers_are_never_forwarded(site: Site, name: str) -> None:
    for wrong in ((), [("Authorization", f"Bearer {unknown(site.keys['Kr'])}")], [("Authorization", "Basic YTpi")]):
        seen = site.passes("GET", "/items/1", [*wrong, (name, "forged")])
        assert b"forged" not in seen.head
        assert [seen.all(field) for field in (*IDENTITY, "authorization")] == [[], [], [], []]
        assert seen.header("x-would-deny") in ("missing_credential", "invalid_key", "malformed_credential")


@pytest.mark.requirement("S2.4", "S2.12")
def test_a_wrong_key_reaches_the_service_on_no_listener(site: Site) -> None:
    wrong = unknown(site.keys["Kr"])
    copies = [("X-Copy", wrong), ("Cookie", f"a=1; k={wrong}"), ("X-Request-Id", wrong)]
    response = site.ask("GET", "/items/1?a=1", [("Authorization", f"Bearer {wrong}"), *copies])
    assert response.status == 200
    assert wrong not in str(response)
    assert wrong.encode() not in site.upstream.last().head


def test_a_valid_key_without_the_scope_is_forwarded_with_its_identity(site: Site) -> None:
    seen = site.passes("GET", "/admin/x", [("X-Auth-Subject", "root")], key="Kr")
    assert seen.header("x-auth-subject") == "t-Kr"
    assert seen.header("x-would-deny") == "insufficient_scope"


@pytest.mark.requirement("S2.13")
@pytest.mark.parametrize("target", ["/items/1", "/nowhere?x=%2F"])
def test_responses_stay_private_to_caches(site: Site, target: str) -> None:
    response = site.ask("GET", target)
    assert response.status == 200
    assert response.header("Cache-Control") == "private"
    assert "authorization" in response.header("Vary").lower()


@pytest.mark.requirement("S4.3")
@pytest.mark.parametrize("key", ["Kx", "Kv", "Kd"])
def test_a_key_that_has_ended_stays_refused(site: Site, key: str) -> None:
    for target in ("/items/1", "/public/x", "/nowhere"):
        site.refuses(401, "GET", target, key=key)


@pytest.mark.requirement("S2.5", "S2.4")
def test_two_keys_and_a_key_in_the_query_stay_refused(site: Site) -> None:
    good, bad = site.keys["Kr"], unknown(site.keys["Kr"])
    for one, other in ((good, bad), (bad, good)):
        site.refuses(401, "GET", "/items/1", [("Authorization", f"Bearer {one}"), ("X-Api-Key", other)])
        site.refuses(401, "GET", "/items/1", [("X-Api-Key", one), ("X-Api-Key", other)])
    site.refuses(401, "GET", f"/items/1?key={good}")


@pytest.mark.requirement("S1.1", "S1.7")
@pytest.mark.parametrize("target", [*CLIMBS, *MALFORMED])
def test_targets_with_two_readings_or_none_stay_refused(site: Site, target: str) -> None:
    for key in ("", "Kr"):
        site.refuses((400, 401, 403), "GET", target, key=key)


@pytest.mark.requirement("S3.1")
@pytest.mark.parametrize("lines", AMBIGUOUS[:12])
def test_smuggling_stays_a_400(site: Site, lines: tuple[bytes, ...]) -> None:
    response = site.sidecar.exchange(b"POST /items/1 HTTP/1.1\r\nHost: a\r\n" + b"".join(lines) + b"\r\n0\r\n\r\n")
    assert response.status in (400, 501)
    assert site.upstream.requests() == []


def test_an_observed_request_is_counted_and_logged(site: Site) -> None:
    before = site.sidecar.metric('sidecar_would_deny_total{reason="no_route",route="(none)"}')
    seen = site.passes("GET", "/nowhere", key="Kr")
    assert seen.header("x-would-deny") == "no_route"
    line = site.sidecar.logged(lambda line: line["path"] == "/nowhere" and line.get("would_deny") == "no_route")
    assert (line["status"], line["reason"]) == (200, None)
    assert site.sidecar.metric('sidecar_would_deny_total{reason="no_route",route="(none)"}') == before + 1
    assert site.sidecar.metric("sidecar_observing") == 1
    assert 'sidecar_denied_total{reason="no_route"' not in site.sidecar.metrics()


@pytest.mark.requirement("S5.2")
def test_a_subrequest_proxy_gets_every_identity_header_even_if_empty(start_sidecar: StartSidecar) -> None:
    text = (FILES / "sidecar.yaml").read_text(encoding="utf-8")
    config = text.replace("identity:\n", "identity:\n  would_deny: X-Would-Deny\n") + "\nmode: observe\n"
    decider = start_decider(start_sidecar, config)
    for dialect in DIALECTS:
        wrong = [("Authorization", f"Bearer {unknown(decider.keys['Kr'].text)}")]
        for headers in ([], wrong):
            told = decider.ask(dialect, "GET", "/items/1", [*headers, ("X-Auth-Subject", "root")])
            assert told.status == 200
            assert [told.header(name) for name in ASKED[:3]] == ["", "", ""]
            assert told.header("X-Would-Deny") == ("invalid_key" if headers else "missing_credential")
            if dialect == "envoy":
                assert "authorization" in told.header("X-Envoy-Auth-Headers-To-Remove").split(",")
        told = decider.ask(dialect, "GET", "/items/1", [("X-Would-Deny", "x")], key="Kr")
        assert (told.status, told.header("X-Auth-Subject"), told.header("X-Would-Deny")) == (200, "t-Kr", "")
        assert decider.ask(dialect, "GET", "/items/1", key="Kv").status == 401
        assert decider.ask(dialect, "GET", "/public/../admin/x").status in (400, 403)
