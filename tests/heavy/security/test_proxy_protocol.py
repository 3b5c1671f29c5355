"""HAProxy before the sidecar, telling its clients by the PROXY protocol."""

import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.ports import comes_to_listen, free_port
from tests.harness.processes import STOP_SECONDS
from tests.harness.recording import Upstream
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.tools import needed
from tests.harness.wire import TIMEOUT_SECONDS, Connection, Response, exchange, request_bytes
from tests.wire.proxy.certificates import Authority

CONFIG = """\
listen: 127.0.0.1:8080
ops: 127.0.0.1:9090
upstream: http://127.0.0.1:8000
proxy_protocol: true
trusted_proxies: [127.0.0.1]
scopes: {read: Read}
quotas:
  anonymous: {limit: 2, per: hour, by: address, only: anonymous}
routes:
- GET /public/**: {public: true}
- GET /few/**: {public: true, quotas: [anonymous]}
"""
HAPROXY = """\
defaults
  mode tcp
  timeout connect 20s
  timeout client 60s
  timeout server 60s
listen sidecar
  bind 127.0.0.1:{port}
  bind ::1:{port}
  server a 127.0.0.1:{sidecar} {option} source 127.0.0.1 check inter 100ms
"""
VERSIONS = pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c"])


@pytest.fixture(scope="module")
def sidecar(start_shared_sidecar: StartSidecar) -> Sidecar:
    return start_shared_sidecar(CONFIG)


@contextmanager
def haproxy(folder: Path, sidecar: Sidecar, option: str) -> Iterator[int]:
    """The port that it listens on, at 127.0.0.1 and ::1."""
    port, config = free_port(), folder / "haproxy.cfg"
    config.write_text(HAPROXY.format(port=port, sidecar=sidecar.data[1], option=option), encoding="utf-8")
    with subprocess.Popen([needed("haproxy"), "-db", "-f", str(config)], stderr=subprocess.DEVNULL) as process:
        try:
            assert comes_to_listen(process, port)
            yield port
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)


def ask(port: int, target: str, *, source: str) -> Response:
    host = "::1" if ":" in source else "127.0.0.1"
    with Connection((host, port), source=source) as connection:
        return connection.ask("GET", target, [("X-Forwarded-For", "6.6.6.6")])


@VERSIONS
def test_the_upstream_and_the_log_learn_the_client_of_haproxy(
    sidecar: Sidecar, upstream: Upstream, tmp_path: Path, option: str
) -> None:
    with haproxy(tmp_path, sidecar, option) as port:
        for source in ("127.0.0.5", "::1"):
            target = f"/public/{option.replace(' ', '-')}/{source.replace(':', '-')}"
            assert ask(port, target, source=source).status == 200
            [seen] = [request for request in upstream.requests() if request.target == target]
            assert seen.header("X-Forwarded-For") == source
            assert sidecar.logged(lambda line, path=target: line["path"] == path)["client_address"] == source  # type: ignore[misc]


def test_a_quota_by_address_counts_the_clients_of_haproxy(sidecar: Sidecar, tmp_path: Path) -> None:
    with haproxy(tmp_path, sidecar, "send-proxy-v2") as port:
        for source in ("127.0.0.6", "127.0.0.7"):
            assert [ask(port, "/few/x", source=source).status for _ in range(3)] == [200, 200, 429]


@VERSIONS
def test_health_checks_of_haproxy_pass(sidecar: Sidecar, tmp_path: Path, option: str) -> None:
    refused = 'sidecar_connections_refused_total{limit="proxy_protocol"}'
    before = sidecar.metric(refused)
    with haproxy(tmp_path, sidecar, f"{option} check-send-proxy") as port:
        for number in range(20):
            assert ask(port, f"/public/{number}", source="127.0.0.5").status == 200
    assert sidecar.metric(refused) == before


def test_without_haproxy_there_is_no_response(sidecar: Sidecar) -> None:
    with Connection(sidecar.data) as connection:
        connection.send(request_bytes("GET", "/public/x", [], b""))
        assert connection.rest() == b""
    assert sidecar.metric('sidecar_connections_refused_total{limit="proxy_protocol"}') > 0
    assert exchange(sidecar.ops, request_bytes("GET", "/readyz", [], b"")).status == 200


def test_tls_passes_through_haproxy(start_sidecar: StartSidecar, tmp_path: Path, upstream: Upstream) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("localhost")
    sidecar = start_sidecar(f"{CONFIG}tls: {{certificate: {certificate}, key: {key}}}\n")
    with haproxy(tmp_path, sidecar, "send-proxy-v2") as port:
        assert over_tls(port, authority.trusting()).startswith(b"HTTP/1.1 200 ")
    [seen] = upstream.requests()
    assert (seen.header("X-Forwarded-For"), seen.header("X-Forwarded-Proto")) == ("127.0.0.8", "https")


def over_tls(port: int, context: ssl.SSLContext) -> bytes:
    with (
        socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS, ("127.0.0.8", 0)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        client.sendall(request_bytes("GET", "/public/x", [], b""))
        return client.recv(65536)
