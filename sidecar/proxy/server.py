"""The data listener: starts, drains, and ends streams whose keys have lost their access."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterable
from dataclasses import replace

from sidecar.config.document import Limits
from sidecar.config.fields import Address
from sidecar.core.errors import Reason
from sidecar.core.model import Allow, ApiKey
from sidecar.core.observer import Observer
from sidecar.core.policy import same_rights
from sidecar.core.units import Clock
from sidecar.http.accepting import Bind, Places, RateLimitedLog, bound
from sidecar.http.requests import HeadLimits
from sidecar.proxy.client_connection import ClientConnection
from sidecar.proxy.exchange import Exchange
from sidecar.proxy.handler import Handler, Snapshot
from sidecar.proxy.listener import Connections, CountingListener, PlainListener, ProxyHeaders
from sidecar.proxy.request_body import BodyRules, ClientRules
from sidecar.proxy.transport import HeldBytes

_BACKLOG = 4096
_PROBE = b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n"
_PROBE_SECONDS = 1.0


class DataServer:
    """Create it inside the running loop. `addresses` are those that it is bound to.

    snapshot: for requests that begin now. tls: the context of the next handshake; None for no TLS. proxy_protocol:
    connections begin with its header, and come from proxies that `snapshot` trusts. body_window_seconds: the period
    over which a body's speed is averaged. first_request_seconds: how long, while draining, a new connection may take to
    send its first request. few_files: a burst of connections could use up all descriptors. held: shared with the
    upstream.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        observer: Observer,
        clock: Clock,
        tls: Callable[[], ssl.SSLContext] | None = None,
        body_window_seconds: float = 10.0,
        linger_seconds: float = 30.0,
        quiet_seconds: float = 5.0,
        first_request_seconds: float = 0.3,
        few_files: bool = False,
        proxy_protocol: bool = False,
        held: HeldBytes | None = None,
    ) -> None:
        loop, limits = asyncio.get_running_loop(), snapshot.limits
        self._clock, self._observer, self._first_request_seconds = clock, observer, first_request_seconds
        self._rate_limited = rate_limited = RateLimitedLog(loop)
        self._handler = Handler(snapshot, observer=observer, clock=clock, rate_limited=rate_limited)
        bodies = BodyRules(
            limit=limits.body, rate=limits.body_rate, window_seconds=body_window_seconds, loop_time=loop.time
        )
        self._rules = ClientRules(
            limits=limits,
            head=_head_limits(limits),
            known_bytes=_known_bytes(limits),
            bodies=bodies,
            linger_seconds=linger_seconds,
            quiet_seconds=quiet_seconds,
        )
        places = Places(
            limits, trusts=snapshot.trusts, rate_limited=rate_limited, on_refused=observer.connection_refused
        )
        self._connections = Connections(places, self._handler, self._rules, held or HeldBytes(limits.held_bytes))
        self._listener = (
            PlainListener(self._connections)
            if tls is None and not few_files and not proxy_protocol
            else self._counting_listener(tls, self._proxy_headers() if proxy_protocol else None)
        )
        self.addresses: tuple[Address, ...] = ()

    async def start(self, *addresses: Address, bind: Bind = bound) -> None:
        """Bind. Raises BindError."""
        self.addresses = await self._listener.start(addresses, backlog=_BACKLOG, bind=bind)

    def reconfigure(self, snapshot: Snapshot) -> None:
        """Use `snapshot` for requests that begin from now on. Open connections keep their limits."""
        old, limits = self._handler.snapshot.every_upstream, snapshot.limits
        self._handler.snapshot = snapshot
        for upstream in old:
            if upstream not in snapshot.every_upstream:
                upstream.close_when_idle()
        bodies = replace(self._rules.bodies, limit=limits.body, rate=limits.body_rate)
        self._rules = replace(
            self._rules,
            limits=limits,
            head=_head_limits(limits),
            known_bytes=_known_bytes(limits),
            bodies=bodies,
        )
        self._connections.reconfigure(self._rules)
        self._connections.held.limit = limits.held_bytes
        self._connections.places.reconfigure(limits, trusts=snapshot.trusts)
        self._listener.timeout_seconds = limits.head_timeout

    async def answers(self) -> bool:
        """Whether the data path responds to the sidecar's own probe, on a connection that no client can have."""
        ours, its = socket.socketpair()
        ours.setblocking(False)
        its.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await loop.connect_accepted_socket(lambda: self._connections(is_probe=True), its)
                await loop.sock_sendall(ours, _PROBE)
                return (await loop.sock_recv(ours, 1024)).startswith(b"HTTP/1.1 204 ")
        except (TimeoutError, OSError):
            return False
        finally:
            ours.close()

    def _counting_listener(
        self, tls: Callable[[], ssl.SSLContext] | None, headers: ProxyHeaders | None
    ) -> CountingListener:
        return CountingListener(
            self._connections,
            tls,
            timeout_seconds=self._rules.limits.head_timeout,
            on_exhausted=self._no_more_files,
            headers=headers,
        )

    def _proxy_headers(self) -> ProxyHeaders:
        return ProxyHeaders(trusts=lambda peer: self._handler.snapshot.trusts(peer), on_refused=self._no_proxy_header)

    def _no_proxy_header(self, peer: str, why: str) -> None:
        self._observer.connection_refused("proxy_protocol")
        self._rate_limited.count("connection", f"refused (proxy_protocol: {why})", peer or "a Unix socket")

    def _no_more_files(self) -> None:
        self._observer.connection_refused("open_files")
        self._rate_limited.count(
            "connection", "made to wait: no more files can be opened (ulimit -n)", str(self.addresses[0])
        )

    def close_when_idle(self) -> None:
        """From now on, close each connection after its current response."""
        self._handler.closing_when_idle = True

    def keep_open(self) -> None:
        """Undo `close_when_idle`."""
        self._handler.closing_when_idle = False

    async def stop(self, *, grace_seconds: float) -> None:
        """Accept no more connections, let running requests finish within `grace_seconds`, and reset the rest.

        A request has begun with the first byte of its head. That of a new connection may still be on its way.
        """
        self.close_when_idle()
        first_seconds = min(self._first_request_seconds, grace_seconds)
        await self._listener.close(first_seconds)
        connections = self._connections
        _retire(connection for connection in connections if not connection.untried)
        await connections.wait_closed(first_seconds)
        _retire(connections)
        await connections.wait_closed(grace_seconds - first_seconds)
        late = [connection.task for connection in connections if connection.task is not None]
        for connection in connections:
            connection.cut()
        await asyncio.gather(*late, return_exceptions=True)
        connections.close()
        self._rate_limited.flush()

    async def revalidate_streams(self, *, older_than_seconds: float) -> None:
        """End exchanges that have run for this long and whose key is no longer allowed to do what they do.

        The key is judged as it is stored now, under the configuration that the exchange began with: a reload ends no
        exchange, and an unchanged key is not judged again.
        """
        began_by, found = self._clock.monotonic() - older_than_seconds, dict[str, ApiKey | Reason]()
        for connection in self._connections:
            exchange = connection.exchange
            if exchange is None or exchange.began > began_by or not isinstance(exchange.decision, Allow):
                continue
            allow = exchange.decision
            if allow.principal is None:
                continue
            key = allow.principal.key
            if key.id not in found:
                found[key.id] = await self._handler.snapshot.gate.revalidate(key)
            reason = _refusal(exchange, allow, found[key.id])
            if reason is not None and connection.exchange is exchange:
                exchange.end(reason)
                await asyncio.sleep(0)  # Thousands of streams may end with a single key.


def _refusal(exchange: Exchange, allow: Allow, key: ApiKey | Reason) -> Reason | None:
    if isinstance(key, Reason):
        return key
    if exchange.gate is None or allow.principal is None or same_rights(key, allow.principal.key):
        return None
    return exchange.gate.reauthorize(exchange.head, allow, key)


def _retire(connections: Iterable[ClientConnection]) -> None:
    for connection in connections:
        if not connection.receives_head:
            connection.close_when_idle()


def _known_bytes(limits: Limits) -> int:
    return min(limits.request_line, limits.header, limits.head)


def _head_limits(limits: Limits) -> HeadLimits:
    return HeadLimits(
        request_line_bytes=limits.request_line,
        header_bytes=limits.header,
        headers=limits.headers,
        head_bytes=limits.head,
    )
