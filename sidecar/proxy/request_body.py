"""The client's body as it arrives: kept until it is read, and paused while it is not being read."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from sidecar.config.document import Limits
from sidecar.core.errors import Reason
from sidecar.http.requests import HeadLimits
from sidecar.proxy.request_parser import BrokenBody
from sidecar.proxy.response_parser import Flow
from sidecar.proxy.transport import UNREAD_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyRules:
    """How large and how slow a body may be.

    rate: least bytes a second, on average over `window_seconds` of waiting for the client; 0 for no minimum.
    loop_time: the event loop's own time, in seconds.
    """

    limit: int | None
    rate: int
    window_seconds: float
    loop_time: Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRules:
    """Limits on the resources of a client.

    linger_seconds: how long it may keep sending after a response that ends the connection. quiet_seconds: the same,
    while nothing arrives.
    """

    limits: Limits
    head: HeadLimits
    known_bytes: int
    """A request up to this length is within every limit on bytes."""
    bodies: BodyRules
    linger_seconds: float
    quiet_seconds: float


class ClientBody:
    """One request's body.

    source: what is paused. length: as declared; None if it is chunked. go_ahead: asks the client to send it (`100
    Continue`), before the first read; None if the client does not wait.
    """

    __slots__ = (
        "_credit_seconds", "_dropped", "_failure", "_go_ahead", "_paused", "_pieces", "_reader", "_rules", "_source",
        "_unread", "_waiting_since", "ended", "length", "limit", "received",
    )  # fmt: skip

    def __init__(
        self, source: Flow, rules: BodyRules, *, length: int | None, go_ahead: Callable[[], None] | None
    ) -> None:
        self._source, self._rules, self._go_ahead = source, rules, go_ahead
        self.length = length
        self.limit: float | None = rules.limit
        """The largest length, in bytes; None is no limit."""
        self.received = 0
        """Bytes read so far."""
        self.ended = False
        """Whether all of it has arrived."""
        self._pieces: list[bytes] = []
        self._unread = 0
        self._paused = self._dropped = False
        self._reader: asyncio.Future[None] | None = None
        self._failure: BrokenBody | None = None
        self._credit_seconds = rules.window_seconds
        self._waiting_since: float | None = None

    @classmethod
    def whole(cls, source: Flow, rules: BodyRules, data: bytes) -> "ClientBody":
        """A body that has already arrived, and is not too long."""
        body = cls(source, rules, length=len(data), go_ahead=None)
        body.limit = None
        body.feed(data)
        body.end()
        return body

    @property
    def chunked(self) -> bool:
        """Whether it is chunked; otherwise the head gives its length."""
        return self.length is None

    @property
    def waited_for(self) -> bool:
        """Whether the client waits for `100 Continue`."""
        return self._go_ahead is not None

    @property
    def too_large(self) -> bool:
        """Whether the declared or the received length exceeds the limit."""
        limit = self.limit
        return limit is not None and (self.length or self.received + self._unread) > limit

    def overdue(self, now: float) -> bool:
        """Whether the client has been too slow for too long while it was waited for."""
        since = self._waiting_since
        return since is not None and self._rules.rate > 0 and now - since > self._credit_seconds

    def at_hand(self) -> bytes | None:
        """The whole body, if it has arrived; may be called once."""
        return self._take() if self.ended and not self.too_large else None

    async def read(self) -> bytes:
        """The next piece, empty at the end. Raises BrokenBody."""
        if self._go_ahead is not None:
            self._go_ahead()
            self._go_ahead = None
        self._waiting_since = began = self._rules.loop_time()
        try:
            await self._come()
        finally:
            self._waiting_since = None
        if self._failure is not None:
            raise self._failure
        data = self._take()
        self._account(len(data), self._rules.loop_time() - began)
        if self.limit is not None and self.received > self.limit:
            raise BrokenBody(Reason.BODY_TOO_LARGE)
        return data

    def drop(self) -> None:
        """Stop reading: discard whatever still arrives."""
        self._dropped = True
        self._take()

    # Called by the connection.

    def feed(self, data: bytes) -> None:
        if self._dropped:
            return
        self._pieces.append(data)
        self._unread += len(data)
        if self._unread > UNREAD_BYTES and not self._paused:
            self._paused = True
            self._source.pause_reading()
        self._wake()

    def end(self) -> None:
        self.ended = True
        self._wake()

    def fail(self, reason: Reason = Reason.BAD_REQUEST) -> None:
        """Make the reader get BrokenBody."""
        self._failure = BrokenBody(reason)
        self._wake()

    # Below: steps of the above.

    async def _come(self) -> None:
        if not self._pieces and not self.ended and self._failure is None:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _take(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self.received += len(data)
        self._unread = 0
        if self._paused:
            self._paused = False
            self._source.resume_reading()
        return data

    def _account(self, size: int, waited_seconds: float) -> None:
        """Each byte earns waiting time, each wait spends it; at most one window of time is saved."""
        rules = self._rules
        if rules.rate:
            credit = self._credit_seconds - waited_seconds + size / rules.rate
            self._credit_seconds = min(credit, rules.window_seconds)
