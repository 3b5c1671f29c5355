"""Forward auth behind real proxies, as deploy/forward-auth configures them."""

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.harness.headers import STRIPPED, STRIPPED_BY_PATTERN, disguises
from tests.harness.ports import free_port
from tests.harness.recording import Recorded, Upstream
from tests.harness.running import StartSidecar
from tests.harness.targets import CLIMBS, DISGUISES, MALFORMED
from tests.harness.tools import needed
from tests.harness.wire import Address, Fields, Response, exchange, request_bytes
from tests.heavy.forward_auth.fronts import CONFIGS, running_front
from tests.wire.forward_auth.asking import Decider, start_decider

IDENTITY = ("x-auth-subject", "x-auth-scopes", "x-auth-key-id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """A forward-auth proxy, and the service behind it."""

    name: str
    address: Address
    decider: Decider
    upstream: Upstream

    def ask(self, method: str, target: str, headers: Fields = (), *, key: str = "", body: bytes = b"") -> Response:
        fields = [*self.decider.credential(key), *headers, ("Connection", "close")]
        raw = request_bytes(method, target, fields, body)
        return exchange(self.address, raw, head_only=method == "HEAD")

    def passes(self, method: str, target: str, headers: Fields = (), *, key: str = "", body: bytes = b"") -> Recorded:
        response = self.ask(method, target, headers, key=key, body=body)
        assert response.status == 200, response
        return self.upstream.last()

    def refuses(self, status: int, code: str, method: str, target: str, *, key: str = "") -> Response:
        """A refusal in the sidecar's words; nothing reached the service."""
        response = self.ask(method, target, key=key)
        assert (response.status, response.json()["code"]) == (status, code), response
        assert response.header("Cache-Control") == "no-store"
        assert response.header("Content-Type") == "application/problem+json"
        assert self.upstream.requests() == []
        return response


@pytest.fixture(scope="module")
def decider(start_shared_sidecar: StartSidecar) -> Decider:
    return start_decider(start_shared_sidecar)


FROZEN = {"nginx": 500, "caddy": 504, "envoy": 503, "haproxy": 504}
"""Each proxy's response if the sidecar does not respond within 5 seconds."""


@pytest.fixture(scope="module")
def started(
    decider: Decider, upstream_process: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Address]]:
    """Running proxies, by name."""
    with ExitStack() as stack:
        yield _Fronts(stack, tmp_path_factory, decider, upstream_process)


class _Fronts(dict[str, Address]):
    """Each is started on first use, so that a missing one only skips its own tests."""

    def __init__(self, stack: ExitStack, folders: pytest.TempPathFactory, decider: Decider, upstream: Upstream) -> None:
        super().__init__()
        self._stack, self._folders, self._decider, self._upstream = stack, folders, decider, upstream

    def __missing__(self, name: str) -> Address:
        front = running_front(
            name, self._folders.mktemp(name), decision=self._decider.address[1], service=self._upstream.port
        )
        self[name] = address = self._stack.enter_context(front)
        return address


@pytest.fixture(params=sorted(CONFIGS))
def front(request: pytest.FixtureRequest, started: dict[str, Address], decider: Decider, upstream: Upstream) -> Front:
    name: str = request.param
    return Front(name=name, address=started[name], decider=decider, upstream=upstream)


@pytest.mark.requirement("S5.1")
def test_what_is_allowed_reaches_the_service_with_the_keys_identity(front: Front) -> None:
    seen = front.passes("GET", "/items/a%20b+c;d=1?x=%2F+%2b&y=a%26b&&z=%7E~", key="Kr")
    assert seen.target == "/items/a%20b+c;d=1?x=%2F+%2b&y=a%26b&&z=%7E~"
    assert seen.header("X-Auth-Subject") == "t-Kr"
    assert seen.header("X-Auth-Scopes") == "read"
    assert seen.header("X-Auth-Key-Id") == front.decider.keys["Kr"].id
    assert seen.header("X-Request-Id")
    assert seen.header("Host") == "api.test"
    assert front.decider.keys["Kr"].text.encode() not in seen.head


@pytest.mark.requirement("S5.1")
def test_a_key_in_another_header_is_found_and_stays_with_the_proxy(front: Front) -> None:
    key = front.decider.keys["Kw"].text
    seen = front.passes("POST", "/items/x", [("X-Api-Key", key)], body=b"hello" * 1000)
    assert seen.body == b"hello" * 1000
    assert seen.header("X-Auth-Subject") == "t-Kw"
    assert key.encode() not in seen.head


@pytest.mark.requirement("S5.1")
def test_a_request_without_a_key_is_401_in_the_sidecars_words(front: Front) -> None:
    response = front.refuses(401, "missing_credential", "GET", "/items/x")
    assert response.header("WWW-Authenticate") == 'Bearer realm="api"'
    response = front.refuses(401, "invalid_key", "GET", "/public/x", key="Kv")
    assert response.header("WWW-Authenticate") == 'Bearer realm="api", error="invalid_token"'


@pytest.mark.requirement("S5.1")
def test_the_wrong_scope_is_403(front: Front) -> None:
    response = front.refuses(403, "insufficient_scope", "POST", "/items/x", key="Kr")
    assert 'error="insufficient_scope"' in response.header("WWW-Authenticate")
    front.refuses(403, "no_route", "GET", "/nowhere", key="Ka")


@pytest.mark.requirement("S5.1")
def test_an_exhausted_quota_is_429_and_earlier_responses_report_what_is_left(front: Front) -> None:
    told = front.decider.sidecar.keys.told("issue", "--name", "few", "--scope", "read", "--quota", "general=1")
    bearer = [("Authorization", f"Bearer {told['key']}")]
    allowed = front.ask("GET", "/items/x", bearer)
    assert (allowed.status, allowed.header("X-RateLimit-Limit"), allowed.header("X-RateLimit-Remaining")) == (
        200,
        "1",
        "0",
    )
    front.upstream.clear()
    refused = front.ask("GET", "/items/x", bearer)
    assert (refused.status, refused.json()["code"]) == (429, "quota_exceeded")
    assert int(refused.header("Retry-After")) > 0
    assert refused.header("X-RateLimit-Remaining") == "0"
    assert front.upstream.requests() == []


@pytest.mark.requirement("S5.1")
def test_a_response_without_a_quota_reports_none(front: Front) -> None:
    response = front.ask("GET", "/public/x")
    assert response.status == 200
    assert not [name for name, _ in response.headers if name.lower().startswith(("x-ratelimit", "ratelimit"))]


@pytest.mark.requirement("S5.1")
def test_a_body_in_chunks_reaches_the_service(front: Front) -> None:
    fields = [*front.decider.credential("Kw"), ("Transfer-Encoding", "chunked"), ("Connection", "close")]
    raw = request_bytes("POST", "/items/x", fields) + b"5\r\nhello\r\n0\r\n\r\n"
    assert exchange(front.address, raw).status == 200
    seen = front.upstream.last()
    assert (seen.body, seen.header("X-Auth-Subject")) == (b"hello", "t-Kw")


@pytest.mark.requirement("S5.1")
def test_the_client_s_address_is_the_sockets(front: Front) -> None:
    target = f"/public/from-{front.name}"
    fields = [("X-Forwarded-For", "6.6.6.6"), ("Connection", "close")]
    assert exchange(front.address, request_bytes("GET", target, fields), source="127.0.0.7").status == 200
    line = front.decider.sidecar.logged(lambda line: line["path"] == target)
    assert line["client_address"] == "127.0.0.7"


@pytest.mark.requirement("S5.1")
@pytest.mark.parametrize("front", ["envoy"], indirect=True)
def test_a_request_over_http_2_is_decided_on_like_any_other(front: Front) -> None:
    where = f"http://127.0.0.1:{front.address[1]}/items/x"
    curl = [needed("curl"), "-s", "-o", "/dev/null", "-w", "%{http_version} %{http_code}", "--http2-prior-knowledge"]
    key = ["-H", f"Authorization: Bearer {front.decider.keys['Kr'].text}"]
    told = [subprocess.run([*curl, *more, where], capture_output=True, check=True).stdout for more in (key, [])]
    assert told == [b"2 200", b"2 401"]
    assert front.upstream.last().header("X-Auth-Subject") == "t-Kr"


@pytest.mark.requirement("S5.1")
def test_head_is_answered_without_a_body(front: Front) -> None:
    assert front.ask("HEAD", "/items/x", key="Kr").status == 200
    assert front.ask("HEAD", "/items/x").status == 401


@pytest.mark.requirement("S5.1")
def test_nothing_gets_past_a_sidecar_that_is_down(
    front: Front, tmp_path_factory: pytest.TempPathFactory, upstream: Upstream
) -> None:
    folder = tmp_path_factory.mktemp("alone")
    with running_front(front.name, folder, decision=free_port(), service=upstream.port) as address:
        for target in ("/public/x", "/items/x"):
            assert exchange(address, request_bytes("GET", target)).status >= 500
    assert upstream.requests() == []


@pytest.mark.requirement("S5.1")
def test_nothing_waits_for_or_bypasses_a_frozen_sidecar(
    started: dict[str, Address], decider: Decider, upstream: Upstream
) -> None:
    fronts = {name: started[name] for name in CONFIGS}
    os.kill(decider.sidecar.process.pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(len(fronts)) as pool:
            asked = {name: pool.submit(exchange, at, request_bytes("GET", "/public/x")) for name, at in fronts.items()}
            told = {name: response.result().status for name, response in asked.items()}
    finally:
        os.kill(decider.sidecar.process.pid, signal.SIGCONT)
    assert told == FROZEN
    assert upstream.requests() == []


@pytest.mark.requirement("S5.2")
@pytest.mark.parametrize("name", ["X-Auth-Subject", "X-Auth-Scopes", "X-Auth-Key-Id"])
@pytest.mark.parametrize("target", ["/public/x", "/items/x"])
def test_an_identity_header_of_the_clients_is_overwritten(front: Front, name: str, target: str) -> None:
    key = "Kr" if target.startswith("/items") else ""
    seen = front.passes("GET", target, [(name, "FORGED"), (name.upper(), "FORGED")], key=key)
    assert b"FORGED" not in seen.head
    told = {field: value for field, value in seen.headers if field.lower() in IDENTITY and value}
    assert bool(told) == bool(key)


@pytest.mark.requirement("S5.2")
@pytest.mark.parametrize("name", ["X-Auth-Subject", *(name for name, _ in [*STRIPPED, *STRIPPED_BY_PATTERN])])
def test_another_spelling_does_not_pass_either(front: Front, name: str) -> None:
    for form in disguises(name):
        response = front.ask("GET", "/public/x", [(form, "FORGED")])
        assert response.status in (200, 400), (form, response)
        seen = front.upstream.requests()
        assert bool(seen) == (response.status == 200)
        assert all(b"FORGED" not in request.head for request in seen), form
        front.upstream.clear()


@pytest.mark.requirement("S5.2")
def test_names_that_the_proxy_removes_are_not_refused(front: Front) -> None:
    seen = front.passes("GET", "/items/x", [(name, "FORGED") for name, _ in STRIPPED], key="Kr")
    assert b"FORGED" not in seen.head
    assert seen.header("X-Auth-Subject") == "t-Kr"


@pytest.mark.requirement("S5.2")
def test_a_family_of_names_is_removed_where_the_proxy_can_and_refused_elsewhere(front: Front) -> None:
    for name, _ in STRIPPED_BY_PATTERN:
        response = front.ask("GET", "/items/x", [(name, "FORGED")], key="Kr")
        assert response.status == (400 if front.name == "nginx" else 200), name
        assert all(b"FORGED" not in request.head for request in front.upstream.requests())
        front.upstream.clear()


@pytest.mark.requirement("S5.2")
def test_a_connection_field_does_not_remove_the_sidecars_headers(front: Front) -> None:
    for line in ("X-Auth-Subject", "keep-alive, x-auth-key-id , X-AUTH-SUBJECT"):
        raw = request_bytes("GET", "/items/x", [*front.decider.credential("Kr"), ("Connection", line)])
        response = exchange(front.address, raw)
        assert response.status in (200, 400)
        for seen in front.upstream.requests():
            assert seen.header("X-Auth-Subject") == "t-Kr"
            assert seen.header("X-Auth-Key-Id") == front.decider.keys["Kr"].id


@pytest.mark.requirement("S5.3")
def test_the_carriers_are_the_proxys_own(front: Front) -> None:
    carried = {"Method": ("X-Original-Method", "X-Forwarded-Method"), "URI": ("X-Original-URI", "X-Forwarded-Uri")}
    forged = [(name, "GET") for name in carried["Method"]] + [(name, "/public/x") for name in carried["URI"]]
    response = front.ask("POST", "/admin/x", forged, key="Kr")
    assert response.status in (400, 403), response
    assert front.upstream.requests() == []


@pytest.mark.requirement("S5.4")
@pytest.mark.parametrize("target", [*CLIMBS, *DISGUISES])
def test_a_path_in_disguise_opens_nothing(front: Front, target: str) -> None:
    for key in ("", "Kr", "Ka"):
        assert front.ask("GET", target, key=key).status in (400, 401, 403), key
        assert front.upstream.requests() == []


@pytest.mark.requirement("S5.4")
@pytest.mark.parametrize("piece", MALFORMED)
def test_forbidden_bytes_in_a_path_are_refused(front: Front, piece: str) -> None:
    for key in ("", "Ka"):
        assert front.ask("GET", f"/public/{piece}", key=key).status == 400, key
        assert front.upstream.requests() == []
