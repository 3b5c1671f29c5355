"""Writes, batched over one turn of the loop.

Deciding all requests that have arrived, and only then sending everything, costs a quarter less CPU than alternating: a
send wakes the other end, and evicts our code from the CPU caches. Only for complete messages: pieces of a stream are
written immediately, because that shows whether the reader keeps up.
"""

import asyncio
import errno
import re
import socket
import ssl
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from email.utils import formatdate
from typing import Final

from sidecar.core.errors import UpstreamCause
from sidecar.core.units import Clock
from sidecar.proxy.tls import tls_cause

# The chunked transfer coding, as we write it (RFC 9112 section 7.1). No extensions, no trailers.


LAST_CHUNK = b"0\r\n\r\n"


def framed(data: bytes) -> bytes:
    """`data`, not empty, as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def framed_whole(data: bytes) -> bytes:
    """`data` as a whole body."""
    return (framed(data) if data else b"") + LAST_CHUNK


class DateLine:
    """The Date of a response (RFC 9110 section 6.6.1), as a line that begins with CR LF; updated once a second."""

    __slots__ = ("_clock", "_line", "_second")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._second, self._line = -1, b""

    def __call__(self) -> bytes:
        now = int(self._clock.seconds())
        if now != self._second:
            self._second, self._line = now, b"\r\nDate: " + formatdate(now, usegmt=True).encode()
        return self._line


class IllegalStep(Exception):
    """The connection's state does not allow this step."""


class WriteBatcher:
    """Writes, in order, before the loop waits again, or at `flush`."""

    __slots__ = ("_loop", "_waiting", "_write")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # asyncio's `writelines` does not apply flow control, for example in Python 3.13.0.
        self._write = _as_one if isinstance(loop, asyncio.BaseEventLoop) else _together
        self._waiting: list[tuple[asyncio.WriteTransport, Sequence[bytes]]] = []

    def write_soon(self, transport: asyncio.WriteTransport, pieces: Sequence[bytes]) -> None:
        """Write `pieces` soon, unless `transport` is closing by then."""
        if not self._waiting:
            self._loop.call_soon(self.flush)
        self._waiting.append((transport, pieces))

    def flush(self) -> None:
        """Write now; call it before a transport is closed or half-closed cleanly."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for transport, pieces in waiting:
                if not transport.is_closing():
                    self._write(transport, pieces)


def _together(transport: asyncio.WriteTransport, pieces: Sequence[bytes]) -> None:
    transport.writelines(pieces)


def _as_one(transport: asyncio.WriteTransport, pieces: Sequence[bytes]) -> None:
    transport.write(b"".join(pieces))


STREAM_READ_BYTES: Final = 256 * 1024
"""Bytes per read of a body that is streamed. One such piece is held for a client that stops reading."""
READ_BYTES: Final = 16 * 1024
"""Bytes per read of everything else; also of a streamed body while a sixteenth of the limit is held."""
SHORT_READ_BYTES: Final = 4 * 1024
"""Bytes per read of anything, while a quarter of the limit is held: this costs CPU, but leaves room for thousands."""
UNREAD_BYTES: Final = 8 * 1024
"""An unread body beyond this is paused. A read can add one piece."""
_TLS_BYTES: Final = 128 * 1024
"""What the transport below TLS may buffer before it pauses: asyncio's limit, and about as much again."""


_ZEROES = memoryview(bytes(READ_BYTES))


class HeldBytes:
    """The bytes in memory for clients that are behind, or whose upstream is, and the read buffers.

    A connection reports them when it is paused, so that connections that keep up cost nothing. Above `limit`, the
    clients that have made no progress for longest are reset.
    """

    __slots__ = (
        "_behind",
        "_limit",
        "_longest",
        "_was_much",
        "buffer",
        "on_relieved",
        "on_reset",
        "stream_buffer",
        "total",
    )

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._behind: dict[asyncio.Transport, int] = {}
        self._longest = memoryview(bytearray(STREAM_READ_BYTES))
        self.buffer = self.stream_buffer = self._longest
        """The buffers for the next read of any connection; the second is for streamed bodies. They share their memory.

        Data is copied before anything else is read.
        """
        self.total = 0
        self.on_reset: Callable[[str], None] | None = None
        """Receives the address of each client that is reset."""
        self.on_relieved: Callable[[], None] | None = None
        """Called when almost nothing is held any more, after much was."""
        self._was_much = False
        self._settle()

    @property
    def limit(self) -> int:
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = limit
        self._settle()

    def read(self, size: int) -> bytes:
        """The data in `buffer`, which is then wiped, because a head may contain a key."""
        data = self._longest[:size].tobytes()
        if size <= READ_BYTES:
            self._longest[:size] = _ZEROES[:size]
        return data

    def tell(self, transport: asyncio.Transport | None, *, writing_paused: bool, reading_paused: bool) -> None:
        """A client's connection is paused or resumed.

        Counts the memory that it may need, in whole pieces: one of a response; for a body, one here and one on its way
        to the upstream.
        """
        if transport is None or not (writing_paused or reading_paused):
            self.give_back(transport)
        elif not transport.is_closing():
            piece = len(self.stream_buffer)
            size = 2 * (piece + UNREAD_BYTES) if reading_paused else 0
            if writing_paused:
                size += max(transport.get_write_buffer_size(), piece)
                size += 0 if transport.get_extra_info("sslcontext") is None else _TLS_BYTES
            self.total += size - self._behind.get(transport, 0)
            self._behind[transport] = size
            self._settle()

    def moved(self, transport: asyncio.Transport | None) -> None:
        """Some bytes were sent: this client is no longer the one that made no progress for longest."""
        if transport in self._behind:
            self._behind[transport] = self._behind.pop(transport)

    def give_back(self, transport: asyncio.Transport | None) -> None:
        """Nothing is held for this client any more."""
        if transport in self._behind:
            self.total -= self._behind.pop(transport)
            self._settle()

    def _settle(self) -> None:
        while self.total > self._limit:
            slowest = next(iter(self._behind))
            self.total -= self._behind.pop(slowest)
            reset(slowest)
            if self.on_reset is not None:
                name = slowest.get_extra_info("peername")
                self.on_reset(name[0] if isinstance(name, tuple) else "")
        little, much = self.total <= self._limit // 16, self.total > self._limit // 4
        self.buffer = self._longest[: SHORT_READ_BYTES if much else READ_BYTES]
        self.stream_buffer = self._longest if little else self.buffer
        if little and self._was_much and self.on_relieved is not None:
            self.on_relieved()
        self._was_much = much or (self._was_much and not little)


class FlowControlled(asyncio.BufferedProtocol):
    """A connection, to a client or to the upstream, whose reading can be paused."""

    __slots__ = ("_batcher", "_held", "_reading_paused", "_transport")

    def __init__(self, batcher: WriteBatcher, held: HeldBytes) -> None:
        self._batcher, self._held = batcher, held
        self._transport: asyncio.Transport | None = None
        self._reading_paused = False

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._batcher.flush()
            self._transport.write(data)

    def write_soon(self, *pieces: bytes) -> None:
        if self._transport is not None:
            self._batcher.write_soon(self._transport, pieces)

    def send_eof(self) -> bool:
        """End our side. False if that is impossible without closing."""
        if self._transport is None or self._transport.is_closing() or not self._transport.can_write_eof():
            return False
        self._batcher.flush()
        self._transport.write_eof()
        return True

    def pause_reading(self) -> None:
        if self._transport is not None and not self._reading_paused and not self._transport.is_closing():
            self._reading_paused = True
            self._transport.pause_reading()
            self._tell_held()

    def resume_reading(self) -> None:
        if self._transport is not None and self._reading_paused and not self._transport.is_closing():
            self._reading_paused = False
            self._transport.resume_reading()
            self._tell_held()

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(self._held.read(nbytes))

    def data_received(self, data: bytes) -> None:
        raise NotImplementedError

    def _tell_held(self) -> None:
        """Report that it is paused or resumed."""


_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def reset(transport: asyncio.Transport) -> None:
    """Reset at once and discard unsent bytes, so that the other end can tell it from a normal close."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        _reset_on_close(sock)
    transport.abort()


def was_reset(transport: asyncio.Transport | None) -> bool:
    """Whether the other end has reset the connection, which does not show by itself while reading is paused."""
    sock = transport.get_extra_info("socket") if transport is not None else None
    return sock is not None and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


def reset_socket(sock: socket.socket) -> None:
    """The same, without a transport."""
    with sock, suppress(OSError):  # It may already be gone.
        _reset_on_close(sock)


def _reset_on_close(sock: socket.socket) -> None:
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


# Why a connection to the upstream failed.


_CAUSES: Mapping[int, UpstreamCause] = {
    errno.ECONNREFUSED: UpstreamCause.REFUSED,
    errno.ECONNRESET: UpstreamCause.RESET,
    errno.EHOSTUNREACH: UpstreamCause.NO_ROUTE,
    errno.ENETUNREACH: UpstreamCause.NO_ROUTE,
    errno.ENOENT: UpstreamCause.NO_SOCKET,
    errno.EACCES: UpstreamCause.PERMISSION_DENIED,
    errno.EPERM: UpstreamCause.PERMISSION_DENIED,
    errno.EADDRNOTAVAIL: UpstreamCause.NO_LOCAL_PORT,
    errno.EMFILE: UpstreamCause.OPEN_FILES,
    errno.ENFILE: UpstreamCause.OPEN_FILES,
    errno.EPIPE: UpstreamCause.CLOSED,
    errno.ETIMEDOUT: UpstreamCause.NO_ROUTE,
}
_NUMBERED = re.compile(r"\[Errno (\d+)\]")


def cause_of(error: BaseException | None) -> UpstreamCause:
    """error: raised by connecting, or passed to connection_lost; None if the upstream closed the connection."""
    if error is None:
        return UpstreamCause.CLOSED
    if isinstance(error, ssl.SSLError):
        return tls_cause(error)
    if isinstance(error, socket.gaierror | UnicodeError):
        return UpstreamCause.DNS
    number = error.errno if isinstance(error, OSError) else None
    if number is None and isinstance(error, ConnectionError):  # Raised by asyncio itself if a handshake breaks off.
        return UpstreamCause.RESET
    if number is None and (numbered := _NUMBERED.search(str(error))) is not None:
        number = int(numbered[1])  # asyncio joins the errors of several addresses into one text.
    return _CAUSES.get(number or 0, UpstreamCause.OTHER)
