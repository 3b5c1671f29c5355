"""A client's connection: aiohttp parses, we answer. One task a connection, one request after the other."""

import asyncio
import socket
import struct
from dataclasses import dataclass
from typing import Literal, Protocol, cast

from aiohttp import StreamReader
from aiohttp.web_protocol import _ErrInfo
from aiohttp.web_server import Server

from sidecar.config.settings import Limits
from sidecar.core.errors import Reason
from sidecar.proxy.exchange import Exchange
from sidecar.proxy.handler import Handler
from sidecar.proxy.request_body import BadFraming, BodyRules
from sidecar.proxy.request_parser import RequestParser, reason_of
from sidecar.proxy.response_parser import Flow
from sidecar.proxy.transport import WriteBatcher
from sidecar.proxy.upstream import BrokenBody

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRules:
    """What a client may take up.

    linger_seconds: how long it may still send after an answer that ends the connection.
    """

    limits: Limits
    bodies: BodyRules
    linger_seconds: float


class Door(Protocol):
    """Counts connections, and writes for them."""

    batcher: WriteBatcher

    def admit(self, peer: str) -> bool:
        """Whether one more may come; if so, `release` is to follow."""

    def release(self, peer: str) -> None: ...


class ClientConnection(RequestParser):
    """aiohttp's connection, with a loop of our own over its requests.

    aiohttp's own (`start`) makes a task, a writer and a timer of each request, and answers errors by itself, with a
    traceback in the log. Here the handler runs in the connection's task; it is cancelled when the client hangs up.
    """

    __slots__ = (
        "_admitted",
        "_batcher",
        "_door",
        "_exchange",
        "_handler",
        "_idle_since",
        "_rules",
        "_source",
        "_unsent",
        "_unsent_since",
        "_wire",
        "peer",
        "scheme",
    )  # fmt: skip

    def __init__(self, manager: Server, handler: Handler, rules: ClientRules, *, admitted: bool = False) -> None:
        super().__init__(manager, rules.limits, loop=manager._loop)
        self._handler, self._rules, self._admitted = handler, rules, admitted
        self._door = cast(Door, manager)
        self._batcher = self._door.batcher
        self._wire: asyncio.Transport | None = None
        self._source: Flow | None = None
        self._exchange: Exchange | None = None
        self._unsent = 0
        self._idle_since = self._unsent_since = 0.0
        self.peer = ""
        self.scheme: Literal["http", "https"] = "http"

    async def start(self) -> None:
        """Answer the requests in order, until one of them is the last. Cancelled when the client hangs up."""
        try:
            while await self._answer_next():
                self._rest()
        except ConnectionError:
            pass  # The client is gone; there is nobody to answer.
        finally:
            if self.transport is not None:
                self._batcher.flush()
                self.transport.close()

    @property
    def closing_when_idle(self) -> bool:
        return self._handler.closing_when_idle

    @property
    def entered(self) -> bool:
        """It has been connected, and leaves by itself."""
        return self._wire is not None

    @property
    def receives_head(self) -> bool:
        """The first byte of a request has come, and not yet all of its head."""
        return self._head_since > 0

    @property
    def untried(self) -> bool:
        """Nothing of a request has come yet."""
        return self._request_count == 0

    @property
    def exchange(self) -> Exchange | None:
        """What is under way."""
        return self._exchange

    def close_when_idle(self) -> None:
        """Close now if no request is under way."""
        if self._waiter is not None and not self._waiter.done():
            self.close()

    def check(self, now: float) -> None:
        """End what has taken too long. Called about once a second, so that no request needs a timer."""
        limits = self._rules.limits
        if self._is_stuck(now, limits.answer_timeout):
            self.reset()
        elif self._waiter is None:
            if self._exchange is not None:
                self._exchange.check(now, limits.idle_timeout)
        elif self._head_since:
            if now - max(self._head_since, self._idle_since) >= limits.head_timeout:
                self.give_up_reading(Reason.REQUEST_TIMEOUT)
        elif now - self._idle_since >= limits.idle_timeout:
            self.close_when_idle()

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self._batcher.flush()
            self.transport.write(data)

    def write_soon(self, *pieces: bytes) -> None:
        if self.transport is not None:
            self._batcher.write_soon(self.transport, pieces)

    def set_producer(self, source: Flow | None) -> None:
        self._source = source
        if source is None:
            return
        if self._paused:
            source.pause_reading()
        else:
            source.resume_reading()

    def send_eof(self) -> bool:
        if self.transport is None or not self.transport.can_write_eof():
            return False
        self._batcher.flush()
        self.transport.write_eof()
        return True

    def reset(self) -> None:
        """By a reset, because the end of the stream could be taken for the end of the answer."""
        if self._wire is not None:
            self._batcher.flush()
            reset(self._wire)

    # Callbacks of the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        name = transport.get_extra_info("peername")
        self.peer = name[0] if isinstance(name, tuple) else ""
        self.scheme = "http" if transport.get_extra_info("sslcontext") is None else "https"
        self._idle_since = self._loop.time()
        self._wire = cast(asyncio.Transport, transport)
        self._admitted = self._admitted or self._door.admit(self.peer)
        if self._admitted:
            super().connection_made(transport)
        else:
            self._close = True
            reset(self._wire)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._admitted:
            self._door.release(self.peer)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._source is not None:
            self._source.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._source is not None:
            self._source.resume_reading()

    # Below: steps of the above.

    def _is_stuck(self, now: float, patience_seconds: float) -> bool:
        """Nothing of what waits to be sent has gone for that long."""
        unsent = self._wire.get_write_buffer_size() if self._wire is not None else 0
        if unsent != self._unsent:
            self._unsent, self._unsent_since = unsent, now
        return unsent > 0 and now - self._unsent_since >= patience_seconds

    async def _answer_next(self) -> bool:
        """Answer a request. Whether another one can follow."""
        message, payload = await self.next_message()
        try:
            if isinstance(message, _ErrInfo):
                return await self._refuse(reason_of(message.exc))
            exchange = self._exchange = Exchange(self, message, payload, self._rules.bodies)
        except BadFraming:
            return await self._refuse(Reason.BAD_REQUEST)
        try:
            await self._handler.serve(exchange)
        finally:
            self._exchange = None
        if not payload.is_eof():
            return await self._read_out(payload) if exchange.keep_alive else await self._lingering_close()
        if self._paused:
            await self._drain_helper()
        return exchange.keep_alive

    def _rest(self) -> None:
        """Start the time that the connection may stay idle."""
        self._idle_since = self._loop.time()

    async def _refuse(self, reason: Reason) -> bool:
        self.write(self._handler.refuse(self.peer, reason))
        return await self._lingering_close()

    async def _read_out(self, payload: StreamReader) -> bool:
        """Read a body that nobody wants. Whether it ended in time."""
        try:
            async with asyncio.timeout(self._rules.linger_seconds):
                while await payload.readany():
                    pass
        except (TimeoutError, BrokenBody, RuntimeError):
            return False
        return True

    async def _lingering_close(self) -> bool:
        """Give the client time to read the answer: closing while it still sends would reset the connection."""
        self._close = True
        if self.transport is not None and not self.transport.is_closing():
            self._batcher.flush()
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self.transport.resume_reading()
            await asyncio.sleep(self._rules.linger_seconds)
        return False


def reset(transport: asyncio.Transport) -> None:
    """Close at once, unsent bytes forgotten, so that the other end can tell it from an end."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()
