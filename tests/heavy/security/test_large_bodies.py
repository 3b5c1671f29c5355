"""Bodies of a gibibyte (or LARGE_BODY_MIB) stream both ways and are never gathered."""

import hashlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.harness.running import Sidecar, StartSidecar
from tests.harness.wire import exchange, request_bytes
from tests.heavy.security.large import SIZE, TIMEOUT_SECONDS, LargeUpstream, Reader, pieces, stream
from tests.wire.security.behind import GROWTH_BYTES, configured, forget_peak, peak

STALLED_WITHIN_SECONDS = 30.0


@pytest.fixture(scope="module")
def digest() -> str:
    whole = hashlib.sha256()
    for piece in pieces():
        whole.update(piece)
    return whole.hexdigest()


@pytest.fixture(scope="module")
def large_upstream() -> Iterator[LargeUpstream]:
    with LargeUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def sidecar(start_shared_sidecar: StartSidecar, large_upstream: LargeUpstream) -> Sidecar:
    return start_shared_sidecar(configured(""), upstream_url=large_upstream.url)


@contextmanager
def connected(sidecar: Sidecar) -> Iterator[socket.socket]:
    """A connection, during which the sidecar's memory must not grow."""
    assert exchange(sidecar.data, request_bytes("POST", "/public/warm", body=b"x")).status == 200
    before = forget_peak(sidecar)
    with socket.create_connection(sidecar.data, timeout=TIMEOUT_SECONDS) as sock:
        yield sock
    assert peak(sidecar) - before <= GROWTH_BYTES


@pytest.mark.requirement("R1.5")
@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_response_streams_in_bounded_memory(sidecar: Sidecar, digest: str, chunked: bool) -> None:
    with connected(sidecar) as sock:
        sock.sendall(request_bytes("GET", "/public/down/chunked" if chunked else "/public/down"))
        reader = Reader(sock)
        reader.head()
        if chunked:
            reader.chunks()
        else:
            reader.exactly(SIZE)
    assert (reader.received, reader.digest) == (SIZE, digest)


@pytest.mark.requirement("R1.5")
@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_upload_streams_in_bounded_memory(sidecar: Sidecar, digest: str, chunked: bool) -> None:
    framing = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(SIZE))
    with connected(sidecar) as sock:
        sock.sendall(request_bytes("PUT", "/public/up", [framing]))
        stream(sock, chunked=chunked)
        reader = Reader(sock)
        assert reader.head().startswith(b"HTTP/1.1 200 ")
        reader.exactly(len(digest))
    assert reader.digest == hashlib.sha256(digest.encode()).hexdigest()


@pytest.mark.requirement("R1.5")
def test_a_large_response_to_a_slow_reader_streams_in_bounded_memory(
    sidecar: Sidecar, large_upstream: LargeUpstream, digest: str
) -> None:
    """It reads a part, then nothing until the upstream, too, is held back; and so on to the end."""
    parts = 32
    with connected(sidecar) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.sendall(request_bytes("GET", "/public/down"))
        reader = Reader(sock)
        reader.head()
        for part in range(parts):
            large_upstream.stalled.clear()
            if part < parts - 4:
                assert large_upstream.stalled.wait(STALLED_WITHIN_SECONDS), "the upstream is not held back"
            reader.exactly(SIZE // parts)
    assert (reader.received, reader.digest) == (SIZE, digest)
