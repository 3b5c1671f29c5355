"""aiohttp's application server, without a word of what it could not read, and with an end to its patience."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final, cast

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from aiohttp.web_protocol import RequestHandler

from sidecar.core.client_address import address_subject

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
        answer = web.Response(status=status, headers=_ANSWER)
        answer.force_close()
        return answer

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
