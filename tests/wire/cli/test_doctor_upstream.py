"""`sidecar doctor` looks at the upstream and at the ops listener."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from sidecar.doctor.probes.host import own_addresses
from tests.harness.ports import free_port
from tests.wire.cli.doctoring import Place, examined
from tests.wire.proxy.certificates import Authority


@contextmanager
def answering(host: str) -> Iterator[int]:
    """An upstream that responds to everything with 501 and the Date."""
    with ThreadingHTTPServer((host, 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_an_upstream_that_listens_at_every_address_is_a_problem(place: Place) -> None:
    if not own_addresses():
        pytest.skip("this host has no address beside loopback")
    with answering("0.0.0.0") as port:  # noqa: S104 - what is looked for
        report = examined(place.config, SIDECAR_UPSTREAM=f"http://127.0.0.1:{port}")
    severity, saw = report["Upstream: ways around"]
    assert severity == "problem"
    assert f":{port}" in saw
    assert report.status == 1
    with answering("127.0.0.1") as port:
        report = examined(place.config, SIDECAR_UPSTREAM=f"http://127.0.0.1:{port}")
    assert report["Upstream: ways around"][0] == "ok"
    assert report["Upstream: clock"] == ("ok", "its Date agrees with this host's clock")


def test_an_upstream_is_judged_by_whether_its_address_is_local(place: Place) -> None:
    for address in own_addresses()[:1]:
        host = f"[{address}]" if ":" in address else address
        assert examined(place.config, SIDECAR_UPSTREAM=f"http://{host}:1")["Upstream: ways around"][0] == "problem"
    # A documentation address (RFC 5737) that nobody has.
    slow = place.config.read_text().replace(
        "upstream: http://127.0.0.1:1", "upstream: {url: http://203.0.113.7:1, connect_timeout: 100ms}"
    )
    place.config.write_text(slow)
    assert examined(place.config)["Upstream: ways around"][0] == "warning"


def test_an_upstream_socket_open_to_everyone_is_reported(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "up.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        path.chmod(0o777)
        report = examined(place.config, SIDECAR_UPSTREAM=f"unix:{path}")
        assert report["Upstream: ways around"][0] == "warning"
        assert report["Upstream: connection"][0] == "ok"
        path.chmod(0o660)
        assert examined(place.config, SIDECAR_UPSTREAM=f"unix:{path}")["Upstream: ways around"][0] == "ok"


def test_an_upstream_that_is_not_running_is_a_problem(place: Place) -> None:
    report = examined(place.config)
    assert report["Upstream: connection"] == (
        "problem",
        "127.0.0.1:1: nothing listens there (connection refused) (cause: refused)",
    )
    assert report["Upstream: clock"][0] == "unchecked"


def test_each_named_upstream_is_examined(place: Place) -> None:
    with answering("127.0.0.1") as port:
        named = f"upstreams: {{billing: 'http://127.0.0.1:1', files: 'http://127.0.0.1:{port}'}}\n"
        place.config.write_text(named + place.config.read_text())
        report = examined(place.config, SIDECAR_UPSTREAM=f"http://127.0.0.1:{port}")
    found = [report[f"Upstream{name}: connection"][0] for name in ("", " billing", " files")]
    assert found == ["ok", "problem", "ok"]
    assert "(`upstreams.billing`), its certificate or `upstreams.billing.tls`" in report.do(
        "Upstream billing: connection"
    )
    assert report["Upstream files: clock"][0] == "ok"


def test_another_program_at_the_ops_address_is_reported(place: Place) -> None:
    with answering("127.0.0.1") as port:
        report = examined(place.config, SIDECAR_OPS=f"127.0.0.1:{port}")
    assert report["Running sidecar: readiness"] == (
        "unchecked",
        f"the server at 127.0.0.1:{port} is not a sidecar's ops listener",
    )


@contextmanager
def speaking_tls(certificate: Path, key: Path) -> Iterator[int]:
    """An upstream run by openssl."""
    port = free_port()
    arguments = ["-accept", f"127.0.0.1:{port}", "-cert", certificate, "-key", key, "-www"]
    process = subprocess.Popen(["openssl", "s_server", *arguments], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        assert any(line.startswith(b"ACCEPT") for line in process.stdout)
        yield port
    finally:
        process.kill()
        process.communicate()


def test_the_upstreams_certificate_is_verified_as_the_sidecar_does(place: Place, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    plain = place.config.read_text()
    with speaking_tls(*authority.issue("up")) as port:
        report = examined(place.config, SIDECAR_UPSTREAM=f"https://localhost:{port}")
        assert report["Upstream: connection"][0] == "problem"
        assert "certificate is not trusted" in report["Upstream: connection"][1]
        trusting = f"upstream: {{url: https://localhost:{port}, tls: {{ca: {authority.certificate}}}}}"
        place.config.write_text(plain.replace("upstream: http://127.0.0.1:1", trusting))
        report = examined(place.config)
    assert report["Upstream: connection"][0] == "ok"
    assert report["Upstream: certificate"][0] == "ok"
