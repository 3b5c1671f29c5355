"""The connections to the upstream: limited in number, kept while idle, handed out newest first."""

import asyncio
import ssl
from collections import deque
from itertools import islice
from math import inf

from sidecar.config.document import Limits, UpstreamSettings
from sidecar.core.errors import Fault, Reason, UpstreamCause, upstream_fault
from sidecar.proxy.known_responses import KnownResponses
from sidecar.proxy.tls import upstream_context
from sidecar.proxy.transport import HeldBytes, WriteBatcher, cause_of
from sidecar.proxy.upstream_connection import UpstreamConnection

MAX_QUEUE = 10_000
"""Most requests that may wait for a connection at a time."""


LEND_SECONDS = 0.1
"""While requests wait, how often to look for connections that wait only for their clients."""

_AGE_SPREAD = 0.2
"""Connections that were opened together retire one after another, within this share of their maximum age."""
_GOLDEN_RATIO = 0.618034
"""Its multiples, modulo 1, are spread evenly between 0 and 1, however many there are."""


class Pool:
    """Connections that wait for clients do not count while others are needed: slow clients cannot take all places.

    tls: the context of connections to a TLS upstream; by default made from the settings, which raises OSError.
    most_lent: at most this many do not count, because each takes a descriptor of the process; None is no limit. held:
    shared with the listener, if there is one.
    """

    def __init__(
        self,
        settings: UpstreamSettings,
        *,
        loop: asyncio.AbstractEventLoop,
        tls: ssl.SSLContext | None = None,
        most_lent: int | None = None,
        held: HeldBytes | None = None,
    ) -> None:
        self._settings, self._loop, self.most_lent = settings, loop, most_lent
        self._tls = tls or (upstream_context(settings.tls) if settings.tls else None)
        self._batcher, self._known = WriteBatcher(loop), KnownResponses(loop)
        self._held_bytes = held or HeldBytes(Limits().held_bytes)
        self._all: set[UpstreamConnection] = set()
        self._idle: deque[UpstreamConnection] = deque()
        self._connecting = 0
        self._queue: deque[asyncio.Future[UpstreamConnection | None]] = deque()
        self._held: set[UpstreamConnection] = set()
        self._lent: set[UpstreamConnection] = set()
        self._lender: asyncio.TimerHandle | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._sweeps_at = inf
        self._opened = 0
        self._closed = False

    def idle(self) -> UpstreamConnection | None:
        """The most recently used idle connection, if there is one."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def acquire(self) -> UpstreamConnection:
        """An idle connection, or a new one. Raises Fault (UPSTREAM_BUSY, _TIMEOUT, _UNREACHABLE)."""
        return self.idle() or await self.fresh()

    async def fresh(self) -> UpstreamConnection:
        """A new connection or, if the limit is reached, one that another request has just released."""
        if not self._has_room():
            handed_on = await self._wait()
            if handed_on is not None:
                return handed_on if handed_on.usable else await self.acquire()
        else:
            self._connecting += 1
        try:
            return await self._connect()
        finally:
            self._connecting -= 1
            self._offer_room()

    def release(self, connection: UpstreamConnection) -> None:
        """Take back a connection whose exchange is over and which can carry another."""
        if self._lent:
            self._lent.discard(connection)
        now = self._loop.time()
        too_many = len(self._all) - len(self._lent) > self._settings.max_connections
        if self._closed or too_many or now >= connection.retires_at:
            connection.abort()
        elif not self._queue or not self._hand_on(connection):
            connection.fresh_until = min(now + self._settings.idle_timeout, connection.retires_at)
            self._idle.append(connection)
            if connection.fresh_until < self._sweeps_at:
                self._sweep_at(connection.fresh_until)

    def forget(self, connection: UpstreamConnection) -> None:
        """Remove a connection that has ended."""
        self._all.discard(connection)
        self._lent.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._offer_room()

    def close_when_idle(self) -> None:
        """Close idle connections, and keep none from now on."""
        self._closed = True
        while self._idle:
            self._idle.popleft().abort()

    def close(self) -> None:
        """Close every connection, including those in use."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._lender is not None:
            self._lender.cancel()
        for connection in list(self._all):
            connection.abort()

    async def _connect(self) -> UpstreamConnection:
        """Connect. The name is resolved each time, so that a changed address takes effect."""
        settings = self._settings
        try:
            async with asyncio.timeout(settings.connect_timeout):
                connection = await self._open()
        except TimeoutError:
            raise upstream_fault(UpstreamCause.CONNECT) from None
        except (OSError, UnicodeError) as error:
            raise upstream_fault(cause_of(error)) from None
        if not connection.usable:
            raise upstream_fault(UpstreamCause.CLOSED)
        connection.retires_at = self._loop.time() + self._next_age()
        self._all.add(connection)
        return connection

    def _next_age(self) -> float:
        """For how many seconds the next connection takes requests. Only its successor resolves the name again."""
        self._opened += 1
        most = self._settings.max_connection_age
        return inf if most is None else most * (1 - _AGE_SPREAD * (self._opened * _GOLDEN_RATIO % 1))

    async def _open(self) -> UpstreamConnection:
        address, tls = self._settings.address, self._settings.tls
        name = ((tls.server_name if tls else "") or address.host) if self._tls and not address.path else None
        if address.path:
            _, connection = await self._loop.create_unix_connection(self._make, address.path)
        else:
            _, connection = await self._loop.create_connection(
                self._make, address.host, address.port, ssl=self._tls, server_hostname=name
            )
        return connection

    def _make(self) -> UpstreamConnection:
        return UpstreamConnection(
            self._loop,
            self._batcher,
            self._settings.answer_timeout,
            self._held_bytes,
            known=self._known,
            on_idle=self.release,
            on_closed=self.forget,
        )

    async def _wait(self) -> UpstreamConnection | None:
        """A connection that became free, or None with the right to open one."""
        if len(self._queue) >= MAX_QUEUE:
            raise Fault(Reason.UPSTREAM_BUSY)
        turn: asyncio.Future[UpstreamConnection | None] = self._loop.create_future()
        self._queue.append(turn)
        timer = self._loop.call_later(self._settings.queue_timeout, _give_up, turn)
        if self._lender is None:
            self._lender = self._loop.call_later(LEND_SECONDS, self._lend)
        try:
            return await turn
        except asyncio.CancelledError:
            self._pass_on(turn)
            raise
        finally:
            timer.cancel()

    def _pass_on(self, turn: "asyncio.Future[UpstreamConnection | None]") -> None:
        """Pass the turn of a request that is gone to the next one."""
        if not turn.done() or turn.cancelled() or turn.exception() is not None:
            return
        connection = turn.result()
        if connection is not None:
            self.release(connection)
        else:
            self._connecting -= 1
            self._offer_room()

    def _hand_on(self, connection: UpstreamConnection | None) -> bool:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(connection)
                return True
        return False

    def _has_room(self) -> bool:
        return len(self._all) - len(self._lent) + self._connecting < self._settings.max_connections

    def _offer_room(self) -> None:
        if self._queue and self._has_room() and self._hand_on(None):
            self._connecting += 1

    def _lend(self) -> None:
        """Lend the places of connections that were found waiting for their clients twice in a row."""
        self._lender = self._loop.call_later(LEND_SECONDS, self._lend)  # First, so that a failed round is not the last.
        held = {connection for connection in self._all if connection.held_by_client}
        self._lent, self._held = set(islice(held & self._held, self.most_lent)), held
        while self._queue and self._has_room():
            self._offer_room()
        if not self._queue:
            self._lender.cancel()
            self._lender, self._held = None, set()

    def _sweep_at(self, when: float) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._sweeper, self._sweeps_at = self._loop.call_at(when, self._sweep), when

    def _sweep(self) -> None:
        now, idle = self._loop.time(), self._idle
        self._sweeper, self._sweeps_at = None, inf
        self._idle = deque(connection for connection in idle if connection.fresh_until > now)
        if self._idle:
            self._sweep_at(min(connection.fresh_until for connection in self._idle))
        for connection in idle:
            if connection.fresh_until <= now:
                connection.abort()


def _give_up(turn: "asyncio.Future[UpstreamConnection | None]") -> None:
    if not turn.done():
        turn.set_exception(Fault(Reason.UPSTREAM_BUSY))
