"""The connections to the upstream: bounded in number, kept while idle, given out newest first."""

import asyncio
import ssl
from collections import deque
from itertools import islice

from sidecar.config.document import UpstreamSettings
from sidecar.core.errors import Fault, Reason, UpstreamCause, upstream_fault
from sidecar.proxy.known_heads import KnownResponses
from sidecar.proxy.tls import upstream_context
from sidecar.proxy.transport import WriteBatcher, cause_of
from sidecar.proxy.upstream_connection import UpstreamConnection

MAX_QUEUE = 10_000
"""Requests that may wait for a connection at a time."""


LEND_SECONDS = 0.1
"""How often, while requests wait, it is seen which connections wait for nothing but their clients."""


class Pool:
    """Connections that wait for their clients do not count while others are needed: the slow cannot take all places.

    tls: the context of connections to a TLS upstream; by default what the settings say, which raises OSError.
    most_lent: how many do not count, at most, because each is a descriptor of the process; None is no limit.
    """

    def __init__(
        self,
        settings: UpstreamSettings,
        *,
        loop: asyncio.AbstractEventLoop,
        tls: ssl.SSLContext | None = None,
        most_lent: int | None = None,
    ) -> None:
        self._settings, self._loop, self._most_lent = settings, loop, most_lent
        self._tls = tls or (upstream_context(settings.tls) if settings.tls else None)
        self._batcher, self._known = WriteBatcher(loop), KnownResponses(loop)
        self._all: set[UpstreamConnection] = set()
        self._idle: deque[UpstreamConnection] = deque()
        self._connecting = 0
        self._queue: deque[asyncio.Future[UpstreamConnection | None]] = deque()
        self._held: set[UpstreamConnection] = set()
        self._lent: set[UpstreamConnection] = set()
        self._lender: asyncio.TimerHandle | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    def idle(self) -> UpstreamConnection | None:
        """The connection that was used last, if one waits to be used."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def acquire(self) -> UpstreamConnection:
        """An idle connection, or a new one. Raises Fault (UPSTREAM_BUSY, _TIMEOUT, _UNREACHABLE)."""
        return self.idle() or await self.fresh()

    async def fresh(self) -> UpstreamConnection:
        """A new connection or, where there can be no more, one that another request has just finished with."""
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
        """An exchange is over and the connection can carry another."""
        self._lent.discard(connection)
        if self._closed or len(self._all) - len(self._lent) > self._settings.max_connections:
            connection.abort()
        elif not self._hand_on(connection):
            connection.fresh_until = self._loop.time() + self._settings.idle_timeout
            self._idle.append(connection)
            if self._sweeper is None:
                self._sweeper = self._loop.call_at(connection.fresh_until, self._sweep)

    def forget(self, connection: UpstreamConnection) -> None:
        """A connection has ended."""
        self._all.discard(connection)
        self._lent.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._offer_room()

    def close_when_idle(self) -> None:
        """Keep no connection that nobody uses."""
        self._closed = True
        while self._idle:
            self._idle.popleft().abort()

    def close(self) -> None:
        """End every connection, those in use too."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._lender is not None:
            self._lender.cancel()
        for connection in list(self._all):
            connection.abort()

    async def _connect(self) -> UpstreamConnection:
        """The name is looked up each time, so that a changed address is followed."""
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
        self._all.add(connection)
        return connection

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
            known=self._known,
            on_idle=self.release,
            on_closed=self.forget,
        )

    async def _wait(self) -> UpstreamConnection | None:
        """A connection that became free, or None and the right to open one."""
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
        """A turn came to a request that is gone."""
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
        """Give the places of connections that were found waiting for their clients twice."""
        self._lender = self._loop.call_later(LEND_SECONDS, self._lend)  # First: a round that fails is not the last.
        held = {connection for connection in self._all if connection.held_by_client}
        self._lent, self._held = set(islice(held & self._held, self._most_lent)), held
        while self._queue and self._has_room():
            self._offer_room()
        if not self._queue:
            self._lender.cancel()
            self._lender, self._held = None, set()

    def _sweep(self) -> None:
        now, self._sweeper = self._loop.time(), None
        try:
            while self._idle and self._idle[0].fresh_until <= now:
                self._idle.popleft().abort()
        finally:
            if self._idle:
                self._sweeper = self._loop.call_at(self._idle[0].fresh_until, self._sweep)


def _give_up(turn: "asyncio.Future[UpstreamConnection | None]") -> None:
    if not turn.done():
        turn.set_exception(Fault(Reason.UPSTREAM_BUSY))
