"""A client's connection: aiohttp parses, we answer. One task a connection, one request after the other."""

import asyncio
import re
import socket
import struct
from dataclasses import dataclass
from typing import Literal, Protocol

from aiohttp import StreamReader, hdrs
from aiohttp.http_exceptions import BadHttpMessage, BadHttpMethod, LineTooLong
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, _ErrInfo
from aiohttp.web_server import Server

from sidecar.core.errors import Reason
from sidecar.proxy.bodies import BadFraming, break_body
from sidecar.proxy.exchange import Exchange, Flow
from sidecar.proxy.upstream import BrokenBody

_METHOD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ")
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """What a client may take up. Bytes and seconds."""

    line_bytes: int = 8190
    field_bytes: int = 8190
    fields: int = 128
    idle_seconds: float = 75.0
    linger_seconds: float = 2.0
    """How long a client may still send after an answer that ends the connection."""


class Host(Protocol):
    """Whom the connection serves."""

    @property
    def retiring(self) -> bool: ...

    async def serve(self, exchange: Exchange) -> None:
        """Answer it. Raises nothing but CancelledError."""

    def refuse(self, peer: str, reason: Reason) -> bytes:
        """The whole answer to bytes that are no request."""


class ClientConnection(RequestHandler):
    """aiohttp's connection, with a loop of our own over its requests.

    aiohttp's own (`start`) makes a task, a writer and a timer of each request, and answers errors by itself, with a
    traceback in the log. Here the handler runs in the connection's task; it is cancelled when the client hangs up.
    """

    __slots__ = ("_host", "_linger_seconds", "_receiving", "_source", "peer", "scheme")

    def __init__(self, manager: Server, host: Host, caps: Caps, *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            manager,
            loop=loop,
            keepalive_timeout=caps.idle_seconds,
            access_log=None,  # type: ignore[arg-type]  # what aiohttp documents for none
            max_line_size=caps.line_bytes,
            max_field_size=caps.field_bytes,
            max_headers=caps.fields,
            read_bufsize=65536,
            auto_decompress=False,
        )
        self._host, self._linger_seconds = host, caps.linger_seconds
        self._receiving: StreamReader = EMPTY_PAYLOAD
        self._source: Flow | None = None
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
                self.transport.close()

    @property
    def retiring(self) -> bool:
        return self._host.retiring

    def retire(self) -> None:
        """Close now if no request is under way."""
        if self._waiter is not None:
            self.close()

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def draw_from(self, source: Flow | None) -> None:
        self._source = source
        if source is None:
            return
        if self._paused:
            source.pause_reading()
        else:
            source.resume_reading()

    def break_off(self) -> None:
        """By a reset, because the end of the stream could be taken for the end of the answer."""
        if self.transport is None:
            return
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()

    # Callbacks of the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        name = transport.get_extra_info("peername")
        self.peer = name[0] if isinstance(name, tuple) else ""
        self.scheme = "http" if transport.get_extra_info("sslcontext") is None else "https"
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except Exception as exc:
            self._messages.append((_ErrInfo(400, exc, ""), EMPTY_PAYLOAD))
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)
        if self._messages:
            message, payload = self._messages[-1]
            if not isinstance(message, _ErrInfo):
                self._receiving = payload
            else:
                self._parsing_failed(message, data)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._source is not None:
            self._source.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._source is not None:
            self._source.resume_reading()

    # Below: steps of the above.

    def _parsing_failed(self, error: _ErrInfo, data: bytes) -> None:
        """aiohttp tells whoever reads a body neither that it is broken, nor requests before the error in `data`."""
        if not self._receiving.is_eof():
            break_body(self._receiving)
        if isinstance(error.exc, BadHttpMethod) and not _begins_with_unknown_method(data):
            self._messages[-1] = (_ErrInfo(400, BadHttpMessage("not a request"), ""), EMPTY_PAYLOAD)

    async def _answer_next(self) -> bool:
        """Answer a request. Whether another one can follow."""
        message, payload = await self._next_message()
        try:
            if isinstance(message, _ErrInfo):
                return await self._refuse(_reason_of(message.exc))
            exchange = Exchange(self, message, payload)
        except BadFraming:
            return await self._refuse(Reason.BAD_REQUEST)
        await self._host.serve(exchange)
        if not payload.is_eof():
            return await self._read_out(payload) if exchange.keep_alive else await self._linger()
        if self._paused:
            await self._drain_helper()
        return exchange.keep_alive

    async def _next_message(self) -> tuple[RawRequestMessage | _ErrInfo, StreamReader]:
        if not self._messages:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        received = self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        return received

    def _rest(self) -> None:
        """Start the time that the connection may stay idle."""
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)

    async def _refuse(self, reason: Reason) -> bool:
        self.write(self._host.refuse(self.peer, reason))
        return await self._linger()

    async def _read_out(self, payload: StreamReader) -> bool:
        """Read a body that nobody wants. Whether it ended in time."""
        try:
            async with asyncio.timeout(self._linger_seconds):
                while await payload.readany():
                    pass
        except (TimeoutError, BrokenBody, RuntimeError):
            return False
        return True

    async def _linger(self) -> bool:
        """Give the client time to read the answer: closing while it still sends would reset the connection."""
        self._close = True
        if self.transport is not None and not self.transport.is_closing():
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self.transport.resume_reading()
            await asyncio.sleep(self._linger_seconds)
        return False


def _reason_of(exc: BaseException) -> Reason:
    if isinstance(exc, LineTooLong) or (exc.args and exc.args[0] == "Too many headers received"):
        return Reason.HEADERS_TOO_LARGE
    return Reason.METHOD_NOT_ALLOWED if isinstance(exc, BadHttpMethod) else Reason.BAD_REQUEST


def _begins_with_unknown_method(data: bytes) -> bool:
    method = _METHOD.match(data)
    return method is not None and method[1].decode() not in hdrs.METH_ALL
