"""A client's connection: one request after another, and limits on the resources that a client may use."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from enum import IntEnum, auto
from functools import partial
from typing import Literal, cast

from sidecar.core.errors import Reason
from sidecar.http.accepting import Places
from sidecar.http.requests import MalformedHead, MessageHead
from sidecar.proxy.exchange import Exchange
from sidecar.proxy.handler import Handler
from sidecar.proxy.request_body import ClientBody, ClientRules
from sidecar.proxy.request_parser import END, BrokenBody, Event, RequestParser
from sidecar.proxy.response_parser import Flow
from sidecar.proxy.transport import FlowControlled, HeldBytes, IllegalStep, WriteBatcher, reset, was_reset
from sidecar.proxy.tunnel import Tunnel


class State(IntEnum):
    """The state of a connection."""

    NEW = auto()
    WAITING = auto()
    """Waits for a request, or for the rest of its head."""
    RESPONDING = auto()
    READING_OUT = auto()
    """The response is sent; the rest of the request's body is read and discarded."""
    LINGERING = auto()
    """The last response is sent, and the client gets time to read it."""
    CLOSED = auto()


STEPS: Mapping[State, frozenset[State]] = {
    State.NEW: frozenset({State.WAITING, State.CLOSED}),
    State.WAITING: frozenset({State.RESPONDING, State.LINGERING, State.CLOSED}),
    State.RESPONDING: frozenset({State.WAITING, State.READING_OUT, State.LINGERING, State.CLOSED}),
    State.READING_OUT: frozenset({State.WAITING, State.LINGERING, State.CLOSED}),
    State.LINGERING: frozenset({State.CLOSED}),
    State.CLOSED: frozenset({State.CLOSED}),
}
"""The steps that a connection may take."""

# Used by each request: in Python 3.11, looking up an enum member takes as long as a call.
_WAITING, _RESPONDING, _LINGERING = State.WAITING, State.RESPONDING, State.LINGERING


class ClientConnection(FlowControlled):
    """The parser turns bytes into events, and the handler responds, in one task per request.

    The task is cancelled when the client disconnects.
    """

    __slots__ = (
        "_admitted", "_arrived", "_body", "_exchange", "_half_closed_since", "_handler", "_head_since", "_loop",
        "_on_closed", "_parser", "_places", "_producer", "_rules", "_sent_half_closed", "_since", "_spoke_at", "_state",
        "_task", "_tunnel", "_unsent", "_unsent_since", "date_line", "is_probe", "peer", "scheme", "untried",
        "writing_paused",
    )  # fmt: skip

    def __init__(
        self,
        places: Places,
        batcher: WriteBatcher,
        handler: Handler,
        rules: ClientRules,
        held: HeldBytes,
        *,
        on_closed: "Callable[[ClientConnection], None]",
        admitted: bool = False,
        is_probe: bool = False,
        peer: str = "",
    ) -> None:
        """on_closed: called once, at the end. admitted: already counted by `places`. is_probe: it is the sidecar's own.

        peer: the client's address if a proxy has sent it; empty for the socket's peer.
        """
        super().__init__(batcher, held)
        self._places, self._loop = places, asyncio.get_running_loop()
        self._handler, self._rules, self._admitted, self._on_closed = handler, rules, admitted, on_closed
        self._parser = RequestParser(rules.head)
        self._task: asyncio.Task[None] | None = None
        self._exchange: Exchange | None = None
        self._body: ClientBody | None = None
        self._arrived = b""
        """Bytes that may be a known request, kept until the next turn of the loop."""
        self._producer: Flow | None = None
        self._tunnel: Tunnel | None = None
        self._state = State.NEW
        self._since = self._head_since = self._spoke_at = self._half_closed_since = 0.0
        """When the state began; when the first byte of an incomplete head arrived, or 0; when bytes arrived while
        lingering; since when nothing has been sent to a client that ended its side, or 0."""
        self._sent_half_closed = self._unsent = 0
        self._unsent_since = 0.0
        self.writing_paused = False
        self.untried = True
        """No request has arrived yet."""
        self.is_probe, self.peer, self.date_line = is_probe, peer, handler.date_line
        self.scheme: Literal["http", "https"] = "http"

    @property
    def closing_when_idle(self) -> bool:
        return self._handler.closing_when_idle

    @property
    def entered(self) -> bool:
        """Whether it has been connected; from then on it releases its own place."""
        return self._state is not State.NEW

    @property
    def receives_head(self) -> bool:
        """Whether the first byte of a request has arrived, but not its whole head."""
        return self._head_since > 0 or self._arrived != b""

    @property
    def has_sent_more(self) -> bool:
        return self._parser.holds_more

    @property
    def exchange(self) -> Exchange | None:
        """The current exchange."""
        return self._exchange

    @property
    def task(self) -> "asyncio.Task[None] | None":
        """The task that responds to the current request."""
        return self._task

    def close_when_idle(self) -> None:
        """Close now if no request is in progress."""
        if self._state is State.WAITING and not self._arrived:
            self._close()

    def check(self, now: float) -> None:
        """End what has taken too long. Called about once a second, so that no request needs a timer."""
        rules, limits = self._rules, self._rules.limits
        gone = self._reading_paused and was_reset(self._transport)
        if gone or self._is_stuck(now, limits.answer_timeout):
            self.reset(cut=not gone)
            return
        match self._state:
            case State.RESPONDING if self._exchange is not None:
                self._check_exchange(now, self._exchange)
            case State.WAITING if self._head_since:
                if now - max(self._head_since, self._since) >= limits.head_timeout:
                    self._refuse(Reason.REQUEST_TIMEOUT)
            case State.WAITING if now - self._since >= limits.idle_timeout:
                self._close()
            case State.READING_OUT | State.LINGERING:
                if now - self._since >= rules.linger_seconds or now - self._spoke_at >= rules.quiet_seconds:
                    self._close()

    def set_producer(self, producer: Flow | None) -> None:
        self._producer = producer
        if producer is None:
            return
        if self.writing_paused:
            producer.pause_reading()
        else:
            producer.resume_reading()

    def switch(self, tunnel: Tunnel) -> bytes:
        self._tunnel = tunnel
        rest = self._parser.rest()
        self.resume_reading()
        return rest

    def reset(self, *, cut: bool = True) -> None:
        """Not by a plain end, which could be taken for the end of the response. cut: it is the sidecar that ends it."""
        if self._exchange is not None:
            self._exchange.cut = cut
        if self._transport is not None:
            self._batcher.flush()
            reset(self._transport)

    # Called by the handler, for a request without a task.

    def begin(self, exchange: Exchange) -> None:
        self._parser.hold()
        self._step(_RESPONDING)
        self._head_since, self.untried = 0.0, False
        self._exchange, self._body = exchange, exchange.body

    def carry_on(self, work: Callable[[], Coroutine[object, None, None]]) -> None:
        if self._exchange is not None:
            self._task = self._loop.create_task(self._respond(self._exchange, work))

    def end(self, exchange: Exchange) -> None:
        self._exchange = None
        if self._state is _RESPONDING:
            self._end_response(exchange)

    def cut(self) -> None:
        """Abort the current response, so that it cannot be taken for complete."""
        if self._task is not None:
            self._task.cancel()
        self.reset()

    # Transport callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        name = transport.get_extra_info("peername")
        self.peer = self.peer or (name[0] if isinstance(name, tuple) else "")
        self.scheme = "http" if transport.get_extra_info("sslcontext") is None else "https"
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=1)  # Buffer at most one piece.
        self._admitted = self._admitted or (not self.is_probe and self._places.admit(self.peer))
        if self._admitted or self.is_probe:
            self._step(State.WAITING)
        else:
            self._step(State.CLOSED)
            reset(self._transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._held.buffer if self._body is None or self._parser.in_small_pieces else self._held.stream_buffer

    def data_received(self, data: bytes) -> None:
        if self._tunnel is not None:
            self._tunnel.take(data)
            return
        if self._arrived:
            data, self._arrived = self._arrived + data, b""
        elif self._state is _WAITING and len(data) <= self._rules.known_bytes and self._parser.is_empty:
            # Decided in the next turn of the loop, with the keys as they are once the whole head has arrived.
            self._arrived = data
            self._handler.arrived(self)
            return
        self._receive_longer(data)

    def take_arrived(self) -> None:
        data, self._arrived = self._arrived, b""
        if data and self._state is _WAITING:
            try:
                known = self._handler.respond_now(self, data, self._rules.head, self._rules.bodies)
            except Exception as exc:
                self._fail(exc)
                return
            if not known:
                self._receive_longer(data)

    def _receive_longer(self, data: bytes) -> None:
        self._spoke_at = self._loop.time()
        if self._state is State.WAITING and self._begin_whole(data):
            return
        if self._state is not State.LINGERING and self._state is not State.CLOSED:
            self._receive(self._parser.feed(data))

    def eof_received(self) -> bool:
        """Returns True to keep the other direction open, which TLS cannot."""
        self.take_arrived()
        plain = self._transport is not None and self._transport.can_write_eof()
        if self._tunnel is not None:
            return self._tunnel.end() and plain
        body = self._exchange.body if self._exchange is not None else None
        if self._state is not State.RESPONDING or (body is not None and not body.ended):
            self._batcher.flush()
            return False
        self._half_closed_since = self._loop.time()
        self._sent_half_closed = self._exchange.bytes_out if self._exchange is not None else 0
        return plain

    def connection_lost(self, exc: BaseException | None) -> None:
        self._step(State.CLOSED)
        self._held.give_back(self._transport)
        self._tunnel, self._transport, self._arrived = None, None, b""
        self._parser.close()
        if self._task is not None:
            self._task.cancel()
        if self._exchange is not None and self._exchange.pending is not None:
            self._exchange.pending.cancel()
        if self._admitted:
            self._places.release(self.peer)
        self._on_closed(self)

    def pause_writing(self) -> None:
        self.writing_paused = True
        self._tell_held()
        if self._producer is not None:
            self._producer.pause_reading()

    def resume_writing(self) -> None:
        self.writing_paused = False
        self._tell_held()
        if self._producer is not None:
            self._producer.resume_reading()
        if self._state is State.RESPONDING and self._exchange is None:
            self._receive_next()

    # Helpers of the methods above.

    def _receive(self, events: Iterable[Event]) -> None:
        try:
            for event in events:
                self._take(event)
        except MalformedHead as malformed:
            self._refuse(malformed.reason)
        except BrokenBody as broken:
            self._break_body(broken.reason)
        except Exception as exc:
            self._fail(exc)
        if self._state is State.WAITING:
            self._head_since = (self._head_since or self._loop.time()) if self._parser.in_head else 0.0
        elif self._parser.is_full:
            self.pause_reading()

    def _begin_whole(self, data: bytes) -> bool:
        """Whether `data` was exactly one head. If so, its request is started or refused."""
        try:
            head = self._parser.read_whole(data)
            if head is None:
                return False
            self._begin(head)
        except MalformedHead as malformed:
            self._refuse(malformed.reason)
        except Exception as exc:
            self._fail(exc)
        return True

    def _take(self, event: Event) -> None:
        if isinstance(event, MessageHead):
            self._begin(event)
            return
        body = self._body
        if event is not END:
            if body is not None:
                body.feed(event)
        elif body is not None:
            body.end()
            if self._state is State.READING_OUT:
                self._loop.call_soon(self._receive_next)

    def _begin(self, head: MessageHead) -> None:
        self._step(State.RESPONDING)
        self._head_since, self.untried = 0.0, False
        self._exchange = exchange = Exchange.of_message(self, head, self._rules.bodies)
        self._body = exchange.body
        self.carry_on(partial(self._handler.serve, exchange))

    async def _respond(self, exchange: Exchange, work: Callable[[], Coroutine[object, None, None]]) -> None:
        try:
            await work()
        finally:
            self._exchange = self._task = None
        if self._state is State.RESPONDING:
            self._end_response(exchange)

    def _end_response(self, exchange: Exchange) -> None:
        body = exchange.body
        if body is not None and not body.ended:
            body.drop()
            if exchange.keep_alive:
                self._step(State.READING_OUT)
            else:
                self._linger()
        elif not exchange.keep_alive:
            if self._parser.holds_more:
                self._linger()
            else:
                self._close()
        elif not self.writing_paused:  # Otherwise it resumes once the client has read enough.
            self._receive_next()

    def _receive_next(self) -> None:
        if self._state is State.CLOSED:
            return
        self._step(_WAITING)
        self._body, self._head_since = None, 0.0
        events = self._parser.next_request()
        if self._parser.holds_more:
            self._receive(events)
        self.resume_reading()
        if self._half_closed_since and self._state is State.WAITING:
            self._close()

    def _fail(self, exc: Exception) -> None:
        """Our own code raised: end the connection and write to the log."""
        self._handler.failed(exc)
        if self._state is State.WAITING:
            self._refuse(Reason.INTERNAL)
        else:
            self.cut()

    def _refuse(self, reason: Reason) -> None:
        """Respond to bytes that are not a request."""
        self.write(self._handler.refuse(self.peer, reason))
        self._linger()

    def _break_body(self, reason: Reason) -> None:
        """Handle a malformed rest of a body. A request without a response in progress is dropped."""
        self._parser.close()
        exchange = self._exchange
        if exchange is None or self._task is None:
            self._linger()
        elif exchange.began:
            if exchange.body is not None:
                exchange.body.fail(reason)
        else:
            self._task.cancel()
            self._exchange = self._task = None
            self._refuse(reason)

    def _linger(self) -> None:
        """Give the client time to read the response: closing while it is still sending would reset the connection."""
        has_room = self._places.may_linger
        self._step(State.LINGERING)
        self._parser.close()
        if self._transport is None or self._transport.is_closing():
            return
        if not has_room:
            self._close()
            return
        self.send_eof()
        self.resume_reading()

    def _close(self) -> None:
        self._step(State.CLOSED)
        if self._transport is not None:
            self._batcher.flush()
            self._transport.close()

    def _check_exchange(self, now: float, exchange: Exchange) -> None:
        limits = self._rules.limits
        if self._half_closed_since:
            if self._unsent or exchange.bytes_out != self._sent_half_closed:  # Who is gone resets what is sent.
                self._sent_half_closed, self._half_closed_since = exchange.bytes_out, now
            elif now - self._half_closed_since >= limits.half_closed_timeout:
                self.reset()
                return
        exchange.check(now, limits.idle_timeout)

    def _is_stuck(self, now: float, patience_seconds: float) -> bool:
        """Whether none of the pending bytes could be sent for that long."""
        unsent = self._transport.get_write_buffer_size() if self._transport is not None else 0
        if unsent != self._unsent:
            self._unsent, self._unsent_since = unsent, now
            self._held.moved(self._transport)
        return unsent > 0 and now - self._unsent_since >= patience_seconds

    def _tell_held(self) -> None:
        self._held.tell(self._transport, writing_paused=self.writing_paused, reading_paused=self._reading_paused)

    def _step(self, state: State) -> None:
        before = self._state
        if state not in STEPS[before]:
            raise IllegalStep(f"{before.name} to {state.name}")
        if state is _LINGERING or before is _LINGERING:
            self._places.lingering += (state is _LINGERING) - (before is _LINGERING)
        self._state, self._since = state, self._loop.time()
