"""The data listener: requests in, answers out. Read `DataServer._answer` first; it is the way of one request."""

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import NoReturn, cast

from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest
from aiohttp.web_server import Server

from sidecar.config.model import Address
from sidecar.core.errors import Fault, Reason
from sidecar.core.model import Allow, Deny
from sidecar.proxy.client import Caps, ClientConnection
from sidecar.proxy.exchange import Exchange
from sidecar.proxy.ports import Gate, Observer
from sidecar.proxy.responses import answer_of_ours, persistence
from sidecar.proxy.upstream import BrokenBody, Upstream

_BACKLOG = 4096
_log = logging.getLogger(__name__)


class DataServer:
    """To be made where its loop runs. gate: the one in force; asked once a request. clock: seconds, monotonic."""

    def __init__(
        self,
        gate: Callable[[], Gate],
        upstream: Upstream,
        *,
        observer: Observer,
        clock: Callable[[], float],
        caps: Caps | None = None,
    ) -> None:
        self._gate, self._upstream, self._observer, self._clock = gate, upstream, observer, clock
        self._connections = _Connections(self, caps or Caps())
        self._listener: asyncio.Server | None = None
        self.address = Address()
        """Where it is bound, once it is started."""
        self.retiring = False
        """Every answer is its connection's last."""

    async def start(self, address: Address, *, tls: ssl.SSLContext | None = None) -> None:
        """Bind. Raises OSError."""
        loop = asyncio.get_running_loop()
        if address.path:
            self._listener = await loop.create_unix_server(self._connections, address.path, backlog=_BACKLOG, ssl=tls)
            self.address = address
            return
        self._listener = await loop.create_server(
            self._connections, address.host, address.port, backlog=_BACKLOG, ssl=tls
        )
        self.address = Address(host=address.host, port=self._listener.sockets[0].getsockname()[1])

    async def stop(self, *, grace_seconds: float) -> None:
        """Take no more connections, finish what is under way for at most `grace_seconds`, and end the rest."""
        self.retiring = True
        if self._listener is not None:
            self._listener.close()
        connections = self._connections.open()
        for connection in connections:
            connection.retire()
        tasks = [connection._task_handler for connection in connections if connection._task_handler is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_seconds)
            for connection in self._connections.open():
                connection.force_close()
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def serve(self, exchange: Exchange) -> None:
        """Answer one request, whatever happens, and tell the observer."""
        began = self._clock()
        self._observer.begun()
        try:
            await self._answer(exchange, self._gate())
        except BrokenBody:
            self._give_up(exchange, Reason.BAD_REQUEST)
        except Exception as exc:
            self._give_up(exchange, Reason.INTERNAL)
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
            )

    def refuse(self, peer: str, reason: Reason) -> bytes:
        answer = self._gate().malformed(reason)
        self._observer.malformed(peer, answer.status, reason)
        return answer_of_ours(answer, persistence=persistence(False, (1, 1))) + answer.body

    async def _answer(self, exchange: Exchange, gate: Gate) -> None:
        decision = exchange.decision = await gate.decide(exchange.head)
        if isinstance(decision, Deny):
            exchange.respond(gate.answer(decision), decision.reason)
        elif decision.route.policy.respond is not None:
            exchange.respond(gate.respond(decision))
        else:
            await self._forward(exchange, gate, decision)

    async def _forward(self, exchange: Exchange, gate: Gate, allow: Allow) -> None:
        head = exchange.request_head(allow, self._upstream.host_for(allow.host))
        sent = self._clock()
        try:
            answer = await self._upstream.send(
                head, method=exchange.head.method, body=exchange.body, informational=exchange.interim
            )
        except Fault as fault:
            exchange.respond(gate.fault(fault.reason, allow), fault.reason)
            return
        exchange.upstream_seconds = self._clock() - sent
        try:
            await exchange.relay(answer, gate.client_headers(allow))
        finally:
            answer.close()

    def _give_up(self, exchange: Exchange, reason: Reason) -> None:
        if exchange.answered:
            exchange.break_off(reason)
        else:
            exchange.keep_alive = False
            exchange.respond(self._gate().malformed(reason), reason)


class _Connections(Server):
    """aiohttp's server, making connections of ours."""

    def __init__(self, host: DataServer, caps: Caps) -> None:
        super().__init__(_never, handler_cancellation=True)
        self._host, self._caps = host, caps

    def __call__(self) -> RequestHandler:
        return ClientConnection(self, self._host, self._caps, loop=self._loop)

    def open(self) -> list[ClientConnection]:
        return cast(list[ClientConnection], self.connections)


async def _never(request: BaseRequest) -> NoReturn:
    raise NotImplementedError


def _log_failure(exc: Exception) -> None:
    """Where it happened and what kind it is; its message could hold the request's bytes."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "?"
    _log.error("internal error: %s at %s", type(exc).__name__, where)
