"""The listening half of forward-auth: aiohttp's low-level server, with our own words for what is no request."""

import asyncio
import logging
from http import HTTPStatus
from typing import Protocol

from aiohttp import hdrs, web
from aiohttp.http_exceptions import BadHttpMethod, LineTooLong
from aiohttp.web_protocol import RequestHandler

from sidecar.config.settings import Address, Limits
from sidecar.core.errors import Reason
from sidecar.core.model import Answer
from sidecar.http.connection_limits import Seats

_BACKLOG = 4096
_CARRIED_HEADERS = 16
"""That proxies add to those of the client."""
_NO_TIME_SECONDS = 0.01
"""aiohttp takes 0 for no limit."""
_log = logging.getLogger(__name__)


class Host(Protocol):
    """Whom the connections serve."""

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse: ...

    def refuse(self, reason: Reason) -> Answer:
        """What is answered to bytes that are no request."""

    def trusts(self, peer: str) -> bool: ...

    def turned_away(self, cap: str) -> None:
        """One more connection would have been past `cap`."""


class Reply(web.Response):
    """An answer without the name of the software."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(status=answer.status, body=answer.body)
        for name, value in answer.headers:
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
            self._listener.leave(self._peer)
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
        self._host, self._seats = host, Seats()
        self._bound: asyncio.Server | None = None

    def __call__(self) -> RequestHandler:
        return Connection(self, self.limits, self._host, self._loop)

    def admit(self, peer: str) -> bool:
        """Whether one more may come; if so, `leave` is to follow."""
        of_one = None if self._host.trusts(peer) else self.limits.connections_per_address
        cap = self._seats.take(peer, most=self.limits.connections, most_of_one=of_one)
        if cap is not None:
            self._host.turned_away(cap)
        return cap is None

    def leave(self, peer: str) -> None:
        self._seats.leave(peer)

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
