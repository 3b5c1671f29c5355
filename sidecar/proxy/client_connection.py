"""A client's connection: aiohttp parses, we answer. One task a connection, one request after the other."""

import asyncio
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum, auto
from typing import Literal, NoReturn, cast

from aiohttp import StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo
from aiohttp.web_request import BaseRequest
from aiohttp.web_server import Server

from sidecar.config.document import Limits
from sidecar.core.errors import Reason
from sidecar.http.connection_limits import ConnectionLimits
from sidecar.proxy.exchange import Exchange
from sidecar.proxy.handler import Handler
from sidecar.proxy.request_body import BadFraming, BodyRules, BrokenBody
from sidecar.proxy.request_parser import RateLimitedLog, RequestParser, reason_of
from sidecar.proxy.response_parser import Flow
from sidecar.proxy.transport import IllegalStep, WriteBatcher

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRules:
    """What a client may take up.

    linger_seconds: how long it may still send after an answer that ends the connection.
    """

    limits: Limits
    bodies: BodyRules
    linger_seconds: float


class State(IntEnum):
    """Of a connection, as its handler sees it; the parser's own state is aiohttp's."""

    NEW = auto()
    WAITING = auto()
    """For a request, or for the rest of its head."""
    RESPONDING = auto()
    READING_OUT = auto()
    """The response is sent; the rest of the request's body is read and dropped."""
    LINGERING = auto()
    """The last response is sent, and the client gets time to read it."""
    CLOSED = auto()


STEPS: Mapping[State, frozenset[State]] = {
    State.NEW: frozenset({State.WAITING, State.CLOSED}),
    State.WAITING: frozenset({State.RESPONDING, State.LINGERING, State.CLOSED}),
    State.RESPONDING: frozenset({State.WAITING, State.READING_OUT, State.LINGERING, State.CLOSED}),
    State.READING_OUT: frozenset({State.WAITING, State.CLOSED}),
    State.LINGERING: frozenset({State.CLOSED}),
    State.CLOSED: frozenset({State.CLOSED}),
}
"""The steps that a connection may take."""


class ClientConnection(RequestParser):
    """aiohttp's connection, with a loop of our own over its requests.

    aiohttp's own (`start`) makes a task, a writer and a timer of each request, and answers errors by itself, with a
    traceback in the log. Here the handler runs in the connection's task; it is cancelled when the client hangs up.
    """

    __slots__ = (
        "_admitted",
        "_batcher",
        "_connections",
        "_exchange",
        "_handler",
        "_idle_since",
        "_producer",
        "_rules",
        "_state",
        "_unsent",
        "_unsent_since",
        "_wire",
        "peer",
        "scheme",
    )  # fmt: skip

    def __init__(
        self, connections: "Connections", handler: Handler, rules: ClientRules, *, admitted: bool = False
    ) -> None:
        super().__init__(connections, rules.limits, loop=connections._loop)
        self._handler, self._rules, self._admitted = handler, rules, admitted
        self._connections, self._batcher = connections, connections.batcher
        self._wire: asyncio.Transport | None = None
        self._producer: Flow | None = None
        self._exchange: Exchange | None = None
        self._state = State.NEW
        self._unsent = 0
        self._idle_since = self._unsent_since = 0.0
        self.peer = ""
        self.scheme: Literal["http", "https"] = "http"

    async def start(self) -> None:
        """Respond to the requests in order, until one of them is the last. Cancelled when the client hangs up."""
        try:
            while await self._respond_to_next():
                self._step(State.WAITING)
                self._idle_since = self._loop.time()
        except ConnectionError:
            pass  # The client is gone.
        finally:
            self._step(State.CLOSED)
            if self.transport is not None:
                self._batcher.flush()
                self.transport.close()

    @property
    def closing_when_idle(self) -> bool:
        return self._handler.closing_when_idle

    @property
    def entered(self) -> bool:
        """It has been connected, and releases its place by itself."""
        return self._state is not State.NEW

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
        """The one under way."""
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
        elif self._state is not State.WAITING or self._waiter is None:
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

    def set_producer(self, producer: Flow | None) -> None:
        self._producer = producer
        if producer is None:
            return
        if self._paused:
            producer.pause_reading()
        else:
            producer.resume_reading()

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
        self._admitted = self._admitted or self._connections.admit(self.peer)
        if self._admitted:
            self._step(State.WAITING)
            super().connection_made(transport)
        else:
            self._step(State.CLOSED)
            self._close = True
            reset(self._wire)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._step(State.CLOSED)
        if self._admitted:
            self._connections.release(self.peer)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._producer is not None:
            self._producer.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._producer is not None:
            self._producer.resume_reading()

    # Below: steps of the above.

    def _is_stuck(self, now: float, patience_seconds: float) -> bool:
        """Nothing of what waits to be sent has gone for that long."""
        unsent = self._wire.get_write_buffer_size() if self._wire is not None else 0
        if unsent != self._unsent:
            self._unsent, self._unsent_since = unsent, now
        return unsent > 0 and now - self._unsent_since >= patience_seconds

    async def _respond_to_next(self) -> bool:
        """Respond to a request. Returns whether another one can follow."""
        message, payload = await self.next_message()
        try:
            if isinstance(message, _ErrInfo):
                return await self._refuse(reason_of(message.exc))
            exchange = self._exchange = Exchange(self, message, payload, self._rules.bodies)
        except BadFraming:
            return await self._refuse(Reason.BAD_REQUEST)
        self._step(State.RESPONDING)
        try:
            await self._handler.serve(exchange)
        finally:
            self._exchange = None
        if not payload.is_eof():
            return await self._read_out(payload) if exchange.keep_alive else await self._lingering_close()
        if self._paused:
            await self._drain_helper()
        return exchange.keep_alive

    async def _refuse(self, reason: Reason) -> bool:
        self.write(self._handler.refuse(self.peer, reason))
        return await self._lingering_close()

    async def _read_out(self, payload: StreamReader) -> bool:
        """Read and drop the rest of a body. Returns whether it ended in time."""
        self._step(State.READING_OUT)
        try:
            async with asyncio.timeout(self._rules.linger_seconds):
                while await payload.readany():
                    pass
        except (TimeoutError, BrokenBody, RuntimeError):
            return False
        return True

    async def _lingering_close(self) -> bool:
        """Give the client time to read the response: closing while it still sends would reset the connection."""
        self._step(State.LINGERING)
        self._close = True
        if self.transport is not None and not self.transport.is_closing():
            self._batcher.flush()
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self.transport.resume_reading()
            await asyncio.sleep(self._rules.linger_seconds)
        return False

    def _step(self, state: State) -> None:
        if state not in STEPS[self._state]:
            raise IllegalStep(f"{self._state.name} to {state.name}")
        self._state = state


def reset(transport: asyncio.Transport) -> None:
    """Close at once, unsent bytes forgotten, so that the other end can tell it from an end."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


# Every client's connection: counted, made, and checked once a second.


_CHECK_SECONDS = 1.0
_CHECKS_IN_A_TIMEOUT = 5


class Connections(Server):
    """aiohttp's server, with connections of our own.

    trusts: addresses that stand for many clients; the limit by address does not apply to them.
    """

    def __init__(
        self, handler: Handler, rules: ClientRules, *, trusts: Callable[[str], bool], rate_limited: RateLimitedLog
    ) -> None:
        super().__init__(_never, handler_cancellation=True)
        self._handler, self._rules, self._trusts = handler, rules, trusts
        self._limits_held = ConnectionLimits()
        self._timer: asyncio.TimerHandle | None = None
        self._rate_limited = rate_limited
        self.batcher = WriteBatcher(self._loop)

    def __call__(self) -> RequestHandler:
        return ClientConnection(self, self._handler, self._rules)

    def reconfigure(self, rules: ClientRules, *, trusts: Callable[[str], bool]) -> None:
        """Rules for connections from here on."""
        self._rules, self._trusts = rules, trusts

    def open(self) -> list[ClientConnection]:
        return cast(list[ClientConnection], self.connections)

    def admit(self, peer: str) -> bool:
        """Whether one more may come; if so, `release` is to follow."""
        limits = self._rules.limits
        of_one = None if peer == "" or self._trusts(peer) else limits.connections_per_address
        exceeded = self._limits_held.acquire(peer, most=limits.connections, most_of_one=of_one)
        if exceeded is not None:
            self._rate_limited.count("connection", f"refused (limits.{exceeded})", peer)
            self._handler.connection_refused(exceeded)
            return False
        if self._timer is None:
            self._timer = self._loop.call_later(self._check_seconds(), self._check)
        return True

    def release(self, peer: str) -> None:
        self._limits_held.release(peer)

    def make_admitted(self) -> ClientConnection:
        """A connection that has been admitted already."""
        return ClientConnection(self, self._handler, self._rules, admitted=True)

    def close(self) -> None:
        """Stop the checks."""
        if self._timer is not None:
            self._timer.cancel()
        self._rate_limited.flush()

    def _check_seconds(self) -> float:
        limits = self._rules.limits
        timeouts = (limits.head_timeout, limits.answer_timeout, limits.idle_timeout, self._rules.bodies.window_seconds)
        return min(_CHECK_SECONDS, min(timeouts) / _CHECKS_IN_A_TIMEOUT)

    def _check(self) -> None:
        now, self._timer = self._loop.time(), None
        for connection in self.open():
            connection.check(now)
        if self._limits_held:
            self._timer = self._loop.call_later(self._check_seconds(), self._check)


async def _never(request: BaseRequest) -> NoReturn:
    raise NotImplementedError
