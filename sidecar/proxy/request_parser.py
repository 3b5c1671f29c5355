"""The receiving half of a client's connection: aiohttp's parser, held to limits that it does not know."""

import asyncio
import logging
import re

from aiohttp import StreamReader, hdrs
from aiohttp.http_exceptions import BadHttpMessage, BadHttpMethod, LineTooLong
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo
from aiohttp.web_server import Server

from sidecar.config.document import Limits
from sidecar.core.errors import Reason
from sidecar.core.units import counted
from sidecar.proxy.request_body import break_body
from sidecar.proxy.tunnel import Tunnel

# Bytes that are no request: why, and one quiet line for many of them.


NOTICE_SECONDS = 10.0
"""How often the log is told, at most."""

_METHOD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ")
_log = logging.getLogger(__name__)


class RequestTooLarge(Exception):
    """What has come so far will not be waited for, or read, any further."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


def reason_of(exc: BaseException) -> Reason:
    """Why aiohttp's parser, or we, refused."""
    if isinstance(exc, RequestTooLarge):
        return exc.reason
    if isinstance(exc, LineTooLong) or (exc.args and exc.args[0] == "Too many headers received"):
        return Reason.HEADERS_TOO_LARGE
    return Reason.METHOD_NOT_ALLOWED if isinstance(exc, BadHttpMethod) else Reason.BAD_REQUEST


def begins_with_unknown_method(data: bytes) -> bool:
    method = _METHOD.match(data)
    return method is not None and method[1].decode() not in hdrs.METH_ALL


class RateLimitedLog:
    """Counts what strangers do, and logs a line for all of it now and then: nothing of their bytes, no tracebacks."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, seconds: float = NOTICE_SECONDS) -> None:
        self._loop, self._seconds = loop, seconds
        self._seen: dict[tuple[str, str], tuple[int, str]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def count(self, noun: str, fate: str, last: str) -> None:
        """`fate` befell one more `noun` (of both there are few); `last` is where it came from."""
        number, _ = self._seen.get((noun, fate), (0, ""))
        self._seen[noun, fate] = (number + 1, last)
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self.flush)

    def flush(self) -> None:
        """Log what has been counted."""
        seen, self._seen = self._seen, {}
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for (noun, fate), (number, last) in seen.items():
            amount = counted(number, noun)
            _log.warning("sidecar: %s %s in the last %g s, last from %s", amount, fate, self._seconds, last)


_AROUND_TARGET = len("GET  HTTP/1.1")
_END_OF_HEAD = b"\r\n\r\n"
_OTHER_PROTOCOLS = (b" RTSP/", b" ICE/")
"""That aiohttp's parser takes for HTTP, and does not tell from it."""
_OVERLAP = len(_END_OF_HEAD) - 1


class RequestParser(RequestHandler):
    """Requests and refusals, in order, out of bytes; after `switch`, the bytes.

    aiohttp's parser (3.14.5 and before) hands the last trailer of a chunked request to the next request as a header
    (RFC 9110 section 6.5.1 forbids it). So a parser that has read a chunked request reads nothing more; a fresh one
    takes what follows. A chunked request ends with CRLF CRLF (RFC 9112 section 7.1), and the parser is fed in pieces
    that end at every CRLF CRLF: nothing after a chunked request is ever in the piece that ends it.
    """

    __slots__ = (
        "_before", "_broken", "_chunked", "_head", "_head_limit", "_head_since", "_held", "_receiving", "_tunnel",
    )  # fmt: skip

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
        self._head = b""
        """What has come of a head that is not complete."""
        self._head_since = 0.0
        """When the first byte came of a head that is not complete; 0 where there is none."""
        self._receiving: StreamReader = EMPTY_PAYLOAD
        self._chunked = False
        """What is received is a chunked request."""
        self._before = b""
        """The last bytes that the parser was fed: a CRLF CRLF may have begun in them."""
        self._held = b""
        """What has come and waits until the parser takes more."""
        self._broken = False
        """What comes is not read as requests any longer."""
        self._tunnel: Tunnel | None = None

    def switch(self, tunnel: Tunnel) -> bytes:
        self._tunnel = tunnel
        tail, self._message_tail, self._held = self._message_tail + self._held, b"", b""
        if self._buffer_paused:
            self._resume_reading_for_buffer()
        return tail

    def give_up_reading(self, reason: Reason) -> None:
        """Refuse what has come so far of a head."""
        self._close = True
        self._refuse_next(RequestTooLarge(reason))

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
        if self._tunnel is not None:
            self._tunnel.take(data)
        elif not data:  # aiohttp's way to go on with what its parser holds.
            held, self._held = self._held, b""
            self._feed(data)
            self._feed_in_pieces(held)
        elif self._held or self._is_full():
            self._held += data
        elif data.find(_END_OF_HEAD) == len(data) - len(_END_OF_HEAD) and data[0] not in b"\r\n" and not self._broken:
            self._before = data[-_OVERLAP:]
            self._feed(data)  # One piece, which is what most reads are.
        else:
            self._feed_in_pieces(data)

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp's returns nothing
        """True keeps the other direction open, which TLS cannot."""
        plain = self.transport is not None and self.transport.can_write_eof()
        return self._tunnel is not None and self._tunnel.end() and plain

    def connection_lost(self, exc: BaseException | None) -> None:
        self._tunnel = None
        super().connection_lost(exc)

    # Below: steps of the above.

    def _feed_in_pieces(self, data: bytes) -> None:
        joined, start = self._before + data, len(self._before)
        while start < len(joined) and not self._is_full() and not self._broken:
            found = joined.find(_END_OF_HEAD, max(start - _OVERLAP, 0))
            end = found + len(_END_OF_HEAD) if found >= 0 else len(joined)
            self._feed(joined[start:end])
            start = end
        self._before = joined[max(start - _OVERLAP, 0) : start]
        self._held = b"" if self._broken else joined[start:]

    def _is_full(self) -> bool:
        """The parser may hold bytes back: it has stopped in a body, or between requests."""
        return self._reading_paused or len(self._messages) >= self._max_msg_queue_size

    def _feed(self, piece: bytes) -> None:
        within_body, requests = not self._receiving.is_eof(), self._request_count
        try:
            super().data_received(piece)
        except Exception as exc:
            self._refuse_next(exc)
        if self._messages:
            message, payload = self._messages[-1]
            if isinstance(message, _ErrInfo):
                self._parsing_failed(message, piece)
            elif self._request_count > requests:
                self._head_came(message, payload, self._head + piece)
        if self._chunked and self._receiving.is_eof():
            self._replace_parser()
        if self._request_count == requests:
            if piece and not within_body:
                self._await_rest_of_head(piece)
        elif within_body or self._head or len(piece) > self._head_limit:
            self._measure_heads(self._request_count - requests)

    def _head_came(self, message: RawRequestMessage, payload: StreamReader, raw: bytes) -> None:
        self._receiving, self._chunked = payload, message.chunked
        # What follows the head of a request to upgrade is kept for the other protocol.
        self._upgraded = self._upgraded or (message.upgrade and payload.is_eof())
        if b" RTSP/" in raw or b" ICE/" in raw:
            line = f"{message.method} {message.path}".encode("utf-8", "surrogateescape")
            if any(line + protocol in raw for protocol in _OTHER_PROTOCOLS):
                self._messages.pop()
                self._refuse_next(BadHttpMessage("not HTTP"))

    def _replace_parser(self) -> None:
        self._chunked = False
        self._parser = HttpRequestParser(
            self,
            self._loop,
            self._read_bufsize,
            max_line_size=self.max_line_size,
            max_field_size=self.max_field_size,
            max_headers=self.max_headers,
            payload_exception=RequestPayloadError,
            auto_decompress=False,
            max_msg_queue_size=self._max_msg_queue_size,
        )

    def _parsing_failed(self, error: _ErrInfo, data: bytes) -> None:
        """Break the body that is being received, and forget its request if nobody has begun to answer it."""
        self._broken = True
        if not self._receiving.is_eof():
            break_body(self._receiving)
            if len(self._messages) > 1 and self._messages[-2][1] is self._receiving:
                del self._messages[-2]
        if isinstance(error.exc, BadHttpMethod) and not begins_with_unknown_method(data):
            self._messages[-1] = (_ErrInfo(400, BadHttpMessage("not a request"), ""), EMPTY_PAYLOAD)

    def _await_rest_of_head(self, data: bytes) -> None:
        if self._upgraded or self._close or not (self._head or data.strip(b"\r\n")):
            return  # Empty lines before a request are nothing yet (RFC 9112 section 2.2).
        self._head += data
        if not self._head_since:
            self._head_since = self._loop.time()
        if len(self._head) > self._head_limit:
            self.give_up_reading(Reason.HEADERS_TOO_LARGE)

    def _measure_heads(self, requests: int) -> None:
        """Heads are complete, of which some may be too large together."""
        self._head, self._head_since = b"", 0.0
        for index in range(-min(requests, len(self._messages)), 0):
            message = self._messages[index][0]
            if not isinstance(message, _ErrInfo) and _size_of(message) > self._head_limit:
                refusal = _ErrInfo(431, RequestTooLarge(Reason.HEADERS_TOO_LARGE), "")
                self._messages[index] = (refusal, EMPTY_PAYLOAD)

    def _refuse_next(self, exc: Exception) -> None:
        self._broken = True
        self._messages.append((_ErrInfo(400, exc, ""), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _size_of(head: RawRequestMessage) -> int:
    fields = sum(len(name) + len(value) + len(": \r\n") for name, value in head.raw_headers)
    return len(head.method) + len(head.path) + len("  HTTP/1.1\r\n\r\n") + fields
