"""The data listener: requests in, answers out. Read `DataServer._respond` first; it is the way of one request."""

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from sidecar.config.settings import Address, Limits
from sidecar.core.errors import Fault, Reason
from sidecar.core.model import Allow, Decision, Deny, Headers, Principal, RequestHead, Response
from sidecar.core.observer import Observer
from sidecar.proxy.client_connection import ClientConnection, ClientRules
from sidecar.proxy.exchange import Exchange, local_response_head, persistence
from sidecar.proxy.listener import Connections, PlainListener, TlsListener
from sidecar.proxy.request_body import BodyRules
from sidecar.proxy.upstream import BrokenBody, Upstream

# What the data path asks of the gate.


class Gate(Protocol):
    """Decides, and words our own answers. One gate serves a request from its head to its end."""

    async def decide(self, head: RequestHead) -> Decision: ...

    async def revalidate(self, principal: Principal) -> Reason | None:
        """Why a principal that was let through would not be any longer; None where it would."""

    def response(self, deny: Deny) -> Response: ...

    def respond(self, allow: Allow) -> Response: ...

    def client_headers(self, allow: Allow) -> Headers: ...

    def fault(self, reason: Reason, allow: Allow) -> Response: ...

    def bad_request(self, reason: Reason) -> Response: ...


_BACKLOG = 4096
_FIRST_REQUEST_SECONDS = 0.3
"""How long, at the end, a connection may take to say what it came for."""
_log = logging.getLogger(__name__)


def _nobody(peer: str) -> bool:
    return False


class DataServer:
    """To be made where its loop runs.

    gate: the one in force; asked once a request. clock: seconds, monotonic. tls: the context of the next handshake;
    None for none. trusts: peers that stand for many clients. body_window_seconds: what a body's speed is an average of.
    """

    def __init__(
        self,
        gate: Callable[[], Gate],
        upstream: Upstream,
        *,
        observer: Observer,
        clock: Callable[[], float],
        limits: Limits | None = None,
        tls: Callable[[], ssl.SSLContext] | None = None,
        trusts: Callable[[str], bool] = _nobody,
        body_window_seconds: float = 10.0,
        linger_seconds: float = 2.0,
    ) -> None:
        self._gate, self._upstream, self._observer, self._clock = gate, upstream, observer, clock
        limits = limits or Limits()
        bodies = BodyRules(
            limit=limits.body,
            rate=limits.body_rate,
            window_seconds=body_window_seconds,
            clock=asyncio.get_running_loop().time,
        )
        self._rules = ClientRules(limits=limits, bodies=bodies, linger_seconds=linger_seconds)
        self._connections = Connections(self, self._rules, trusts=trusts)
        self._listener: PlainListener | TlsListener = (
            PlainListener(self._connections)
            if tls is None
            else TlsListener(self._connections, tls, timeout_seconds=limits.head_timeout)
        )
        self.address = Address()
        """Where it is bound, once it is started."""
        self.closing_when_idle = False
        """Every answer is its connection's last."""

    async def start(self, address: Address) -> None:
        """Bind. Raises OSError."""
        self.address = await self._listener.start(address, backlog=_BACKLOG)

    def reconfigure(self, upstream: Upstream, *, limits: Limits, trusts: Callable[[str], bool]) -> None:
        """Forward requests that begin from here on to `upstream`. Connections keep the limits that they came under."""
        if upstream is not self._upstream:
            self._upstream.close_when_idle()
        self._upstream = upstream
        bodies = replace(self._rules.bodies, limit=limits.body, rate=limits.body_rate)
        self._rules = replace(self._rules, limits=limits, bodies=bodies)
        self._connections.reconfigure(self._rules, trusts=trusts)
        self._listener.timeout_seconds = limits.head_timeout

    def close_when_idle(self) -> None:
        """Every answer is its connection's last from here on."""
        self.closing_when_idle = True

    async def stop(self, *, grace_seconds: float) -> None:
        """Take no more connections, finish what has begun for at most `grace_seconds`, and end the rest.

        A request has begun with the first byte of its head; that of a connection that has just come may be on its way.
        """
        self.close_when_idle()
        first_seconds = min(_FIRST_REQUEST_SECONDS, grace_seconds)
        await self._listener.close(first_seconds)
        connections = self._connections.open()
        _retire(connection for connection in connections if not connection.untried)
        tasks = [connection._task_handler for connection in connections if connection._task_handler is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=first_seconds)
            _retire(connections)
            _, late = await asyncio.wait(tasks, timeout=grace_seconds - first_seconds)
            for connection in self._connections.open():
                connection.force_close()
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._connections.close()

    async def revalidate_streams(self, *, older_than_seconds: float) -> None:
        """Break off what has gone on for so long under a key that is not good any longer."""
        began_by, reasons = self._clock() - older_than_seconds, dict[str, Reason | None]()
        for connection in self._connections.open():
            exchange = connection.exchange
            if exchange is None or exchange.began > began_by or not isinstance(exchange.decision, Allow):
                continue
            principal = exchange.decision.principal
            if principal is None:
                continue
            if principal.key.id not in reasons:
                reasons[principal.key.id] = await self._gate().revalidate(principal)
            reason = reasons[principal.key.id]
            if reason is not None and connection.exchange is exchange:
                exchange.reset(reason)

    async def serve(self, exchange: Exchange) -> None:
        """Answer one request, whatever happens, and tell the observer."""
        began = exchange.began = self._clock()
        gate, upstream = self._gate(), self._upstream
        self._observer.begun()
        try:
            await self._respond(exchange, gate, upstream)
        except BrokenBody as broken:
            self._give_up(exchange, gate, broken.reason)
        except Exception as exc:
            self._give_up(exchange, gate, Reason.INTERNAL)
            _log_failure(exc)
        finally:
            self._observer.finished(
                exchange.head,
                exchange.decision,
                exchange.status,
                seconds=self._clock() - began,
                upstream_seconds=exchange.upstream_seconds,
                bytes_in=exchange.bytes_in,
                bytes_out=exchange.bytes_out,
                reason=exchange.reason,
                forwarding=exchange.forwarding,
            )

    def refuse(self, peer: str, reason: Reason) -> bytes:
        response = self._gate().bad_request(reason)
        self._observer.bad_request(response.status, reason)
        self._connections.rate_limited.count("malformed request", "refused", f"{peer or 'a Unix socket'}: {reason}")
        return local_response_head(response, persistence=persistence(False, (1, 1))) + response.body

    def connection_refused(self, limit: str) -> None:
        self._observer.connection_refused(limit)

    async def _respond(self, exchange: Exchange, gate: Gate, upstream: Upstream) -> None:
        decision = exchange.decision = await gate.decide(exchange.head)
        if isinstance(decision, Deny):
            exchange.respond(gate.response(decision), decision.reason)
        elif decision.route.policy.respond is not None:
            exchange.respond(gate.respond(decision))
        else:
            await self._forward(exchange, gate, upstream, decision)

    async def _forward(self, exchange: Exchange, gate: Gate, upstream: Upstream, allow: Allow) -> None:
        sent = self._clock()
        try:
            exchange.check_body()
            exchange.forwarding = self._observer.forwarding(exchange.head, upstream.name)
            head = exchange.request_head(allow, upstream.host_for(allow.host))
            response = await upstream.send(
                head,
                method=exchange.head.method,
                body=exchange.body,
                upgrade=exchange.upgrade != "",
                informational=exchange.interim,
            )
            exchange.upstream_seconds = self._clock() - sent
            try:
                await exchange.send_upstream_response(response, gate.client_headers(allow))
            finally:
                response.close()
        except Fault as fault:  # Only while nothing has been answered.
            exchange.respond(gate.fault(fault.reason, allow), fault.reason)

    def _give_up(self, exchange: Exchange, gate: Gate, reason: Reason) -> None:
        if exchange.answered:
            exchange.reset(reason)
        else:
            exchange.keep_alive = False
            exchange.respond(gate.bad_request(reason), reason)


def _retire(connections: Iterable[ClientConnection]) -> None:
    for connection in connections:
        if not connection.receives_head:
            connection.close_when_idle()


def _log_failure(exc: Exception) -> None:
    """Where it happened and what kind it is; its message could hold the request's bytes."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "?"
    _log.error("internal error: %s at %s", type(exc).__name__, where)
