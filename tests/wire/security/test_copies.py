"""No copy of a request's key reaches the upstream."""

from base64 import b64encode, urlsafe_b64encode
from urllib.parse import quote

import pytest

from tests.harness.recording import Upstream
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.wire import request_bytes
from tests.wire.forward_auth.asking import DIALECTS, Decider, start_decider, status_of
from tests.wire.security.site import BASE, Site

SOURCES = "keys:\n  environments: {live: hv_live_}\n  from: [{header: X-Api-Key}, {cookie: key}, {query: key}]\n"


def hidden(key: str) -> list[tuple[str, str]]:
    """Headers that hold `key`."""
    every_byte = "".join(f"%{byte:02x}" for byte in key.encode())
    login = b64encode(f"user:{key}".encode()).decode()
    return [
        ("X-Copy", key),
        ("Referer", f"https://a.test/?token={key}&x=1"),
        ("User-Agent", f"agent/1 ({key})"),
        ("Sec-WebSocket-Protocol", f"chat, bearer.{key}"),
        ("X-Encoded", quote(key, safe="").replace("_", "%5F")),
        ("X-Encoded-Whole", every_byte),
        ("X-Encoded-Twice", every_byte.replace("%", "%25")),
        ("X-Login", "Basic " + b64encode(f"{key}:".encode()).decode()),
        ("X-Login", "basic " + b64encode(f"user:{key}".encode()).decode()),
        ("X-Login", "Basic   " + b64encode(f"user:{key}".encode()).decode()),
        ("X-Unpadded", "Basic " + b64encode(f"u:{key}".encode()).decode().rstrip("=")),
        ("X-Login", f"Basic\t{login}"),
        ("X-Login", f'other, realm="Basic {login}"'),
        ("X-Login", f"Basic%20{quote(login)}"),
        ("X-Login", "Basic " + b64encode(f"user:{every_byte}".encode()).decode()),
        ("X-Login", "Basic " + urlsafe_b64encode(f"~~~???:{key}:>>>".encode()).decode() + "="),
        (f"X-{key}", "1"),
        ("traceparent", key),
    ]


def start(start_shared_sidecar: StartSidecar, more: str = "") -> tuple[Sidecar, str]:
    sidecar = start_shared_sidecar(BASE + SOURCES + more)
    return sidecar, sidecar.keys.issue(scopes=("read",), tenant="t").text


@pytest.fixture(scope="module")
def removing(start_shared_sidecar: StartSidecar) -> tuple[Sidecar, str]:
    return start(start_shared_sidecar)


@pytest.fixture(scope="module")
def refusing(start_shared_sidecar: StartSidecar) -> tuple[Sidecar, str]:
    return start(start_shared_sidecar, "  copies: refuse\n")


@pytest.mark.requirement("S2.12")
def test_headers_that_hold_the_key_are_removed_and_others_stay(
    removing: tuple[Sidecar, str], upstream: Upstream
) -> None:
    sidecar, key = removing
    others = [("Accept", "a%20b"), ("X-Basic", "Basic !!"), ("X-Near", key[:-1]), ("Accept", "x")]
    response = sidecar.ask("GET", "/items/x", [*hidden(key), *others, ("X-Api-Key", key)])
    assert response.status == 200
    seen = upstream.last()
    names = {name.lower() for name, _ in hidden(key)}
    assert names.isdisjoint(seen.names) and key.encode() not in seen.head
    assert [pair for pair in seen.headers if pair in others] == others


@pytest.mark.requirement("S2.12")
def test_cookies_and_parameters_that_hold_the_key_are_removed_and_others_stay(
    removing: tuple[Sidecar, str], upstream: Upstream
) -> None:
    sidecar, key = removing
    login = quote(b64encode(f"user:{key}".encode()).decode(), safe="")
    cookies = f"a=1; b={key}; c=%{ord(key[0]):x}{key[1:]}; {key}=d; e=2; f=Basic {login}; g=Basic+{login}"
    target = f"/items/x?one=1&two={key}&three=%{ord(key[0]):x}{key[1:]}&{key}=4&five&six=Basic%20{login}"
    response = sidecar.ask("GET", target, [("Cookie", cookies), ("X-Api-Key", key)])
    assert response.status == 200
    seen = upstream.last()
    assert (seen.target, seen.all("Cookie")) == ("/items/x?one=1&five", ["a=1; e=2"])


@pytest.mark.requirement("S2.12")
@pytest.mark.parametrize("place", ["cookie", "query"])
def test_a_copy_of_the_key_in_a_cookie_or_the_query_is_removed(
    removing: tuple[Sidecar, str], upstream: Upstream, place: str
) -> None:
    sidecar, key = removing
    target, headers = (
        ("/items/x", [("Cookie", f"key={key}; a=1")]) if place == "cookie" else (f"/items/x?key={key}", [])
    )
    assert sidecar.ask("GET", target, [*headers, ("X-Copy", key)]).status == 200
    assert key.encode() not in upstream.last().head


@pytest.mark.requirement("S2.12")
def test_a_key_in_the_host_is_400(removing: tuple[Sidecar, str], upstream: Upstream) -> None:
    sidecar, key = removing
    raw = f"GET /items/x HTTP/1.1\r\nHost: {key}\r\nX-Api-Key: {key}\r\n\r\n".encode()
    assert sidecar.exchange(raw).status == 400
    assert upstream.requests() == []


@pytest.mark.requirement("S2.12")
@pytest.mark.parametrize("offer", ["{}", "websocket, {}", "chat/{}", "{}%2E"])
def test_a_key_among_the_protocols_to_switch_to_is_400(
    removing: tuple[Sidecar, str], upstream: Upstream, offer: str
) -> None:
    sidecar, key = removing
    offered = [("Connection", "Upgrade"), ("Upgrade", offer.format(key))]
    assert sidecar.ask("GET", "/items/x", [*offered, ("X-Api-Key", key)]).status == 400
    assert upstream.requests() == []


@pytest.mark.requirement("S2.12")
def test_values_without_a_key_are_unchanged_next_to_values_with_one(
    removing: tuple[Sidecar, str], upstream: Upstream
) -> None:
    sidecar, key = removing
    others = [("Cookie", ""), ("Cookie", " a=1 ;b"), ("X-Percent", "100%"), ("Accept", "")]
    for copy in ([], [("X-Copy", key)]):
        assert sidecar.ask("GET", "/items/x?", [*others, *copy, ("X-Api-Key", key)]).status == 200
        seen = upstream.last()
        assert seen.target == "/items/x?"
        assert [pair for pair in seen.headers if pair[0] in ("Cookie", "X-Percent", "Accept")] == [
            ("Cookie", ""),
            ("Cookie", "a=1 ;b"),
            *others[2:],
        ]


@pytest.mark.requirement("S2.12")
def test_a_request_id_that_holds_the_key_is_replaced(removing: tuple[Sidecar, str], upstream: Upstream) -> None:
    sidecar, key = removing
    assert sidecar.ask("GET", "/items/x", [("X-Request-Id", f"a.{key}"), ("X-Api-Key", key)]).status == 200
    seen = upstream.last()
    assert key.encode() not in seen.head
    made = seen.header("X-Request-Id")
    sidecar.logged(lambda line: line["request_id"] == made)
    assert not any(key in line for line in sidecar.process.stdout.all())


@pytest.mark.requirement("S2.12")
def test_refused_copies_are_400_and_take_no_quota(refusing: tuple[Sidecar, str], upstream: Upstream) -> None:
    sidecar, key = refusing
    for name, value in [*hidden(key), ("Cookie", f"b={key}")]:
        response = sidecar.ask("GET", "/items/x", [(name, value), ("X-Api-Key", key)])
        assert (response.status, response.json()["code"]) == (400, "bad_header"), name
    for target in (f"/items/x?two={key}", f"/items/{key}", f"/items/%{ord(key[0]):x}{key[1:]}"):
        assert sidecar.ask("GET", target, [("X-Api-Key", key)]).status == 400
    assert upstream.requests() == []
    assert sidecar.ask("GET", f"/items/x?key={key}").status == 200
    assert sidecar.ask("GET", "/items/x", [("Cookie", f"key={key}")]).status == 200


@pytest.mark.requirement("S2.12")
def test_forward_auth_refuses_what_a_proxy_cannot_remove(
    start_shared_sidecar: StartSidecar, upstream: Upstream
) -> None:
    config = f"{BASE}decision: 127.0.0.1:0\nops: 127.0.0.1:0\ntrusted_proxies: [127.0.0.1]\n"
    config += "keys: {environments: {live: hv_live_}, from: [{header: X-Api-Key}]}\n"
    decider: Decider = start_decider(start_shared_sidecar, config, {"Kr": "read"})
    key = decider.keys["Kr"].text
    for dialect in DIALECTS:
        assert status_of(decider.ask(dialect, "GET", "/items/x", [("X-Api-Key", key)])) == 200
        assert status_of(decider.ask(dialect, "GET", "/items/x", [("X-Api-Key", key), ("X-Copy", key)])) == 400


@pytest.mark.requirement("S2.4")
def test_copies_stay_if_the_upstream_receives_the_key(start_shared_sidecar: StartSidecar, site: Site) -> None:
    sidecar, key = start(start_shared_sidecar, "  forward_credential: true\n")
    assert sidecar.ask("GET", "/items/x", [("X-Api-Key", key), ("X-Copy", key)]).status == 200
    assert site.upstream.last().header("X-Copy") == key


PROTOCOLS = (
    BASE + "keys:\n  environments: {live: hv_live_}\n  from: [{header: X-Api-Key}, {header: Sec-WebSocket-Protocol}]\n"
)
ASKING = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")]
LISTS = {
    ("KEY",): [],
    ("KEY, chat",): ["chat"],
    ("chat,KEY ,\tv2",): ["chat,\tv2"],
    ("chat", "KEY"): ["chat"],
    ("KEY", "chat, v2"): ["chat, v2"],
}


@pytest.fixture(scope="module")
def protocols(start_shared_sidecar: StartSidecar) -> tuple[Sidecar, str]:
    sidecar = start_shared_sidecar(PROTOCOLS)
    return sidecar, sidecar.keys.issue(scopes=("read",), tenant="t").text


@pytest.mark.requirement("S2.4")
@pytest.mark.parametrize(("lines", "left"), LISTS.items())
@pytest.mark.parametrize("asking", [ASKING, []], ids=["websocket", "plain"])
def test_all_websocket_protocols_except_the_key_are_passed_on(
    protocols: tuple[Sidecar, str],
    upstream: Upstream,
    lines: tuple[str, ...],
    left: list[str],
    asking: list[tuple[str, str]],
) -> None:
    sidecar, key = protocols
    offered = [("Sec-WebSocket-Protocol", line.replace("KEY", key)) for line in lines]
    for _ in range(2):
        sidecar.exchange(request_bytes("GET", "/items/x", [*asking, *offered]))
    seen = upstream.requests()
    assert [request.all("Sec-WebSocket-Protocol") for request in seen] == [left, left]
    assert [request.header("X-Auth-Subject") for request in seen] == ["t", "t"]
    assert not any(key.encode() in request.head for request in seen)


@pytest.mark.requirement("S2.4")
def test_protocols_without_a_key_are_not_a_credential(protocols: tuple[Sidecar, str], upstream: Upstream) -> None:
    sidecar, key = protocols
    offered = ("Sec-WebSocket-Protocol", "chat, v2")
    assert sidecar.ask("GET", "/items/x", [offered]).json()["code"] == "missing_credential"
    assert sidecar.ask("GET", "/items/x", [offered, ("X-Api-Key", key)]).status == 200
    assert sidecar.ask("GET", "/public/x", [offered]).status == 200
    assert [request.all("Sec-WebSocket-Protocol") for request in upstream.requests()] == [["chat, v2"]] * 2


@pytest.mark.requirement("S2.4")
def test_wrong_or_several_keys_among_the_protocols_are_refused(
    protocols: tuple[Sidecar, str], upstream: Upstream
) -> None:
    sidecar, key = protocols
    for offered in (f"chat, {key}x", f"{key}, {key}", f"{key}, hv_live_other"):
        assert sidecar.ask("GET", "/items/x", [("Sec-WebSocket-Protocol", offered)]).status == 401
    assert sidecar.ask("GET", "/public/x", [("Sec_WebSocket_Protocol", key)]).status == 200
    assert not any(key.encode() in request.head for request in upstream.requests())


@pytest.mark.requirement("S2.12")
def test_a_key_among_the_protocols_is_not_a_copy_but_one_inside_another_is(start_shared_sidecar: StartSidecar) -> None:
    sidecar = start_shared_sidecar(PROTOCOLS + "  copies: refuse\n")
    key = sidecar.keys.issue(scopes=("read",)).text
    assert sidecar.ask("GET", "/items/x", [("Sec-WebSocket-Protocol", f"chat, {key}")]).status == 200
    assert sidecar.ask("GET", "/items/x", [("Sec-WebSocket-Protocol", f"bearer.{key}, {key}")]).status == 400


@pytest.mark.requirement("S2.12")
def test_forward_auth_refuses_a_key_among_the_protocols_because_no_proxy_removes_it(
    start_shared_sidecar: StartSidecar,
) -> None:
    config = f"{PROTOCOLS}decision: 127.0.0.1:0\nops: 127.0.0.1:0\ntrusted_proxies: [127.0.0.1]\n"
    decider: Decider = start_decider(start_shared_sidecar, config, {"Kr": "read"})
    key, offered = decider.keys["Kr"].text, ("Sec-WebSocket-Protocol", "chat")
    for dialect in DIALECTS:
        asked = [decider.ask(dialect, "GET", "/items/x", [offered, ("X-Api-Key", key)])]
        asked.append(decider.ask(dialect, "GET", "/items/x", [("Sec-WebSocket-Protocol", f"chat, {key}")]))
        assert [status_of(response) for response in asked] == [200, 400]
        removed = [value for name, value in asked[0].headers if name == "X-Envoy-Auth-Headers-To-Remove"]
        assert not any("sec-websocket-protocol" in value for value in removed)
