"""The receiving half of a client's connection: aiohttp's parser, held to limits that it does not know."""

import asyncio

from aiohttp import StreamReader
from aiohttp.http_exceptions import BadHttpMessage, BadHttpMethod
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, _ErrInfo
from aiohttp.web_server import Server

from sidecar.config.model import Limits
from sidecar.core.errors import Reason
from sidecar.proxy.bodies import break_body
from sidecar.proxy.malformed import Unacceptable, begins_with_unknown_method
from sidecar.proxy.upgrade import Sink

_AROUND_TARGET = len("GET  HTTP/1.1")
_END_OF_HEAD = b"\r\n\r\n"


class Receiver(RequestHandler):
    """Requests and refusals, in order, out of bytes; after `switch`, the bytes."""

    __slots__ = ("_head_bytes", "_head_limit", "_head_since", "_receiving", "_sink", "can_switch")

    def __init__(self, manager: Server, limits: Limits, *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            manager,
            loop=loop,
            keepalive_timeout=0,  # Not aiohttp's, which is a timer for each connection.
            access_log=None,  # type: ignore[arg-type]  # what aiohttp documents for none
            max_line_size=max(limits.request_line - _AROUND_TARGET, 1),
            max_field_size=limits.header,
            max_headers=limits.headers,
            read_bufsize=65536,
            auto_decompress=False,
        )
        self._head_limit = limits.head
        self._head_bytes = 0
        self._head_since = 0.0
        """When the first byte came of a head that is not complete; 0 where there is none."""
        self._receiving: StreamReader = EMPTY_PAYLOAD
        self._sink: Sink | None = None
        self.can_switch = True

    def switch(self, sink: Sink) -> bytes:
        self._sink = sink
        tail, self._message_tail = self._message_tail, b""
        if self._buffer_paused:
            self._resume_reading_for_buffer()
        return tail

    def give_up_reading(self, reason: Reason) -> None:
        """Refuse what has come so far of a head."""
        self._close = True
        self._refuse_next(Unacceptable(reason))

    async def next_message(self) -> tuple[RawRequestMessage | _ErrInfo, StreamReader]:
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

    # Callbacks of the transport.

    def data_received(self, data: bytes) -> None:
        if self._sink is not None:
            self._sink.take(data)
            return
        within_body, requests = not self._receiving.is_eof(), self._request_count
        try:
            super().data_received(data)
        except Exception as exc:
            self._refuse_next(exc)
        if self._messages:
            message, payload = self._messages[-1]
            if isinstance(message, _ErrInfo):
                self._parsing_failed(message, data)
            else:
                self._receiving = payload
                if message.upgrade:
                    self._may_switch(data, payload)
        if self._request_count == requests:
            if data and not within_body:
                self._await_rest_of_head(data)
        elif within_body or self._head_bytes or len(data) > self._head_limit:
            self._measure_heads(self._request_count - requests)

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp's returns nothing
        """True keeps the other direction open, which TLS cannot."""
        plain = self.transport is not None and self.transport.can_write_eof()
        return self._sink is not None and self._sink.end() and plain

    def connection_lost(self, exc: BaseException | None) -> None:
        self._sink = None
        super().connection_lost(exc)

    # Below: steps of the above.

    def _parsing_failed(self, error: _ErrInfo, data: bytes) -> None:
        """aiohttp tells whoever reads a body neither that it is broken, nor requests before the error in `data`."""
        if not self._receiving.is_eof():
            break_body(self._receiving)
        if isinstance(error.exc, BadHttpMethod) and not begins_with_unknown_method(data):
            self._messages[-1] = (_ErrInfo(400, BadHttpMessage("not a request"), ""), EMPTY_PAYLOAD)

    def _may_switch(self, data: bytes, payload: StreamReader) -> None:
        """Keep what follows for the other protocol.

        aiohttp does so for `websocket`. Of another request to upgrade, it loses what came in one piece with the head.
        """
        if not self._upgraded and payload.is_eof():
            self._upgraded = True
            self.can_switch = data[-len(_END_OF_HEAD) :] == _END_OF_HEAD[-len(data) :]

    def _await_rest_of_head(self, data: bytes) -> None:
        if self._upgraded or self._close or not (self._head_bytes or data.strip(b"\r\n")):
            return  # Empty lines before a request are nothing yet (RFC 9112 section 2.2).
        self._head_bytes += len(data)
        if not self._head_since:
            self._head_since = self._loop.time()
        if self._head_bytes > self._head_limit:
            self.give_up_reading(Reason.HEADERS_TOO_LARGE)

    def _measure_heads(self, requests: int) -> None:
        """Heads are complete, of which some may be too large together."""
        self._head_bytes, self._head_since = 0, 0.0
        for index in range(-min(requests, len(self._messages)), 0):
            message = self._messages[index][0]
            if not isinstance(message, _ErrInfo) and _size_of(message) > self._head_limit:
                refusal = _ErrInfo(431, Unacceptable(Reason.HEADERS_TOO_LARGE), "")
                self._messages[index] = (refusal, EMPTY_PAYLOAD)

    def _refuse_next(self, exc: Exception) -> None:
        self._messages.append((_ErrInfo(400, exc, ""), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _size_of(head: RawRequestMessage) -> int:
    fields = sum(len(name) + len(value) + len(": \r\n") for name, value in head.raw_headers)
    return len(head.method) + len(head.path) + len("  HTTP/1.1\r\n\r\n") + fields
