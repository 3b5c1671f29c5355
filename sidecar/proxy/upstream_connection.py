"""One connection to the upstream: exchanges one after another, flow control both ways, and closing."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum, auto
from math import inf
from typing import cast

from sidecar.core.errors import Fault, UpstreamCause, upstream_fault
from sidecar.proxy.known_responses import KnownResponses
from sidecar.proxy.response_parser import Flow, Informational, InvalidResponse, ResponseParser, UpstreamResponse
from sidecar.proxy.transport import FlowControlled, HeldBytes, IllegalStep, WriteBatcher, cause_of

_SUSPECT_SECONDS = 0.02
"""How long nothing may arrive after a response that declares a body and must not have one (HEAD, 204, 304). Some
servers send that body in a separate packet, and the next client would get it as its response.
"""


class State(IntEnum):
    """The state of a connection. An IntEnum, because its hash is the integer's, computed in C."""

    NEW = auto()
    IDLE = auto()
    """Between two exchanges, in the pool."""
    SENDING = auto()
    """The request is not completely sent, and no response has begun."""
    AWAITING = auto()
    """The request is sent, and the response's head is awaited."""
    EARLY = auto()
    """The response began before the request was completely sent."""
    RECEIVING = auto()
    """The request is sent, and the response has begun."""
    UPGRADED = auto()
    SUSPECT = auto()
    """The exchange is over, but a forbidden body may follow."""
    CLOSED = auto()
    """Closed, closing or aborted: nothing more is sent or read."""


STEPS: Mapping[State, frozenset[State]] = {
    State.NEW: frozenset({State.IDLE, State.CLOSED}),
    State.IDLE: frozenset({State.SENDING, State.AWAITING, State.CLOSED}),
    State.SENDING: frozenset({State.AWAITING, State.EARLY, State.CLOSED}),
    State.AWAITING: frozenset({State.RECEIVING, State.UPGRADED, State.CLOSED}),
    State.EARLY: frozenset({State.RECEIVING, State.CLOSED}),
    State.RECEIVING: frozenset({State.IDLE, State.SUSPECT, State.CLOSED}),
    State.UPGRADED: frozenset({State.CLOSED}),
    State.SUSPECT: frozenset({State.IDLE, State.CLOSED}),
    State.CLOSED: frozenset({State.CLOSED}),
}
"""The steps that a connection may take."""

# Used by each request: in Python 3.11, looking up an enum member takes as long as a call.
_IDLE, _AWAITING, _RECEIVING = State.IDLE, State.AWAITING, State.RECEIVING

_UPLOADING = frozenset({State.SENDING, State.EARLY})
_RESPONDING = frozenset({State.EARLY, State.RECEIVING})
_EXPECTING = frozenset({State.SENDING, State.AWAITING, State.EARLY, State.RECEIVING, State.UPGRADED})
"""States in which the upstream may send."""


class Stale(Exception):
    """A reused connection ended before any byte of a response: the upstream may never have seen the request."""


class ResponseWaiter(ABC):
    """Waits for a response like a future, but is called immediately, in the loop turn in which the response arrives."""

    __slots__ = ()

    @abstractmethod
    def done(self) -> bool: ...

    @abstractmethod
    def set_result(self, response: UpstreamResponse, /) -> None: ...

    @abstractmethod
    def set_exception(self, failure: Exception, /) -> None: ...


class UpstreamConnection(FlowControlled):
    """Call `begin`, then wait for the response; call `finish_request` if the body was sent after the head.

    It returns to the pool by itself when request and response are complete and it can carry another exchange.
    """

    __slots__ = (
        "_answer_timeout",
        "_deadline",
        "_drained",
        "_known",
        "_loop",
        "_on_closed",
        "_on_idle",
        "_patience",
        "_producer",
        "_reader",
        "_response",
        "_spoken",
        "_state",
        "_timer",
        "_unexpected",
        "_used",
        "_waiter",
        "_writing_paused",
        "fresh_until",
        "retires_at",
        "upload",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        batcher: WriteBatcher,
        answer_timeout: float,
        held: HeldBytes,
        *,
        known: KnownResponses | None = None,
        on_idle: "Callable[[UpstreamConnection], None]",
        on_closed: "Callable[[UpstreamConnection], None]",
    ) -> None:
        """known: for ResponseWaiters. on_idle: the exchange is over, it can carry another. on_closed: at the end."""
        super().__init__(batcher, held)
        self._loop = loop
        self._answer_timeout = self._patience = answer_timeout
        self._on_idle, self._on_closed = on_idle, on_closed
        self._reader, self._known = ResponseParser(loop), known
        self._unexpected: tuple[str, Informational | None] | None = None
        """The pending arguments of the parser's `expect`, if the response may be known by its bytes."""
        self._waiter: asyncio.Future[UpstreamResponse] | ResponseWaiter | None = None
        self._response: UpstreamResponse | None = None
        self._drained: asyncio.Future[None] | None = None
        self._producer: Flow | None = None
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writing_paused = self._spoken = self._used = False
        self._state = State.NEW
        self.fresh_until = 0.0
        """Until when the pool may keep it idle."""
        self.retires_at = inf
        """When it is too old for another exchange."""
        self.upload: asyncio.Task[None] | None = None
        """The task that sends the rest of the request; ends with the exchange."""

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def held_by_client(self) -> bool:
        """Whether it waits for the client, not the upstream: to send a body, to read, or to end a tunnel."""
        state = self._state
        if state is State.UPGRADED or state is State.CLOSED or (self._reading_paused and state in _RESPONDING):
            return True
        return state in _UPLOADING and self._deadline is None and not self._writing_paused

    def begin(
        self,
        pieces: Sequence[bytes],
        method: str,
        *,
        waiter: "asyncio.Future[UpstreamResponse] | ResponseWaiter",
        whole: bool = True,
        upgrade: bool = False,
        informational: Informational | None = None,
        answer_timeout: float | None = None,
    ) -> None:
        """Send the head of a request (`whole`: and its whole body), in pieces. `waiter` gets the response, or Fault
        (UPSTREAM_UNREACHABLE, UPSTREAM_INVALID, UPSTREAM_TIMEOUT) or Stale.

        answer_timeout: for this request, in seconds; None is that of the connection.
        """
        self._spoken = False
        if self._transport is None or self._transport.is_closing():
            waiter.set_exception(self._lost(None))
            self.abort()
            return
        self._step(_AWAITING if whole else State.SENDING)
        self._waiter = waiter
        if self._known is not None and not isinstance(waiter, asyncio.Future):
            self._unexpected = method, informational
        else:
            self._reader.expect(method, upgrade=upgrade, informational=informational)
        if (patience := answer_timeout or self._answer_timeout) != self._patience:
            self._be_patient(patience)
        self.expect_response()
        self._batcher.write_soon(self._transport, pieces)

    def withdraw(self, waiter: "asyncio.Future[UpstreamResponse]") -> None:
        """The waiter of `begin` no longer waits."""
        if self._waiter is waiter:
            self.abort()
        elif not waiter.cancelled() and waiter.exception() is None:
            self.release(waiter.result())

    def send(self, data: bytes) -> None:
        self.write(data)

    async def drained(self) -> None:
        """Wait until the upstream accepts more. Raises ConnectionError if it never will."""
        if not self.usable:
            raise ConnectionResetError
        if self._writing_paused:
            self._drained = self._loop.create_future()
            await self._drained

    def expect_response(self) -> None:
        """From now on only the upstream is waited for: the response's head must arrive in time."""
        self._deadline = deadline = self._loop.time() + self._patience
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._check_deadline)

    def expect_client(self) -> None:
        """The client is waited for as well: the upstream has no deadline."""
        self._deadline = None

    def finish_request(self) -> None:
        """Mark the request as completely sent."""
        self.upload = None
        if self._state is State.SENDING:
            self._step(State.AWAITING)
            self.expect_response()
        elif self._state is State.EARLY:
            self._step(State.RECEIVING)
            if self._reader.complete:
                self._conclude()

    def set_producer(self, producer: Flow | None) -> None:
        self._producer = producer
        if producer is not None and self._writing_paused:
            producer.pause_reading()

    def release(self, response: UpstreamResponse) -> None:
        if self._response is not response:
            return
        self._batcher.flush()
        upgraded = self._state is State.UPGRADED
        if upgraded and self._transport is not None and self._transport.get_write_buffer_size():
            # The client's last bytes have yet to arrive.
            self._response = None
            self._step(State.CLOSED)
            self._transport.close()
            self._loop.call_later(self._patience, self._transport.abort)
        else:
            self.abort()

    def abort(self) -> None:
        """Abort whatever is in progress."""
        self._step(State.CLOSED)
        self._response = None
        if self.upload is not None:
            self.upload.cancel()
            self.upload = None
        if self._transport is not None:
            self._transport.abort()

    def fail(self, failure: Exception, fault: Fault) -> None:
        """Abort. The waiter for the response's head gets `failure`; the reader of its body gets `fault`."""
        waiter, self._waiter = self._waiter, None
        response = self._response
        self._deadline = None
        self.abort()
        if waiter is not None and not waiter.done():
            waiter.set_exception(failure)
        elif response is not None:
            response.fail(fault)

    # Transport callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=1)  # Buffer at most one piece.
        self._step(State.IDLE)

    def get_buffer(self, sizehint: int) -> memoryview:
        flows = self._response is not None and self._response.flowing and not self._reader.in_small_pieces
        return self._held.stream_buffer if flows else self._held.buffer

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        if self._state not in _EXPECTING:
            self.abort()
            return
        self._spoken = True
        if self._unexpected is not None and self._take_known(data):
            return
        try:
            reader.feed(data)
        except InvalidResponse as invalid:
            self._fail(invalid.cause)
            return
        if self._waiter is None:
            self._hold_back(reader)
            if len(data) == len(self._held.stream_buffer):
                self._let_others_read()
        elif reader.response is not None:
            self._deliver(reader.response)
            if len(data) == len(self._held.buffer):  # More has already arrived, and is read in this turn of the loop.
                self._hold_back(reader)
        if reader.complete and self._state is State.RECEIVING:
            self._conclude()

    def eof_received(self) -> bool:
        """Returns True to keep the other direction open."""
        self._expect()
        if not self._reader.end_of_input() or self._state in _UPLOADING:
            return False
        if self._state is State.UPGRADED and self._transport is not None and self._transport.can_write_eof():
            return True
        self._response = None
        self._step(State.CLOSED)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._step(State.CLOSED)
        self._on_closed(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._drained is not None and not self._drained.done():
            self._drained.set_exception(ConnectionResetError())
        response = self._response
        if self._waiter is not None:
            self.fail(self._lost(exc), upstream_fault(UpstreamCause.BODY_CUT))
        elif response is not None and not response.complete:
            self._fail(UpstreamCause.BODY_CUT)
        elif response is not None and response.on_gone is not None:
            response.on_gone()
        self._reader.close()

    def pause_writing(self) -> None:
        self._writing_paused = True
        if self._producer is not None:
            self._producer.pause_reading()

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self._producer is not None:
            self._producer.resume_reading()

    # Helpers of the methods above.

    def _be_patient(self, seconds: float) -> None:
        """Drop the timer of the previous request, which may be set for later than this one may wait."""
        self._patience = seconds
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expect(self) -> None:
        if self._unexpected is not None:
            method, informational = self._unexpected
            self._unexpected = None
            self._reader.expect(method, informational=informational)

    def _take_known(self, data: bytes) -> bool:
        """Whether `data` is a complete known response; if so, it is delivered."""
        waiter, unexpected = self._waiter, self._unexpected
        readable = self._known is not None and unexpected is not None and unexpected[0] != "HEAD"
        response = self._known.read(data) if self._known is not None and readable else None
        if response is None or waiter is None:
            self._expect()
            return False
        self._waiter = self._unexpected = self._deadline = None
        self._step(_RECEIVING)
        waiter.set_result(response)
        self._used = True
        if self.usable:
            self._become_idle()
        else:
            self.abort()
        return True

    def _become_idle(self) -> None:
        self._step(_IDLE)
        self._on_idle(self)

    def _deliver(self, response: UpstreamResponse) -> None:
        waiter, self._waiter = self._waiter, None
        self._deadline = None
        self._response = response
        response.source = self
        response.early = self._state is State.SENDING
        self._step(State.EARLY if response.early else State.UPGRADED if self._reader.upgraded else State.RECEIVING)
        if waiter is not None and not waiter.done():
            waiter.set_result(response)

    def _hold_back(self, reader: ResponseParser) -> None:
        """Pause reading: one turn of the loop can read megabytes before the task that awaits the response runs."""
        if self._response is not None and not self._response.flowing and not reader.complete:
            self.pause_reading()

    def _let_others_read(self) -> None:
        """Pause until the loop's next turn.

        In one turn, uvloop reads 32 times from a sender that is faster than we are.
        """
        if self._transport is not None and not self._transport.is_closing() and not self._reading_paused:
            self._transport.pause_reading()
            self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if self._transport is not None and not self._transport.is_closing() and not self._reading_paused:
            self._transport.resume_reading()

    def _conclude(self) -> None:
        self._response = None
        self._used = True
        reader = self._reader
        if not reader.keep_alive or reader.excess_data or not self.usable:
            self.abort()
            return
        self.resume_reading()
        if reader.unexpected_body:
            self._step(State.SUSPECT)
            self._loop.call_later(_SUSPECT_SECONDS, self._hand_back)
        else:
            self._become_idle()

    def _hand_back(self) -> None:
        if self._state is State.SUSPECT and self.usable:
            self._become_idle()

    def _step(self, state: State) -> None:
        if state not in STEPS[self._state]:
            raise IllegalStep(f"{self._state.name} to {state.name}")
        self._state = state

    def _lost(self, exc: Exception | None) -> Exception:
        if self._spoken:
            return upstream_fault(UpstreamCause.HEAD_CUT)
        return Stale() if self._used else upstream_fault(cause_of(exc))

    def _fail(self, cause: UpstreamCause) -> None:
        fault = upstream_fault(cause)
        self.fail(fault, fault)

    def _check_deadline(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._check_deadline)
        else:
            self._fail(UpstreamCause.REQUEST_BODY if self._state in _UPLOADING else UpstreamCause.RESPONSE_HEAD)
