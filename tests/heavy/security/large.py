"""Streams too large to hold: made on the fly, told apart by their SHA-256."""

import hashlib
import os
import re
import select
import socket
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from tests.wire.security.behind import MIB

SIZE = int(os.environ.get("LARGE_BODY_MIB", "1024")) * MIB
TIMEOUT_SECONDS = 30.0
STALL_SECONDS = 0.05
"""A sender that can send nothing for so long is held back."""

_PATTERN = bytes(range(256)) * 1024
_PIECE_BYTES = len(_PATTERN)


def pieces() -> Iterator[bytes]:
    """SIZE bytes, no two pieces alike."""
    for number in range(SIZE // _PIECE_BYTES):
        yield number.to_bytes(8) + _PATTERN[8:]


def framed(piece: bytes, *, chunked: bool) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece


def stream(sock: socket.socket, *, chunked: bool, stalled: threading.Event | None = None) -> None:
    """Send all of it."""
    for piece in pieces():
        while stalled is not None and not select.select([], [sock], [], STALL_SECONDS)[1]:
            stalled.set()
        sock.sendall(framed(piece, chunked=chunked))
    if chunked:
        sock.sendall(b"0\r\n\r\n")


class Reader:
    """Reads a message off a socket and keeps none of it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = b""
        self._digest = hashlib.sha256()
        self.received = 0

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()

    def head(self) -> bytes:
        while b"\r\n\r\n" not in self._buffer:
            self._fill()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n"

    def exactly(self, size: int) -> None:
        """Take `size` bytes of the body."""
        while size:
            if not self._buffer:
                self._fill()
            taken, self._buffer = self._buffer[:size], self._buffer[size:]
            self._digest.update(taken)
            self.received += len(taken)
            size -= len(taken)

    def chunks(self) -> None:
        while size := int(self._line(), 16):
            self.exactly(size)
            assert self._line() == b""
        assert self._line() == b""

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            self._fill()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _fill(self) -> None:
        data = self._sock.recv(1 << 18)
        assert data, "closed early"
        self._buffer += data


class LargeUpstream:
    """Answers one request after the other: `/public/down` with the stream, others with the digest of their body."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.stalled = threading.Event()
        """What it sends is not taken."""
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(TIMEOUT_SECONDS)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(TIMEOUT_SECONDS)
        reader = Reader(connection)
        head = reader.head().lower()
        chunked = b"chunked" in head
        if b" /public/down" in head:
            chunked = b" /public/down/chunked" in head
            framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % SIZE
            connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + framing + b"\r\n\r\n")
            stream(connection, chunked=chunked, stalled=self.stalled)
            return
        if chunked:
            reader.chunks()
        elif found := re.search(rb"content-length: (\d+)", head):
            reader.exactly(int(found[1]))
        body = reader.digest.encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
