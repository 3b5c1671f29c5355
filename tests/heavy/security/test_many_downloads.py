"""Many downloads at a time: an eager upstream's bytes are not buffered for slow clients."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.harness.running import Sidecar, StartSidecar
from tests.harness.wire import exchange, request_bytes
from tests.wire.security.behind import MIB, configured, forget_peak, peak

CLIENTS = 24
SIZE = 16 * MIB
EACH_BYTES = 2 * MIB
"""What one download may cost the sidecar: buffers of two sockets."""


class Eager(BaseHTTPRequestHandler):
    """Sends as fast as it is taken."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        size = SIZE if self.path.endswith("/large") else 1
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        self.wfile.write(bytes(size))

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def sidecar(start_sidecar: StartSidecar) -> Iterator[Sidecar]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Eager) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield start_sidecar(configured(""), upstream_url=f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()
        thread.join()


@pytest.mark.requirement("R1.5")
def test_many_downloads_at_a_time(sidecar: Sidecar) -> None:
    assert exchange(sidecar.data, request_bytes("GET", "/public/small")).status == 200
    before = forget_peak(sidecar)
    sockets = [socket.create_connection(sidecar.data, timeout=30) for _ in range(CLIENTS)]
    try:
        for sock in sockets:
            sock.sendall(request_bytes("GET", "/public/large", [("Connection", "close")]))
        received = [0] * CLIENTS
        while any(count < SIZE for count in received):
            for number, sock in enumerate(sockets):
                if received[number] < SIZE:
                    received[number] += len(sock.recv(MIB))
    finally:
        for sock in sockets:
            sock.close()
    assert peak(sidecar) - before <= CLIENTS * EACH_BYTES
