"""Binding, and ending without resetting those who have just come."""

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator

from sidecar.config.fields import Address
from sidecar.http.accepting import Acceptor, Places, peer_of, waiting
from sidecar.proxy.client_connection import ClientConnection, ClientRules
from sidecar.proxy.handler import Handler
from sidecar.proxy.transport import HeldBytes, WriteBatcher

# The open connections: made, checked once a second, and closed.


_CHECK_SECONDS = 1.0
_CHECKS_IN_A_TIMEOUT = 5


class Connections:
    """Called for each connection that is accepted; gives its protocol."""

    def __init__(self, places: Places, handler: Handler, rules: ClientRules, held: HeldBytes) -> None:
        self.places, self.held = places, held
        held.on_reset = places.tell_reset
        self._handler, self._rules, self._loop = handler, rules, asyncio.get_running_loop()
        self._batcher = WriteBatcher(self._loop)
        self._open: set[ClientConnection] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._all_closed: asyncio.Future[None] | None = None

    def __call__(self, *, admitted: bool = False, is_probe: bool = False) -> ClientConnection:
        connection = ClientConnection(
            self.places,
            self._batcher,
            self._handler,
            self._rules,
            self.held,
            on_closed=self.discard,
            admitted=admitted,
            is_probe=is_probe,
        )
        self._open.add(connection)
        if self._timer is None:
            self._timer = self._loop.call_later(self._check_seconds(), self._check)
        return connection

    def __iter__(self) -> Iterator[ClientConnection]:
        return iter(list(self._open))

    def reconfigure(self, rules: ClientRules) -> None:
        """Rules for connections from here on."""
        self._rules = rules

    def discard(self, connection: ClientConnection) -> None:
        """It has ended, or never began."""
        self._open.discard(connection)
        if not self._open and self._all_closed is not None and not self._all_closed.done():
            self._all_closed.set_result(None)

    async def wait_closed(self, within_seconds: float) -> None:
        """Wait until none is open, but not longer than that."""
        if self._open:
            self._all_closed = self._loop.create_future()
            await asyncio.wait([self._all_closed], timeout=within_seconds)

    def close(self) -> None:
        """Stop the checks."""
        if self._timer is not None:
            self._timer.cancel()

    def _check_seconds(self) -> float:
        limits = self._rules.limits
        timeouts = (
            limits.head_timeout,
            limits.answer_timeout,
            limits.idle_timeout,
            limits.half_closed_timeout,
            self._rules.bodies.window_seconds,
            self._rules.quiet_seconds,
        )
        return min(_CHECK_SECONDS, min(timeouts) / _CHECKS_IN_A_TIMEOUT)

    def _check(self) -> None:
        """Goes on whatever one of the connections raises."""
        now = self._loop.time()
        self._timer = self._loop.call_later(self._check_seconds(), self._check) if self._open else None
        for connection in list(self._open):
            try:
                connection.check(now)
            except Exception as exc:
                self._handler.failed(exc)
                connection.cut()


# Binding.


class PlainListener:
    """Clients without TLS, accepted by the event loop: quickly, where descriptors are plenty."""

    timeout_seconds = 0.0
    """Of the handshake, which there is none of."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._bound: asyncio.Server | None = None

    async def start(self, address: Address, *, backlog: int) -> Address:
        """Bind; gives where. Raises OSError."""
        if address.path:
            self._bound = await self._loop.create_unix_server(self._connections, address.path, backlog=backlog)
            return address
        self._bound = bound = await self._loop.create_server(
            self._connections, address.host, address.port, backlog=backlog
        )
        return Address(host=address.host, port=bound.sockets[0].getsockname()[1])

    async def close(self, patience_seconds: float) -> None:
        """Take no more connections; those that have been made by then are there when this returns."""
        if self._bound is None:
            return
        held = [socket.socket(fileno=os.dup(listening.fileno())) for listening in self._bound.sockets]
        self._bound.close()
        self._bound = None
        coming = [self._loop.connect_accepted_socket(self._connections, accepted) for accepted in waiting(held)]
        await asyncio.gather(*coming, return_exceptions=True)
        await asyncio.sleep(0)  # What the loop accepted in this very turn gets to know of it in the next.


# Clients that are counted as soon as they are accepted: those that speak TLS, until their handshake is over, with the
# certificate of the moment; and all, where there are few descriptors.


class CountingListener:
    """context: gives the one for the next handshake, where an event loop's listener has one for good. None: no TLS.

    Handshakes that fail, or take longer than `timeout_seconds`, end without a word. on_exhausted: as of Acceptor.
    """

    def __init__(
        self,
        connections: Connections,
        context: Callable[[], ssl.SSLContext] | None,
        *,
        timeout_seconds: float,
        on_exhausted: Callable[[], None],
    ) -> None:
        self._connections, self._context, self.timeout_seconds = connections, context, timeout_seconds
        self._loop = asyncio.get_running_loop()
        self._acceptor = Acceptor(self._meet, on_exhausted=on_exhausted)
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, address: Address, *, backlog: int) -> Address:
        """Bind; gives where. Raises OSError."""
        return self._acceptor.start(address, backlog=backlog)

    async def close(self, patience_seconds: float) -> None:
        """Take no more connections; handshakes that are not over in time are given up."""
        for accepted in waiting(self._acceptor.stop()):
            accepted.setblocking(False)
            self._meet(accepted, peer_of(accepted))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience_seconds)
        for task in self._tasks:
            task.cancel()

    def _meet(self, accepted: socket.socket, name: object) -> None:
        peer = name[0] if isinstance(name, tuple) else ""
        if self._connections.places.admit(peer):
            self._run(self._connect(accepted, peer))
        else:
            accepted.close()

    async def _connect(self, accepted: socket.socket, peer: str) -> None:
        connection = self._connections(admitted=True)
        tls = {} if self._context is None else {"ssl": self._context(), "ssl_handshake_timeout": self.timeout_seconds}
        try:
            await self._loop.connect_accepted_socket(lambda: connection, accepted, **tls)  # type: ignore[arg-type]
        except OSError:
            accepted.close()
        finally:
            if not connection.entered:
                self._connections.places.release(peer)
                self._connections.discard(connection)

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
