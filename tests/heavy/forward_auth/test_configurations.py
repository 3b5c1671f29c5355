"""What the configuration of the sidecar, and the proxies' files beside it, say about forward-auth."""

import re
import signal
from fnmatch import fnmatchcase

import pytest

from tests.harness.documents import read_yaml
from tests.harness.headers import STRIPPED
from tests.harness.running import StartSidecar
from tests.harness.wire import Connection, request_bytes
from tests.wire.forward_auth.asking import FILES, IDENTITY, Decider, question, start_decider, status_of

BASE = """\
listen: 127.0.0.1:0
decision: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere
trusted_proxies: [127.0.0.1]
scopes: {read: Read}
routes:
  - "* /public/**": {public: true}
  - GET /items/**: {scopes: [read]}
  - GET /v1/me: {respond: {key: "{key.id}"}}
identity: {headers: {X-Who: "{key.id}", X-Trace: "{request.id}"}, strip: [X-Strip]}
"""


@pytest.fixture(scope="module")
def plain(start_shared_sidecar: StartSidecar) -> Decider:
    return decider_of(start_shared_sidecar, BASE)


def decider_of(start: StartSidecar, config: str) -> Decider:
    return start_decider(start, config, {"Kr": "read"})


def test_only_the_dialects_that_are_named_are_served(start_sidecar: StartSidecar) -> None:
    config = BASE.replace("decision: 127.0.0.1:0", "decision: {listen: '127.0.0.1:0', dialects: [caddy, envoy]}")
    decider = decider_of(start_sidecar, config)
    statuses = {name: decider.ask(name, "GET", "/public/x").status for name in ("nginx", "caddy", "traefik", "envoy")}
    assert statuses == {"nginx": 400, "caddy": 200, "traefik": 400, "envoy": 200}


def test_a_route_with_a_static_response_is_not_forwarded(plain: Decider) -> None:
    for dialect in ("nginx", "caddy", "envoy"):
        response = plain.ask(dialect, "GET", "/v1/me", key="Kr")
        assert (response.status, response.json()["code"]) == (403, "no_route")
    assert plain.sidecar.ask("GET", "/v1/me", key=plain.keys["Kr"]).json() == {"key": plain.keys["Kr"].id}


def test_headers_made_from_the_request_id_are_returned_too(plain: Decider) -> None:
    response = plain.ask("caddy", "GET", "/items/x", [("X-Request-Id", "r-7"), ("X-Trace", "FORGED")], key="Kr")
    assert (response.header("X-Who"), response.header("X-Trace")) == (plain.keys["Kr"].id, "r-7")
    assert plain.ask("caddy", "GET", "/public/x", [("X-Trace", "FORGED")]).header("X-Trace") == ""
    assert status_of(plain.ask("nginx", "GET", "/public/x", [("X_Strip", "1")])) == 400


def test_envoy_keeps_a_key_that_the_service_should_get(start_sidecar: StartSidecar, plain: Decider) -> None:
    forwarding = decider_of(start_sidecar, BASE + "keys: {forward_credential: true}\n")
    removed = [
        decider.ask("envoy", "GET", "/items/x", key="Kr").header("X-Envoy-Auth-Headers-To-Remove")
        for decider in (plain, forwarding)
    ]
    assert [names.split(",")[0] for names in removed] == ["authorization", "x-http-method-override"]
    assert all(names.endswith(",x-strip") for names in removed)


def test_headers_set_by_the_proxy_are_neither_refused_nor_removed(start_sidecar: StartSidecar) -> None:
    identity = BASE.replace("strip: [X-Strip]", "strip: [X-Strip-*], keep: [X-Auth-Request-*, Remote-User]")
    decider = decider_of(start_sidecar, identity)
    kept = [("X-Auth-Request-User", "ada"), ("Remote-User", "ada")]
    for dialect in ("nginx", "caddy", "envoy"):
        assert decider.ask(dialect, "GET", "/public/x", kept).status == 200
        for disguise in ("X_Auth_Request_User", "X-Auth-Request--User", "Remote_User"):
            assert status_of(decider.ask(dialect, "GET", "/public/x", [(disguise, "ada")])) == 400
        response = decider.ask(dialect, "GET", "/public/x", [("X-Strip-This", "1")])
        assert status_of(response) == (200 if dialect == "envoy" else 400)
    removed = decider.ask("envoy", "GET", "/public/x", [*kept, ("X-Strip-This", "1")])
    names = removed.header("X-Envoy-Auth-Headers-To-Remove").split(",")
    assert "x-strip-this" in names
    assert {"x-auth-request-user", "remote-user"}.isdisjoint(names)


def test_a_configured_refusal_reaches_the_client_through_nginx_too(start_sidecar: StartSidecar) -> None:
    body = 'errors: {missing_credential: {status: 418, headers: {X-Why: "no key"}, body: {text: "ä\\n"}}}\n'
    decider = decider_of(start_sidecar, BASE + body)
    response = decider.ask("nginx", "GET", "/items/x")
    assert (response.status, response.header("X-Auth-Status"), response.header("X-Why")) == (403, "418", "no key")
    assert response.header("X-Auth-Body").encode("latin-1") == response.body == '{"text":"ä\\n"}'.encode()
    assert decider.ask("envoy", "GET", "/items/x").status == 418


def test_an_unavailable_store_is_a_503_and_never_a_200(start_sidecar: StartSidecar) -> None:
    decider = decider_of(start_sidecar, BASE)
    decider.sidecar.keys.store.write_bytes(b"not a database" * 1000)
    unseen = [("Authorization", f"Bearer {decider.keys['Kr'].text}")]
    for dialect in ("nginx", "caddy", "envoy"):
        response = decider.ask(dialect, "GET", "/items/x", unseen)
        assert status_of(response) == 503
        assert response.header("Retry-After")


def test_requests_during_the_drain_are_answered_and_closed(start_sidecar: StartSidecar) -> None:
    decider = decider_of(start_sidecar, BASE)
    with decider.connect() as idle, decider.connect() as connection, Connection(decider.sidecar.ops) as ops:
        assert idle.exchange(question("caddy", "GET", "/public/x")).all("Connection") == []
        decider.sidecar.process.signal(signal.SIGTERM)
        while ops.ask("GET", "/readyz").status != 503:
            pass
        response = connection.exchange(question("caddy", "GET", "/public/x"))
        assert (response.status, response.header("Connection")) == (200, "close")
        decider.sidecar.process.signal(signal.SIGTERM)
        assert idle.rest() == b""
    assert decider.sidecar.process.wait() == 0


def test_an_untrusted_peers_connection_is_not_kept(start_sidecar: StartSidecar) -> None:
    decider = decider_of(start_sidecar, BASE.replace("[127.0.0.1]", "[10.0.0.1]"))
    with decider.connect() as connection:
        response = connection.exchange(question("caddy", "GET", "/public/x"))
        assert (response.status, response.header("Connection")) == (403, "close")
        assert connection.rest() == b""


def test_a_connection_without_a_request_is_closed(start_sidecar: StartSidecar) -> None:
    decider = decider_of(start_sidecar, BASE + "limits: {head_timeout: 300ms}\n")
    with decider.connect() as silent, decider.connect() as slow:
        slow.send(request_bytes("GET", "/caddy")[:-2])
        for connection in (silent, slow):
            assert connection.rest().startswith(b"HTTP/1.1 408 Request Timeout\r\n")


def test_every_proxy_s_file_takes_over_every_identity_header() -> None:
    identity = read_yaml((FILES / "sidecar.yaml").read_text(encoding="utf-8"))["identity"]["headers"]
    assert {*identity, "X-Request-Id"} == set(IDENTITY)
    for file in ("nginx.conf", "Caddyfile", "envoy.yaml", "traefik.yaml", "haproxy.cfg"):
        text = (FILES / file).read_text(encoding="utf-8").lower()
        assert [name for name in IDENTITY if name.lower() not in text] == [], file


@pytest.mark.parametrize("file", ["nginx.conf", "Caddyfile", "traefik.yaml", "haproxy.cfg"])
def test_every_proxy_s_file_removes_what_the_sidecar_leaves_to_it(file: str) -> None:
    text = (FILES / file).read_text(encoding="utf-8")
    text = re.sub(r"(del-header \S+) -m beg", r"\1*", text)
    removed = re.findall(
        r'proxy_set_header (\S+) ""|request_header -(\S+)|^ {10}(\S+): ""|del-header (\S+)', text, re.MULTILINE
    )
    patterns = ["".join(found) for found in removed]
    left = [name for name, _ in STRIPPED if not any(fnmatchcase(name, pattern) for pattern in patterns)]
    assert left == []


def test_traefik_is_configured_to_overwrite_and_hide_headers() -> None:
    written = read_yaml((FILES / "traefik.yaml").read_text(encoding="utf-8"))["http"]
    asked, hidden = written["middlewares"]["sidecar"]["forwardAuth"], written["middlewares"]["clean"]["headers"]
    assert asked["address"] == "http://127.0.0.1:8081/traefik"
    assert asked["trustForwardHeader"] is False
    assert set(asked["authResponseHeaders"]) == set(IDENTITY)
    assert {"Authorization", "X-Api-Key", "X-HTTP-Method-Override"} <= hidden["customRequestHeaders"].keys()
    assert written["routers"]["everything"]["middlewares"] == ["sidecar", "clean"]


def test_haproxy_refuses_what_its_script_did_not_allow() -> None:
    lines = (FILES / "haproxy.cfg").read_text(encoding="utf-8").split("\n")
    after = lines[lines.index("    http-request lua.sidecar") + 1]
    assert after == "    http-request deny deny_status 503 unless { var(txn.sidecar_allows) -m bool }"
    script = (FILES / "haproxy.lua").read_text(encoding="utf-8")
    refused, allowed = script.index("if answer.status ~= 200 then return refuse"), script.index('"txn.sidecar_allows"')
    assert refused < allowed
