"""The hardened server under ops, admin and forward auth: a connection class of our own in front of aiohttp's.

`GuardedConnection` passes aiohttp one request at a time, and nothing but requests. It limits connections, the time and
size of a head, idle time, and clients that do not read. Bytes that are not a request are neither echoed nor logged.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, Protocol, cast

from aiohttp import StreamReader, hdrs, web
from aiohttp.http import StreamWriter
from aiohttp.http_exceptions import BadHttpMethod

from sidecar.config.fields import Address
from sidecar.core.errors import Reason, status_of
from sidecar.core.model import Response
from sidecar.http.accepting import BACKLOG, Acceptor, ConnectionLimits, LimitName
from sidecar.http.requests import HeadLimits, MalformedHead, Phase, RequestSequence

_APP_SHUTDOWN_SECONDS = 60.0
_NO_TIME_SECONDS = 0.01
"""aiohttp takes 0 for no limit."""
_CHECK_SECONDS = 1.0
_CHECKS_IN_A_TIMEOUT = 5
_LINGERING_SECONDS = 10.0
_RESPONDING: Final = frozenset({Phase.RESPONSE, Phase.CHUNKS})
_NO_STORE: Final = ((b"Cache-Control", b"no-store"),)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Limits on the resources of a client. The defaults are for a listener with few clients.

    New limits on connections apply to the next connection; a connection keeps the other limits that it began with.
    """

    connections: int = 512
    connections_per_address: int = 128
    head: HeadLimits = field(default_factory=HeadLimits)
    head_seconds: float = 10
    """For a whole head, from the connection or from its first byte."""
    idle_seconds: float = 75
    """Between two requests."""
    stuck_seconds: float = 20
    """For a response while the client reads nothing."""
    reads_bodies: bool = True
    """Whether handlers read request bodies. If not, a body is neither decompressed nor waited for."""


class Host(Protocol):
    """What the server needs from the listener that it serves."""

    def refuse(self, reason: Reason) -> Response:
        """The error response to bytes that are not a request, or to a fault."""

    def trusts(self, peer: str) -> bool:
        """Whether connections of `peer` are exempt from the limit by address."""

    def connection_refused(self, limit: LimitName) -> None:
        """A connection above `limit` has been closed."""


class BareHost:
    """Error responses without a body; no peer is exempt from the limits."""

    def refuse(self, reason: Reason) -> Response:
        # RFC 9110 §15.5.6: a 405 names the methods that are allowed, which depend on the resource.
        status = 400 if reason is Reason.METHOD_NOT_ALLOWED else status_of(reason)
        return Response(status=status, headers=_NO_STORE, body=b"")

    def trusts(self, peer: str) -> bool:
        return False

    def connection_refused(self, limit: LimitName) -> None:
        pass


class HardenedServer:
    """Serves the handler of `inner`. Create it inside the running loop."""

    def __init__(self, inner: web.Server, *, host: Host, limits: ServerLimits) -> None:
        self.host = host
        self.inner = web.Server(inner.request_handler, request_factory=_without_server_header(inner.request_factory))
        self._limits, self._limits_held = limits, ConnectionLimits()
        self._loop = asyncio.get_running_loop()
        self._connections: set[GuardedConnection] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._acceptor = Acceptor(self._meet, on_exhausted=self._no_more_files)
        self._coming: set[asyncio.Task[None]] = set()

    def bind(self, addresses: Sequence[Address]) -> tuple[Address, ...]:
        """Returns the bound addresses. Raises BindError."""
        return self._acceptor.start(addresses, backlog=BACKLOG)

    def reconfigure(self, limits: ServerLimits) -> None:
        """Apply new limits to connections from now on."""
        self._limits = limits

    async def close(self, grace_seconds: float) -> None:
        """Accept no more connections, let running requests finish within `grace_seconds`, and end the rest."""
        for listening in self._acceptor.stop():
            listening.close()
        # Requests that have just arrived begin before idle connections are closed.
        await asyncio.gather(*self._coming, return_exceptions=True)
        await asyncio.sleep(0)
        self.inner.pre_shutdown()
        await self.inner.shutdown(max(grace_seconds, _NO_TIME_SECONDS))

    def enter(self, connection: "GuardedConnection") -> None:
        """The connection is open; `leave` must follow."""
        self._connections.add(connection)
        if self._timer is None:
            self._timer = self._loop.call_later(self._check_seconds(), self._check)

    def leave(self, connection: "GuardedConnection") -> None:
        self._connections.discard(connection)
        self._limits_held.release(connection.peer)

    def _meet(self, accepted: socket.socket, name: object) -> None:
        """Refuse or set up a connection. A refused one costs little, so that a flood does."""
        peer = name[0] if isinstance(name, tuple) else ""
        most_of_one = None if self.host.trusts(peer) else self._limits.connections_per_address
        limit = self._limits_held.acquire(peer, most=self._limits.connections, most_of_one=most_of_one)
        if limit is not None:
            self.host.connection_refused(limit)
            accepted.close()
            return
        task = self._loop.create_task(self._connect(accepted, GuardedConnection(self, self._limits, peer)))
        self._coming.add(task)
        task.add_done_callback(self._coming.discard)

    async def _connect(self, accepted: socket.socket, connection: "GuardedConnection") -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: connection, accepted)
        except OSError:
            accepted.close()
        finally:
            if not connection.entered:
                self._limits_held.release(connection.peer)

    def _no_more_files(self) -> None:
        self.host.connection_refused("open_files")

    def _check_seconds(self) -> float:
        limits = self._limits
        shortest = min(limits.head_seconds, limits.idle_seconds, limits.stuck_seconds)
        return min(_CHECK_SECONDS, shortest / _CHECKS_IN_A_TIMEOUT)

    def _check(self) -> None:
        now = self._loop.time()
        self._timer = self._loop.call_later(self._check_seconds(), self._check) if self._connections else None
        for connection in tuple(self._connections):
            try:
                connection.check(now)
            except Exception as error:  # The others must be checked, too.
                connection.abort()
                self._loop.call_exception_handler({"message": "a connection cannot be checked", "exception": error})


class GuardedConnection(asyncio.Protocol):
    """A client's connection. aiohttp's own handler is behind it, and sees one well-formed request at a time."""

    def __init__(self, server: HardenedServer, limits: ServerLimits, peer: str) -> None:
        self._server, self._limits, self.peer = server, limits, peer
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        """None unless the connection is open."""
        self._handler = _RequestHandler(self, server, limits, self._loop)
        self.entered = False
        """Whether it was ever connected; then it calls `leave` itself."""
        self._requests = RequestSequence(limits.head)
        self._phase, self._since = self._requests.phase, self._loop.time()
        """The phase after the last event, and when it began."""
        self._half_closed = False
        """Whether the client has ended its side during a response."""
        self._unread, self._unread_since = 0, 0.0
        """Bytes in the write buffer at the last check, and since when their number is unchanged."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.entered = True
        self._server.enter(self)
        self._handler.connection_made(self._transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._server.leave(self)
        self._transport = None
        self._requests.close()
        self._handler.connection_lost(exc)
        self._handler.forget_body()

    def pause_writing(self) -> None:
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._handler.resume_writing()

    def eof_received(self) -> bool:
        """The client ended its side. True, if it still gets a response, keeps the other direction open."""
        self._half_closed = self._requests.phase in _RESPONDING
        return self._half_closed

    def data_received(self, data: bytes) -> None:
        try:
            for piece in self._requests.feed(data):
                self._handler.data_received(piece)
        except MalformedHead as malformed:
            self._refuse(malformed.reason)
        self._note_phase()

    def end_response(self, *, keep_alive: bool) -> None:
        """aiohttp has written the whole response."""
        was_last = self.is_last or not keep_alive
        self._requests.end_response(keep_alive=keep_alive)
        self._note_phase()
        self.data_received(b"")
        if self._half_closed and (was_last or self._requests.phase not in _RESPONDING):
            self._end()

    @property
    def is_last(self) -> bool:
        """Whether the connection ends with the current request."""
        return self._requests.is_last

    def check(self, now: float) -> None:
        """End the connection if its client has been too slow."""
        waited = now - self._since
        if self._phase is Phase.HEAD and waited >= self._limits.head_seconds:
            self._refuse(Reason.REQUEST_TIMEOUT)
        elif self._phase is Phase.IDLE and waited >= self._limits.idle_seconds:
            self._end()
        elif self._half_closed and self._phase is Phase.CHUNKS and waited >= self._limits.head_seconds:
            self.abort()  # The end of its body may be missing, and will never arrive.
        self._note_phase()
        self._check_unread(now)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _end(self) -> None:
        """Close once everything written has been sent."""
        self._requests.close()
        self._handler.force_close()

    def _note_phase(self) -> None:
        """Record the start of a new phase, and read from the client unless enough bytes are waiting."""
        if self._requests.phase is not self._phase:
            self._phase, self._since = self._requests.phase, self._loop.time()
        if self._transport is None or self._transport.is_closing() or self._half_closed:
            return
        if self._requests.is_full:
            self._transport.pause_reading()
        elif self._phase is Phase.IDLE:
            self._transport.resume_reading()

    def _check_unread(self, now: float) -> None:
        if self._transport is None:
            return
        unread = self._transport.get_write_buffer_size()
        if not unread or unread != self._unread:
            self._unread, self._unread_since = unread, now
        elif now - self._unread_since >= self._limits.stuck_seconds:
            self._transport.abort()

    def _refuse(self, reason: Reason) -> None:
        """Refuse bytes that are not a request. Called only between requests, so no response is in progress."""
        self._requests.close()
        if self._transport is not None:
            self._transport.write(_message(self._server.host.refuse(reason)))
        self._handler.force_close()


class _RequestHandler(web.RequestHandler):
    """aiohttp's side of a connection. It reports the end of a response, and sends the host's error responses."""

    def __init__(
        self,
        connection: GuardedConnection,
        server: HardenedServer,
        limits: ServerLimits,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(
            server.inner,
            loop=loop,
            # The connection closes itself first.
            keepalive_timeout=limits.idle_seconds + limits.head_seconds,
            access_log=None,  # type: ignore[arg-type]  # as aiohttp documents for no log
            max_line_size=limits.head.request_line_bytes,
            max_field_size=limits.head.header_bytes,
            max_headers=limits.head.headers,
            lingering_time=_LINGERING_SECONDS if limits.reads_bodies else 0,
            auto_decompress=limits.reads_bodies,
        )
        self._connection, self._host = connection, server.host
        self._body: StreamReader | None = None
        """The body of the last request with a response; aiohttp reads the rest of it."""

    def forget_body(self) -> None:
        """Forget the body of a client that has left: aiohttp, and a shutdown, would wait for the rest of it."""
        if self._body is not None:
            self._body.feed_eof()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if self._connection.is_last and isinstance(resp, web.StreamResponse):
            resp.force_close()
        sent, reset = await super().finish_response(request, resp, start_time)
        self._body = request.content
        self._connection.end_response(keep_alive=bool(sent.keep_alive) and not reset)
        return sent, reset

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Replaces aiohttp's, which would echo and log the client's bytes.

        Raises ConnectionError if a response has begun.
        """
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.error("internal error: %s", type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun already")
        response = to_aiohttp(self._host.refuse(_reason_of(status, exc)))
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log only the type: a message may contain what the client sent."""
        _log.error("internal error: %s", type(kw.get("exc_info")).__name__)


def _reason_of(status: int, exc: BaseException | None) -> Reason:
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Reason.INTERNAL
    return Reason.METHOD_NOT_ALLOWED if isinstance(exc, BadHttpMethod) else Reason.BAD_REQUEST


class _QuietWriter(StreamWriter):
    """Does not write the name and version of the software."""

    async def write_headers(self, status_line: str, headers: Any) -> None:
        headers.popall(hdrs.SERVER, None)
        await super().write_headers(status_line, headers)


def _without_server_header(make: Any) -> Any:
    """A request factory of aiohttp whose responses lack the Server header."""

    def make_request(message: Any, payload: Any, protocol: Any, writer: StreamWriter, task: Any) -> web.BaseRequest:
        quiet = _QuietWriter(protocol, asyncio.get_running_loop())
        return cast(web.BaseRequest, make(message, payload, protocol, quiet, task))

    return make_request


def to_aiohttp(response: Response) -> web.Response:
    made = web.Response(status=response.status, body=response.body)
    for name, value in response.headers:
        made.headers.add(name.decode(), value.decode())
    return made


def _message(response: Response) -> bytes:
    """The bytes of the last response of a connection."""
    lines = [b"HTTP/1.1 %d %b" % (response.status, HTTPStatus(response.status).phrase.encode())]
    lines += [b"%b: %b" % field for field in response.headers]
    lines += [b"Content-Length: %d" % len(response.body), b"Connection: close", b"", response.body]
    return b"\r\n".join(lines)


@asynccontextmanager
async def serving_app(
    app: web.Application, addresses: Sequence[Address], *, limits: ServerLimits | None = None
) -> AsyncIterator[tuple[Address, ...]]:
    """Serve `app` inside the context; yields the bound addresses. Raises BindError."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        inner = cast(web.Server, runner.server)
        expecting = web.Server(_without_expectations(inner.request_handler), request_factory=inner.request_factory)
        server = HardenedServer(expecting, host=BareHost(), limits=limits or ServerLimits())
        bound = server.bind(addresses)
        try:
            yield bound
        finally:
            await server.close(_APP_SHUTDOWN_SECONDS)
    finally:
        await runner.cleanup()


def _without_expectations(handle: Any) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    """Handle Expect ourselves: aiohttp's 417 would echo the header."""

    async def check(request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get(hdrs.EXPECT, "100-continue").lower() == "100-continue":
            return cast(web.StreamResponse, await handle(request))
        response = web.Response(status=417, headers={hdrs.CACHE_CONTROL: "no-store"})
        response.force_close()
        return response

    return check
