"""Header fields and identity."""

import pytest

from tests.harness.headers import (
    BAD_HOSTS,
    FORWARDING,
    HOP_BY_HOP,
    HOSTS,
    SIGNED_IN,
    STRIPPED,
    STRIPPED_BY_PATTERN,
    disguises,
)
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.wire import request_bytes
from tests.wire.security.site import BASE, IDENTITY, KEYS, Site


def folded(name: str) -> str:
    """As the least careful server parses it."""
    return "".join(character if character.isalnum() else "-" for character in name.lower()).replace("--", "-")


@pytest.mark.requirement("S2.1")
@pytest.mark.parametrize("name", ["X-Auth-Subject", "X-Auth-Scopes", "X-Auth-Key-Id"])
@pytest.mark.parametrize("target", ["/public/x", "/items/x"])
def test_an_identity_header_of_the_clients_never_reaches_the_upstream(site: Site, name: str, target: str) -> None:
    forged = [(form, "FORGED") for form in disguises(name)]
    key = "Kr" if target.startswith("/items") else ""
    seen = site.passes("GET", target, [*forged, *forged, ("Accept", "a")], key=key)
    assert b"FORGED" not in seen.head
    assert seen.header("Accept") == "a"
    told = [field for field in seen.names if folded(field) in IDENTITY]
    assert sorted(told) == (sorted(IDENTITY) if key else [])


@pytest.mark.requirement("S2.1")
def test_the_upstream_gets_the_keys_identity(site: Site) -> None:
    seen = site.passes("GET", "/items/x", [("X-Auth-Subject", "t-Ka")], key="Kr")
    assert seen.header("X-Auth-Subject") == "t-Kr"
    assert seen.header("X-Auth-Scopes") == "read"
    assert seen.header("X-Auth-Key-Id")


@pytest.mark.requirement("S2.2")
@pytest.mark.parametrize(
    "lines",
    [
        ["X-Auth-Subject"],
        ["x-auth-subject, X-AUTH-SCOPES,x-auth-key-id"],
        ["close", "X-Auth-Subject"],
        ["keep-alive, , X-Auth-Subject ,"],
        ["X-Request-Id, X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, Host"],
    ],
)
def test_connection_does_not_remove_what_we_inject(site: Site, lines: list[str]) -> None:
    seen = site.passes("GET", "/items/x", [("Connection", line) for line in lines], key="Kr")
    assert seen.header("X-Auth-Subject") == "t-Kr"
    assert seen.header("X-Auth-Scopes") == "read"
    assert seen.header("X-Forwarded-For") == "127.0.0.1"
    assert seen.header("Host") == "api.test"
    assert seen.header("X-Request-Id")
    assert "connection" not in seen.names or "x-" not in seen.header("connection").lower()


@pytest.mark.requirement("S2.2")
def test_other_names_that_connection_lists_are_removed(site: Site) -> None:
    fields = [
        ("X-Hop", "1"),
        ("x-HOP", "2"),
        ("X-Two", "3"),
        ("X-Stay", "4"),
        ("Connection", "x-hop"),
        ("CONNECTION", "X-two"),
    ]
    seen = site.passes("GET", "/public/x", fields)
    assert {"x-hop", "x-two"}.isdisjoint(seen.names)
    assert seen.header("X-Stay") == "4"


@pytest.mark.requirement("S2.2")
@pytest.mark.parametrize("field", [("Authorization", "Bearer {}"), ("X-Api-Key", "{}")])
def test_the_key_is_read_before_hop_by_hop_handling(site: Site, field: tuple[str, str]) -> None:
    name, value = field
    key = value.format(site.keys["Kr"])
    seen = site.passes("GET", "/items/x", [("Connection", name), (name, key)])
    assert seen.header("X-Auth-Subject") == "t-Kr"
    wrong = value.format(site.keys["Kv"])
    site.refuses(401, "GET", "/public/x", [("Connection", name), (name, wrong)])


@pytest.mark.requirement("S2.2")
def test_framing_headers_cannot_be_removed_by_connection(site: Site) -> None:
    named = [("Connection", "content-length, Content-Length, transfer-encoding")]
    assert (
        site.passes("POST", "/public/x", named, body=b"GET /admin HTTP/1.1\r\n\r\n").body
        == b"GET /admin HTTP/1.1\r\n\r\n"
    )
    raw = request_bytes("POST", "/public/x", [*named, ("Transfer-Encoding", "chunked")]) + b"5\r\nhello\r\n0\r\n\r\n"
    assert site.sidecar.exchange(raw).status == 200
    assert site.upstream.last().body == b"hello"


@pytest.mark.requirement("S2.3")
def test_hop_by_hop_fields_are_not_passed_on(site: Site) -> None:
    seen = site.passes("GET", "/public/x", [*HOP_BY_HOP, ("X-Stay", "1")])
    assert seen.names.isdisjoint(name.lower() for name, _ in HOP_BY_HOP)
    assert seen.header("X-Stay") == "1"
    assert "transfer-encoding" not in seen.names


@pytest.mark.requirement("S2.3")
def test_fields_named_by_a_responses_connection_are_removed(site: Site) -> None:
    site.upstream.plan(
        b"HTTP/1.1 200 OK\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nx-hop: 2\r\nKeep-Alive: timeout=5\r\n"
        b"Proxy-Connection: keep-alive\r\nTE: x\r\nTrailer: X\r\nUpgrade: h2c\r\nProxy-Authenticate: Basic\r\n"
        b"X-Stay: 3\r\nContent-Length: 2\r\n\r\nok"
    )
    response = site.ask("GET", "/public/x")
    assert (response.status, response.body) == (200, b"ok")
    assert response.header("X-Stay") == "3"
    for name in ("X-Hop", "Keep-Alive", "Proxy-Connection", "TE", "Trailer", "Upgrade"):
        assert response.all(name) == []


@pytest.mark.requirement("S2.8")
def test_forwarding_headers_from_untrusted_peers_are_replaced(site: Site) -> None:
    disguised = [(name.replace("-", "_"), value) for name, value in FORWARDING]
    seen = site.passes("GET", "/public/x", [*FORWARDING, *SIGNED_IN, *disguised])
    assert seen.header("X-Forwarded-For") == "127.0.0.1"
    assert seen.header("X-Forwarded-Proto") == "http"
    assert seen.header("X-Forwarded-Host") == "api.test"
    assert b"6.6.6.6" not in seen.head
    assert b"evil" not in seen.head
    assert b"/admin" not in seen.head


@pytest.fixture(scope="module")
def behind_proxy(start_shared_sidecar: StartSidecar) -> Sidecar:
    return start_shared_sidecar(f"{BASE}trusted_proxies: [127.0.0.1, 10.0.0.0/8]\n{KEYS}")


@pytest.mark.requirement("S2.8")
@pytest.mark.parametrize(
    ("lines", "client"),
    [
        (["198.51.100.7"], "198.51.100.7"),
        (["6.6.6.6, 198.51.100.7, 10.1.1.1"], "198.51.100.7"),
        (["6.6.6.6", "198.51.100.7"], "198.51.100.7"),
        (["6.6.6.6, nonsense"], "127.0.0.1"),
        (["6.6.6.6, [::1]nonsense"], "127.0.0.1"),
        (["6.6.6.6, 198.51.100.300, 10.1.1.1"], "10.1.1.1"),
    ],
)
def test_behind_a_trusted_proxy_the_right_most_untrusted_address_counts(
    behind_proxy: Sidecar, site: Site, lines: list[str], client: str
) -> None:
    request_id = f"rid-{hash((*lines, client))}"
    fields = [("X-Forwarded-For", line) for line in lines]
    response = behind_proxy.ask("GET", "/public/x", [*fields, ("X-Request-Id", request_id)])
    assert response.status == 200
    seen = site.upstream.last()
    assert seen.header("X-Forwarded-For") == ", ".join([*lines, "127.0.0.1"])
    assert behind_proxy.logged(lambda line: line["request_id"] == request_id)["client_address"] == client


@pytest.mark.requirement("S2.8")
def test_an_untrusted_peer_is_not_trusted_even_next_to_a_trusted_proxy(behind_proxy: Sidecar, site: Site) -> None:
    response = behind_proxy.ask("GET", "/public/x", FORWARDING, source="127.0.0.2")
    assert response.status == 200
    assert site.upstream.last().header("X-Forwarded-For") == "127.0.0.2"


BELIEVED = [name for name, _ in [*STRIPPED, *STRIPPED_BY_PATTERN]]


@pytest.mark.requirement("S2.14")
@pytest.mark.parametrize("name", BELIEVED)
def test_headers_that_services_trust_never_reach_them(site: Site, behind_proxy: Sidecar, name: str) -> None:
    forged = [(form, "FORGED") for form in disguises(name)]
    for sidecar, source in ((site.sidecar, "127.0.0.1"), (behind_proxy, "127.0.0.1"), (behind_proxy, "127.0.0.2")):
        assert sidecar.ask("GET", "/public/x", forged, source=source).status == 200
        assert b"FORGED" not in site.upstream.last().head
        site.upstream.clear()


@pytest.fixture(scope="module")
def keeping(start_shared_sidecar: StartSidecar) -> Sidecar:
    identity = BASE.rstrip("\n") + "\n  keep: [X-Auth-Request-*, True-Client-IP]\n  strip: [X-Istio-*]\n"
    return start_shared_sidecar(f"{identity}trusted_proxies: [127.0.0.1]\n{KEYS}")


@pytest.mark.requirement("S2.14")
@pytest.mark.parametrize("name", ["X-Auth-Request-User", "True-Client-IP"])
def test_what_is_kept_passes_from_a_trusted_proxy_by_its_exact_name(keeping: Sidecar, site: Site, name: str) -> None:
    forms = disguises(name)
    for source, passing in (("127.0.0.1", [form for form in forms if form.lower() == name.lower()]), ("127.0.0.2", [])):
        assert keeping.ask("GET", "/public/x", [(form, "SET") for form in forms], source=source).status == 200
        assert [field for field, value in site.upstream.last().headers if value == "SET"] == passing
        site.upstream.clear()


@pytest.mark.requirement("S2.14")
def test_configured_stripped_headers_are_added_to_the_fixed_ones(keeping: Sidecar, site: Site) -> None:
    names = [*disguises("X-Istio-Attributes"), "X-HTTP-Method-Override", "X-Envoy-Retry-On"]
    assert keeping.ask("GET", "/public/x", [(name, "FORGED") for name in names]).status == 200
    assert b"FORGED" not in site.upstream.last().head


@pytest.mark.requirement("S2.9")
def test_header_values_from_0x80_are_forwarded_byte_for_byte_or_400(site: Site) -> None:
    value = bytes(range(0x80, 0x100))
    raw = b"GET /public/x HTTP/1.1\r\nHost: api.test\r\nX-Bytes: a" + value + b"b\r\n\r\n"
    status = site.sidecar.exchange(raw).status
    assert status in {200, 400}
    if status == 200:
        assert b"X-Bytes: a" + value + b"b\r\n" in site.upstream.last().head


@pytest.mark.requirement("S2.9")
def test_duplicates_and_their_order_are_kept_on_the_way_there(site: Site) -> None:
    fields = [
        ("Accept", "1"),
        ("X-b", "2"),
        ("accept", "3"),
        ("Cookie", "a=1"),
        ("X-B", "4"),
        ("Cookie", "b=2"),
        ("X-b", "2"),
    ]
    seen = site.passes("GET", "/public/x", fields)
    names = {"accept", "x-b", "cookie"}
    assert [pair for pair in seen.headers if pair[0].lower() in names] == fields


@pytest.mark.requirement("S2.9")
def test_response_headers_keep_order_and_two_set_cookie_stay_two(site: Site) -> None:
    lines = [
        ("Set-Cookie", "a=1"),
        ("X-b", "2"),
        ("set-cookie", "b=2; Expires=Thu, 01 Jan 2026 00:00:00 GMT"),
        ("X-B", "\x80\xff"),
    ]
    head = "".join(f"{name}: {value}\r\n" for name, value in lines)
    site.upstream.plan(f"HTTP/1.1 200 OK\r\n{head}Content-Length: 0\r\n\r\n".encode("latin-1"))
    response = site.ask("GET", "/public/x")
    assert [pair for pair in response.headers if pair[0].lower() in {"set-cookie", "x-b"}] == lines


@pytest.mark.requirement("S2.10")
@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"Host: api.test\r\nHost: api.test\r\n",
        b"Host: api.test\r\nhost: evil.test\r\n",
        *[b"Host: " + host + b"\r\n" for host in BAD_HOSTS],
        b"Host : api.test\r\n",
        b" Host: api.test\r\n",
    ],
)
@pytest.mark.parametrize("target", [b"/public/x", b"http://api.test/public/x"])
def test_a_request_needs_exactly_one_plain_host(site: Site, lines: bytes, target: bytes) -> None:
    site.refuses_bytes(400, b"GET " + target + b" HTTP/1.1\r\n" + lines + b"\r\n")


@pytest.mark.requirement("S2.10")
@pytest.mark.parametrize("host", HOSTS)
def test_every_valid_host_is_accepted_and_forwarded(site: Site, host: bytes) -> None:
    for start in (b"/public/x", b"http://" + host + b"/public/x"):
        assert site.sidecar.exchange(b"GET " + start + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n").status == 200
        assert site.upstream.last().header("Host") == host.decode()


@pytest.mark.requirement("S2.11")
def test_a_cookie_that_the_upstream_sets_stays_with_the_client_that_it_was_set_for(site: Site) -> None:
    for _ in range(3):
        site.upstream.plan(b"HTTP/1.1 200 OK\r\nSet-Cookie: session=alice; Path=/\r\nContent-Length: 0\r\n\r\n")
        assert site.ask("GET", "/public/x", key="Kr").all("Set-Cookie") == ["session=alice; Path=/"]
        other = site.ask("GET", "/public/x")
        assert other.all("Set-Cookie") == []
    assert all("cookie" not in seen.names for seen in site.upstream.requests())
