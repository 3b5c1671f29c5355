"""Binds listeners, and closes them without resetting connections that were just accepted."""

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress

from sidecar.config.fields import Address
from sidecar.http.accepting import Acceptor, Bind, Places, bound, peer_of, waiting
from sidecar.http.proxy_protocol import MalformedProxyHeader, ProxyHeader, parse_proxy_header
from sidecar.proxy.client_connection import ClientConnection
from sidecar.proxy.handler import Handler
from sidecar.proxy.request_body import ClientRules
from sidecar.proxy.transport import HeldBytes, WriteBatcher, reset_socket

# The open connections: created, checked once a second, and closed.


_CHECK_SECONDS = 1.0
_CHECKS_IN_A_TIMEOUT = 5


class Connections:
    """Called for each accepted connection; returns its protocol."""

    def __init__(self, places: Places, handler: Handler, rules: ClientRules, held: HeldBytes) -> None:
        self.places, self.held = places, held
        held.on_reset = places.tell_reset
        self._handler, self._rules, self._loop = handler, rules, asyncio.get_running_loop()
        self._batcher = WriteBatcher(self._loop)
        self._open: set[ClientConnection] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._all_closed: asyncio.Future[None] | None = None

    def __call__(self, *, admitted: bool = False, is_probe: bool = False, peer: str = "") -> ClientConnection:
        connection = ClientConnection(
            self.places,
            self._batcher,
            self._handler,
            self._rules,
            self.held,
            on_closed=self.discard,
            admitted=admitted,
            is_probe=is_probe,
            peer=peer,
        )
        self._open.add(connection)
        if self._timer is None:
            self._timer = self._loop.call_later(self._check_seconds(), self._check)
        return connection

    def __iter__(self) -> Iterator[ClientConnection]:
        return iter(list(self._open))

    def reconfigure(self, rules: ClientRules) -> None:
        """Set the rules for new connections."""
        self._rules = rules

    def discard(self, connection: ClientConnection) -> None:
        """Remove a connection that has ended, or never began."""
        self._open.discard(connection)
        if not self._open and self._all_closed is not None and not self._all_closed.done():
            self._all_closed.set_result(None)

    async def wait_closed(self, within_seconds: float) -> None:
        """Wait until none is open, up to the timeout."""
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
        """Check all connections, even if one of them raises."""
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
    """Clients without TLS, accepted by the event loop itself: fast, if there are enough descriptors."""

    timeout_seconds = 0.0
    """Stands for the handshake timeout of the other listener."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._bound: list[asyncio.Server] = []

    async def start(self, addresses: Sequence[Address], *, backlog: int, bind: Bind = bound) -> tuple[Address, ...]:
        """Bind, and return the addresses. Raises BindError."""
        sockets, places = bind(addresses, backlog)
        for listening in sockets:
            serve = self._loop.create_unix_server if listening.family == socket.AF_UNIX else self._loop.create_server
            self._bound.append(await serve(self._connections, sock=listening, backlog=backlog))
        return places

    async def close(self, patience_seconds: float) -> None:
        """Accept no more connections; those already established are registered when this returns."""
        servers, self._bound = self._bound, []
        listening = [each for server in servers for each in server.sockets]
        held = [socket.socket(fileno=os.dup(each.fileno())) for each in listening]
        for server in servers:
            server.close()
        coming = [self._loop.connect_accepted_socket(self._connections, accepted) for accepted in waiting(held)]
        await asyncio.gather(*coming, return_exceptions=True)
        await asyncio.sleep(0)  # Connections that the loop accepted in this turn are set up in the next.


# The PROXY protocol header.


_MOST_AT_ONCE = 4096


class ProxyHeaders:
    """Reads the header that a proxy sends at the start of a connection, and nothing after it.

    trusts: whether a peer is a proxy that must send one. on_refused: receives the peer of a connection that is reset,
    and why; also if the header does not arrive in time.
    """

    def __init__(self, *, trusts: Callable[[str], bool], on_refused: Callable[[str, str], None]) -> None:
        self._trusts, self._on_refused, self._loop = trusts, on_refused, asyncio.get_running_loop()

    def expects(self, accepted: socket.socket, peer: str) -> bool:
        """Whether `accepted` must begin with a header; otherwise it is reset.

        A Unix socket is protected by its mode.
        """
        if accepted.family == socket.AF_UNIX or self._trusts(peer):
            return True
        self._refuse(accepted, peer, "the peer is not in trusted_proxies")
        return False

    async def client_of(self, accepted: socket.socket, peer: str, *, within_seconds: float) -> str | None:
        """The client's address, or `peer` if the header has none. None: the connection has been closed."""
        try:
            async with asyncio.timeout(within_seconds):
                header = await self._read(accepted)
        except MalformedProxyHeader:
            self._refuse(accepted, peer, "malformed header")
        except TimeoutError:
            self._refuse(accepted, peer, "no header within limits.head_timeout")
        except OSError:
            accepted.close()
        except BaseException:
            accepted.close()
            raise
        else:
            if header is not None:
                return header.client or peer
            accepted.close()
        return None

    async def _read(self, accepted: socket.socket) -> ProxyHeader | None:
        """Bytes after the header stay in the kernel: they may be the beginning of a TLS handshake.

        None: the peer closed without sending a byte, as a health check does.
        """
        received, header = b"", None
        while header is None or len(received) < header.size:
            await self._readable(accepted)
            with suppress(BlockingIOError, InterruptedError):
                seen = accepted.recv(_MOST_AT_ONCE, socket.MSG_PEEK)
                if not seen and not received:
                    return None
                if not seen:
                    raise MalformedProxyHeader
                header = parse_proxy_header(received + seen)
                received += accepted.recv(len(seen) if header is None else header.size - len(received))
        return header

    async def _readable(self, accepted: socket.socket) -> None:
        ready = asyncio.Event()
        self._loop.add_reader(accepted, ready.set)
        try:
            await ready.wait()
        finally:
            self._loop.remove_reader(accepted)

    def _refuse(self, accepted: socket.socket, peer: str, why: str) -> None:
        reset_socket(accepted)
        self._on_refused(peer, why)


# Clients that are counted as soon as they are accepted: those with TLS, until their handshake is over (with the current
# certificate); those behind a proxy that sends their addresses; and all, if there are few descriptors.


class CountingListener:
    """context: returns that of the next handshake, which a listener of the event loop cannot change. None: no TLS.

    Handshakes that fail, or take longer than `timeout_seconds`, are dropped silently. on_exhausted: as in Acceptor.
    headers: None if no proxy sends any.
    """

    def __init__(
        self,
        connections: Connections,
        context: Callable[[], ssl.SSLContext] | None,
        *,
        timeout_seconds: float,
        on_exhausted: Callable[[], None],
        headers: ProxyHeaders | None = None,
    ) -> None:
        self._connections, self._context, self.timeout_seconds = connections, context, timeout_seconds
        self._headers = headers
        self._loop = asyncio.get_running_loop()
        self._acceptor = Acceptor(self._meet, on_exhausted=on_exhausted)
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, addresses: Sequence[Address], *, backlog: int, bind: Bind = bound) -> tuple[Address, ...]:
        """Bind, and return the addresses. Raises BindError."""
        return self._acceptor.start(addresses, backlog=backlog, bind=bind)

    async def close(self, patience_seconds: float) -> None:
        """Accept no more connections; handshakes that do not finish in time are dropped."""
        for accepted in waiting(self._acceptor.stop()):
            accepted.setblocking(False)
            self._meet(accepted, peer_of(accepted))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience_seconds)
        for task in self._tasks:
            task.cancel()

    def _meet(self, accepted: socket.socket, name: object) -> None:
        peer = name[0] if isinstance(name, tuple) else ""
        if self._headers is not None and not self._headers.expects(accepted, peer):
            return
        if not self._connections.places.admit(peer):
            accepted.close()
        elif self._headers is None:
            self._run(self._connect(accepted, peer))
        else:
            self._run(self._introduce(self._headers, accepted, peer))

    async def _introduce(self, headers: ProxyHeaders, accepted: socket.socket, peer: str) -> None:
        """Until the header arrives, the place counts for the proxy; afterwards for the client."""
        try:
            client = await headers.client_of(accepted, peer, within_seconds=self.timeout_seconds)
        finally:
            self._connections.places.release(peer)
        if client is None:
            return
        if self._connections.places.admit(client):
            await self._connect(accepted, client)
        else:
            reset_socket(accepted)

    async def _connect(self, accepted: socket.socket, peer: str) -> None:
        connection = self._connections(admitted=True, peer=peer)
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
