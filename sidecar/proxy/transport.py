"""Writes gathered over one turn of the loop.

Deciding on every request that has arrived and only then sending all that came of it costs a quarter less CPU than
taking turns: a send wakes the other end, and drives our own code out of the caches. Only for what is whole: pieces of
a stream are written at once, because that is what tells whether the reader keeps up.
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
    """The Date of a response (RFC 9110 section 6.6.1), as a line that begins with CR LF; made once a second."""

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
    """A connection was used in a way that its state does not allow."""


class WriteBatcher:
    """Writes in order before the loop waits again, or at `flush`."""

    __slots__ = ("_loop", "_waiting", "_write")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # asyncio's own `writelines` does not pause whoever writes too much by it, in Python 3.13.0 for one.
        self._write = _as_one if isinstance(loop, asyncio.BaseEventLoop) else _together
        self._waiting: list[tuple[asyncio.WriteTransport, Sequence[bytes]]] = []

    def write_soon(self, transport: asyncio.WriteTransport, pieces: Sequence[bytes]) -> None:
        """Write `pieces` soon; not at all where `transport` is closing by then."""
        if not self._waiting:
            self._loop.call_soon(self.flush)
        self._waiting.append((transport, pieces))

    def flush(self) -> None:
        """Write now; to be called before a transport is closed or half-closed in order."""
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
"""Read at a time of a body that is passed on as it comes. A piece is what is held for a client that stops reading."""
READ_BYTES: Final = 16 * 1024
"""Read at a time of everything else; and of such a body, too, while a sixteenth of the limit is held."""
SHORT_READ_BYTES: Final = 4 * 1024
"""Read at a time of anything, while a quarter of the limit is held: this costs CPU, and leaves room for thousands."""
UNREAD_BYTES: Final = 8 * 1024
"""More of a body that nobody reads is held back. A read can add one piece."""
_TLS_BYTES: Final = 128 * 1024
"""What the transport below TLS may hold before it says so: asyncio's limit, and about as much again."""


_ZEROES = memoryview(bytes(READ_BYTES))


class HeldBytes:
    """The bytes in memory for clients that are behind, or whose upstream is, and the buffers that are read into.

    A connection tells of them when it is held back, so that those that keep up cost nothing. Past `limit`, those
    clients are reset that have been behind for longest without any progress.
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
        """What the next read of any connection may fill; the other, where a body is passed on as it comes. It is the
        same memory: what was read is copied before anything else is read."""
        self.total = 0
        self.on_reset: Callable[[str], None] | None = None
        """Gets the address of each client that is reset."""
        self.on_relieved: Callable[[], None] | None = None
        """Told when next to nothing is held any longer, and much was."""
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
        """What was read into `buffer`. A head may hold a key, which must not stay there."""
        data = self._longest[:size].tobytes()
        if size <= READ_BYTES:
            self._longest[:size] = _ZEROES[:size]
        return data

    def tell(self, transport: asyncio.Transport | None, *, writing_paused: bool, reading_paused: bool) -> None:
        """A client's connection is held back, or goes on.

        Counted is what may be held for it, in whole pieces: one of a response; of a body one here, and one on its way
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
        """Some of it was sent: others have been behind for longer."""
        if transport in self._behind:
            self._behind[transport] = self._behind.pop(transport)

    def give_back(self, transport: asyncio.Transport | None) -> None:
        """Nothing is held for this client."""
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
    """A connection, to a client or to the upstream, whose reading can be held back."""

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
        """Nothing more is sent. False where that cannot be told without closing."""
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
        """It is held back, or goes on."""


_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def reset(transport: asyncio.Transport) -> None:
    """Close at once, unsent bytes forgotten, so that the other end can tell it from an end."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        _reset_on_close(sock)
    transport.abort()


def was_reset(transport: asyncio.Transport | None) -> bool:
    """Whether the other end has reset the connection; what is not read from does not tell of it by itself."""
    sock = transport.get_extra_info("socket") if transport is not None else None
    return sock is not None and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


def reset_socket(sock: socket.socket) -> None:
    """The same, where there is no transport yet."""
    with sock, suppress(OSError):  # It may be gone already.
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
    """error: what connecting raised, or a transport was lost with; None where the upstream closed it."""
    if error is None:
        return UpstreamCause.CLOSED
    if isinstance(error, ssl.SSLError):
        return tls_cause(error)
    if isinstance(error, socket.gaierror | UnicodeError):
        return UpstreamCause.DNS
    number = error.errno if isinstance(error, OSError) else None
    if number is None and isinstance(error, ConnectionError):  # asyncio's own, of a handshake that broke off.
        return UpstreamCause.RESET
    if number is None and (numbered := _NUMBERED.search(str(error))) is not None:
        number = int(numbered[1])  # asyncio joins the errors of several addresses into one text.
    return _CAUSES.get(number or 0, UpstreamCause.OTHER)
