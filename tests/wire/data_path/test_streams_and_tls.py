"""The data path as `sidecar serve` puts it together: streams of revoked keys, TLS on both sides, HTTP/1.0."""

import socket
import time
from pathlib import Path

import pytest

from tests.harness.recording import Upstream
from tests.harness.running import StartSidecar
from tests.harness.wire import request_bytes
from tests.wire.proxy.certificates import Authority
from tests.wire.security.site import CONFIG

BOUND_SECONDS = 10.0
"""The time within which README promises that streams of a revoked key end."""
CLOSED = b"\x88\x0e\x03\xf0access ended"
"""A WebSocket's close frame with the code 1008."""
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


@pytest.mark.requirement("R1.6")
def test_streams_of_a_revoked_or_narrowed_key_end_within_the_stated_bound(
    start_sidecar: StartSidecar, upstream: Upstream
) -> None:
    sidecar = start_sidecar(CONFIG)
    kept, revoked, narrowed = [sidecar.keys.issue(name, scopes=("read",)) for name in ("kept", "revoked", "narrowed")]
    with sidecar.connect() as lasting, sidecar.connect() as ending, sidecar.connect() as losing:
        for stream, key in ((lasting, kept), (ending, revoked), (losing, narrowed)):
            asking = [("Authorization", f"Bearer {key.text}"), ("Connection", "Upgrade"), ("Upgrade", "websocket")]
            upstream.plan(SWITCHED)
            assert stream.exchange(request_bytes("GET", "/items/chat", asking)).status == 101
        sidecar.keys.told("revoke", revoked.id)
        sidecar.keys.told("change", narrowed.id, "--scope", "write")
        sidecar.keys.told("change", kept.id, "--scope", "read", "--scope", "write")
        began = time.monotonic()
        assert ending.rest() == losing.rest() == CLOSED
        assert time.monotonic() - began < BOUND_SECONDS
        for key, reason in ((revoked, "revoked_key"), (narrowed, "insufficient_scope")):
            assert sidecar.logged(lambda line, id=key.id: line["key_id"] == id)["reason"] == reason
            assert sidecar.metric(f'sidecar_streams_ended_total{{reason="{reason}"}}') == 1
        lasting.send(b"still open\r\n\r\n")
        assert lasting.receive().status == 400
    assert upstream.requests()[-1].head == b"still open\r\n\r\n"


@pytest.mark.requirement("R1.6")
def test_an_upgrade_without_a_key_is_a_401_and_the_upstream_is_not_contacted(
    start_sidecar: StartSidecar, upstream: Upstream
) -> None:
    asking = [("Connection", "Upgrade"), ("Upgrade", "websocket")]
    assert start_sidecar(CONFIG).ask("GET", "/items/chat", asking).status == 401
    assert upstream.requests() == []


def test_requests_pass_over_tls_as_configured(start_sidecar: StartSidecar, upstream: Upstream, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("sidecar")
    sidecar = start_sidecar(f"{CONFIG}tls: {{certificate: {certificate}, key: {key}}}\n")
    plain = socket.create_connection(sidecar.data, timeout=10)
    with authority.trusting().wrap_socket(plain, server_hostname="localhost") as secured:
        secured.sendall(request_bytes("GET", "/public/x"))
        assert secured.recv(12) == b"HTTP/1.1 200"
    assert upstream.last().header("X-Forwarded-Proto") == "https"


@pytest.mark.parametrize("option", ["tls", "upstream.tls"])
def test_a_certificate_that_cannot_be_used_is_one_line_at_start(
    start_sidecar: StartSidecar, tmp_path: Path, option: str
) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate at all")
    if option == "tls":
        config = f"{CONFIG}tls: {{certificate: {bad}, key: {bad}}}\n"
    else:
        config = CONFIG.replace("upstream: http://127.0.0.1:1", f"upstream: {{url: 'https://u', tls: {{ca: {bad}}}}}")
    with pytest.raises(AssertionError) as failed:
        start_sidecar(config, upstream_url="https://127.0.0.1:1")
    told = str(failed.value).splitlines()
    assert "exit status 1" in told[0]
    assert len(told) == 2
    assert told[1].startswith(f"sidecar: cannot use the certificates of {option}: ")
    assert "bad.pem" in told[1]


def test_an_http_1_0_client_without_host_gets_the_upstreams_name(
    start_sidecar: StartSidecar, upstream: Upstream
) -> None:
    sidecar = start_sidecar(CONFIG)
    assert sidecar.exchange(b"GET /public/x HTTP/1.0\r\n\r\n").status == 200
    assert upstream.last().header("Host") == f"127.0.0.1:{upstream.port}"
