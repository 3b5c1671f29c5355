"""aiohttp's application server, without a word of what it could not read, and with an end to its patience."""

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Protocol, cast

from aiohttp import hdrs, web
from aiohttp.http_exceptions import BadHttpMethod, LineTooLong
from aiohttp.typedefs import Handler
from aiohttp.web_protocol import RequestHandler

from sidecar.config.document import Limits
from sidecar.config.fields import Address
from sidecar.core.client_address import address_subject
from sidecar.core.errors import Reason
from sidecar.core.model import Response
from sidecar.http.connection_limits import ConnectionLimits

# The listening half of forward-auth: aiohttp's low-level server, with our own words for what is no request.


_BACKLOG = 4096
_CARRIED_HEADERS = 16
"""That proxies add to those of the client."""
_NO_TIME_SECONDS = 0.01
"""aiohttp takes 0 for no limit."""
_log = logging.getLogger(__name__)


class Host(Protocol):
    """Whom the connections serve."""

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse: ...

    def refuse(self, reason: Reason) -> Response:
        """What is answered to bytes that are no request."""

    def trusts(self, peer: str) -> bool: ...

    def connection_refused(self, cap: str) -> None:
        """One more connection would have been past `cap`."""


class Reply(web.Response):
    """An answer without the name of the software."""

    def __init__(self, response: Response) -> None:
        super().__init__(status=response.status, body=response.body)
        for name, value in response.headers:
            self.headers.add(name.decode(), value.decode())

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self.headers.popall(hdrs.SERVER, None)


class Connection(RequestHandler):
    """A proxy's connection."""

    __slots__ = ("_host", "_listener", "_most_unasked_bytes", "_peer", "_unasked", "_unasked_bytes")

    def __init__(self, listener: "Listener", limits: Limits, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            listener,
            loop=loop,
            keepalive_timeout=limits.idle_timeout,
            access_log=None,  # type: ignore[arg-type]  # what aiohttp documents for none
            max_line_size=limits.request_line * 2,
            max_field_size=max(limits.header, limits.request_line),
            max_headers=limits.headers + _CARRIED_HEADERS,
            lingering_time=0,
            auto_decompress=False,
        )
        self._listener, self._host = listener, host
        self._peer: str | None = None
        """None where it was turned away."""
        self._unasked_bytes, self._most_unasked_bytes = 0, limits.head + limits.request_line
        self._unasked = loop.call_later(limits.head_timeout, self._end_unasked)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Whoever connects and asks nothing is a stranger, or will connect again."""
        super().connection_made(transport)
        name = transport.get_extra_info("peername")
        peer = name[0] if isinstance(name, tuple) else ""
        if self._listener.admit(peer):
            self._peer = peer
        else:
            self.force_close()

    def data_received(self, data: bytes) -> None:
        """Strangers never come past a first head, which is held to a size that aiohttp does not know."""
        super().data_received(data)
        if self._request_count == 0:
            self._unasked_bytes += len(data)
            if self._unasked_bytes > self._most_unasked_bytes:
                self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._unasked.cancel()
        if self._peer is not None:
            self._listener.release(self._peer)
        super().connection_lost(exc)

    def _end_unasked(self) -> None:
        if self._request_count == 0:
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """aiohttp's would tell the client, and the log, what it sent."""
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.error("internal error: %s", type(exc).__name__)
        reply = Reply(self._host.refuse(_reason_of(status, exc)))
        reply.force_close()
        return reply


class Listener(web.Server):
    """Connections that all ask `host`."""

    def __init__(self, host: Host, limits: Limits) -> None:
        super().__init__(host.serve)
        self.limits = limits
        """Of the connections that come from here on."""
        self._host, self._limits_held = host, ConnectionLimits()
        self._bound: asyncio.Server | None = None

    def __call__(self) -> RequestHandler:
        return Connection(self, self.limits, self._host, self._loop)

    def admit(self, peer: str) -> bool:
        """Whether one more may come; if so, `release` is to follow."""
        of_one = None if self._host.trusts(peer) else self.limits.connections_per_address
        cap = self._limits_held.acquire(peer, most=self.limits.connections, most_of_one=of_one)
        if cap is not None:
            self._host.connection_refused(cap)
        return cap is None

    def release(self, peer: str) -> None:
        self._limits_held.release(peer)

    async def bind(self, address: Address) -> Address:
        """Where it is bound. Raises OSError."""
        self._bound = await self._loop.create_server(self, address.host, address.port, backlog=_BACKLOG)
        return Address(host=address.host, port=self._bound.sockets[0].getsockname()[1])

    async def close(self, grace_seconds: float) -> None:
        """Take no more connections, finish what is under way for at most `grace_seconds`, and end the rest."""
        if self._bound is not None:
            self._bound.close()
        self.pre_shutdown()
        await self.shutdown(max(grace_seconds, _NO_TIME_SECONDS))


def _reason_of(status: int, exc: BaseException | None) -> Reason:
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return Reason.INTERNAL
    if isinstance(exc, LineTooLong) or (exc is not None and exc.args[:1] == ("Too many headers received",)):
        return Reason.HEADERS_TOO_LARGE
    return Reason.METHOD_NOT_ALLOWED if isinstance(exc, BadHttpMethod) else Reason.BAD_REQUEST


_ANSWER: Final = {hdrs.CACHE_CONTROL: "no-store", hdrs.SERVER: ""}
_TOO_SLOW: Final = (
    b"HTTP/1.1 408 Request Timeout\r\nCache-Control: no-store\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """What a listener for a few clients puts up with. Seconds."""

    connections: int = 512
    connections_per_address: int = 128
    head_seconds: float = 10
    """For the whole of a head, from the connection or its first byte on."""
    idle_seconds: float = 75
    """Between two requests."""
    stuck_seconds: float = 20
    """For an answer of which nothing is read."""


class QuietRunner(web.AppRunner):
    """For listeners whose requests hold credentials: what cannot be read is neither echoed nor logged."""

    def __init__(self, app: web.Application, *, patience: Patience | None = None) -> None:
        self._patience = patience or Patience()
        super().__init__(app, access_log=None, keepalive_timeout=self._patience.idle_seconds)

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Listener(
            _guarded(made.request_handler),
            patience=self._patience,
            request_factory=made.request_factory,
            loop=made._loop,
            **made._kwargs,
        )


def _guarded(handle: Handler) -> Handler:
    """Answers a foreign Expect without a word of it, and makes a chunked request its connection's last.

    aiohttp's parser (3.14.5 and before) hands the last trailer of a chunked request to the next request as a header.
    Requests that it has parsed behind a chunked one are dropped with the connection, before anything sees them.
    """

    async def check(request: web.Request) -> web.StreamResponse:
        if request.headers.get(hdrs.EXPECT, "100-continue").lower() != "100-continue":
            return _last(web.Response(status=417, headers=_ANSWER))
        if hdrs.TRANSFER_ENCODING not in request.headers:
            return await handle(request)
        try:
            return _last(await handle(request))
        except web.HTTPException as raised:
            _last(raised)
            raise

    return check


def _last(response: web.StreamResponse) -> web.StreamResponse:
    response.force_close()
    return response


class _Listener(web.Server):
    def __init__(self, handler: Any, *, patience: Patience, **options: Any) -> None:
        super().__init__(handler, **options)
        self.patience = patience
        self.by_address: Counter[str] = Counter()

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(RequestHandler):
    __slots__ = ("_address", "_begun", "_check", "_line", "_listener", "_unread", "_unread_since")

    def __init__(self, listener: _Listener, **options: Any) -> None:
        super().__init__(listener, **options)
        self._listener = listener
        self._address: str | None = None
        """None where it was turned away."""
        self._begun: float | None = None
        """When the head began that is not whole yet."""
        self._unread = 0
        """Bytes that waited for the client at the last look, the same since `_unread_since`."""
        self._unread_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        line = cast(asyncio.Transport, transport)
        listener, patience = self._listener, self._listener.patience
        peer = transport.get_extra_info("peername")
        address = address_subject(peer[0]) if isinstance(peer, tuple) else ""
        super().connection_made(transport)
        if listener.by_address[address] >= patience.connections_per_address or (
            listener.by_address.total() >= patience.connections
        ):
            line.abort()
            return
        listener.by_address[address] += 1
        self._line, self._address, self._begun = line, address, self._loop.time()
        self._look_again()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if self._address is None:
            return
        self._check.cancel()
        left = self._listener.by_address
        left[self._address] -= 1
        if not left[self._address]:
            del left[self._address]

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Nobody waits for a request while one is under way, nor on a connection too new to have been looked at.
        if self._request_count and (self._waiter is None or self._waiter.done()):
            self._begun = None
        elif self._begun is None:
            self._begun = self._loop.time()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Raises ConnectionError where part of an answer was sent already."""
        if request.writer is not None and request.writer.output_size > 0:
            raise ConnectionError("an answer was begun already")
        response = web.Response(status=status, headers=_ANSWER)
        response.force_close()
        return response

    def _look_again(self) -> None:
        patience = self._listener.patience
        self._check = self._loop.call_later(min(patience.head_seconds, patience.stuck_seconds) / 2, self._look)

    def _look(self) -> None:
        patience, now = self._listener.patience, self._loop.time()
        if self._begun is not None and now - self._begun >= patience.head_seconds:
            self._begun = None
            self._line.write(_TOO_SLOW)
            self.force_close()
        unread = self._line.get_write_buffer_size()
        if not unread or unread != self._unread:
            self._unread, self._unread_since = unread, now
        elif now - self._unread_since >= patience.stuck_seconds:
            self._line.abort()
        self._look_again()
