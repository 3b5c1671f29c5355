"""How the data listener handles one request. Read `Handler._respond` first.

A known request takes a shorter path, `respond_now`: no task, no future, one write to the upstream and one to the
client. A task takes over if it must wait for anything except the response, or if the response does not arrive in one
piece.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial

from sidecar.config.document import Limits
from sidecar.core.cors import SharingRules, tells_browsers, without_cors
from sidecar.core.error_responses import ErrorResponses
from sidecar.core.errors import Fault, Reason
from sidecar.core.model import Allow, Decision, Deny, Headers, Response, Route
from sidecar.core.observer import Observer
from sidecar.core.routing import KNOWN_METHODS
from sidecar.core.units import Clock
from sidecar.core.upstream_request import VIA, via
from sidecar.gate.gate import Gate
from sidecar.http.accepting import RateLimitedLog
from sidecar.http.requests import HeadLimits
from sidecar.proxy.exchange import SWITCHING_PROTOCOLS, Exchange, Pending, id_line, local_response_head, persistence
from sidecar.proxy.known_heads import KnownRequest, KnownRequests
from sidecar.proxy.request_body import BodyRules, ClientBody
from sidecar.proxy.request_parser import BrokenBody
from sidecar.proxy.response_parser import UpstreamResponse
from sidecar.proxy.transport import DateLine
from sidecar.proxy.tunnel import Client
from sidecar.proxy.upstream import Begun, Upstream
from sidecar.proxy.upstream_connection import ResponseWaiter, UpstreamConnection

_PONG = Response(status=204, headers=(), body=b"")
"""Responses to `OPTIONS *`, a ping of the server (RFC 9110 section 9.3.7)."""
_HARMLESS = KNOWN_METHODS - {"CONNECT"}
"""Methods whose requests end at the same byte for every parser.

After a refused request with another one, the connection closes.
"""
_SHARES_NOTHING = SharingRules()
_log = logging.getLogger(__name__)


def _nobody(peer: str) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The parts that decide, word and forward one request, from beginning to end. A reload swaps all of them at once.

    upstreams: those that routes name, by name. trusts: peers that forward for many clients. known: the memory of known
    requests, or None. id_header: the response header for the request id. sharing: the origins and caches that may share
    responses.
    """

    gate: Gate
    responses: ErrorResponses
    upstream: Upstream
    upstreams: Mapping[str, Upstream] = field(default_factory=dict)
    limits: Limits
    trusts: Callable[[str], bool] = _nobody
    known: KnownRequests | None = None
    id_header: bytes = b""
    sharing: SharingRules = _SHARES_NOTHING

    def upstream_for(self, route: Route) -> Upstream:
        name = route.policy.forward.upstream
        return self.upstream if name is None else self.upstreams[name]

    @property
    def every_upstream(self) -> Collection[Upstream]:
        return (self.upstream, *self.upstreams.values())


class PendingResponse(ResponseWaiter, Pending):
    """Waits for the upstream's response to a request on the shorter path."""

    __slots__ = ("_over", "allow", "connection", "exchange", "handler", "snapshot")

    def __init__(
        self,
        handler: "Handler",
        exchange: Exchange,
        snapshot: Snapshot,
        allow: Allow,
        connection: UpstreamConnection | None,
    ) -> None:
        """connection: where it was sent; None if a task must send it."""
        self.handler, self.exchange, self.snapshot, self.allow = handler, exchange, snapshot, allow
        self.connection = connection
        self._over = False

    def done(self) -> bool:
        return self._over

    def set_result(self, response: UpstreamResponse, /) -> None:
        self._over = True
        self.handler.take_response(self, response)

    def set_exception(self, failure: Exception, /) -> None:
        self._over = True
        self.handler.take_failure(self, failure)

    def withdraw(self) -> None:
        self._over = True
        if self.connection is not None:
            self.connection.abort()

    def cancel(self) -> None:
        """The client is gone."""
        self.withdraw()
        self.handler.finish(self.exchange)


class PendingDecision(Pending):
    """The decision on a request of the shorter path, if the limiter must be awaited."""

    __slots__ = ("_exchange", "_handler", "_task")

    def __init__(self, handler: "Handler", exchange: Exchange, deciding: Coroutine[object, None, None]) -> None:
        self._handler, self._exchange = handler, exchange
        self._task = asyncio.get_running_loop().create_task(deciding)

    def withdraw(self) -> None:
        self._task.cancel()

    def cancel(self) -> None:
        self.withdraw()
        self._handler.finish(self._exchange)


class Handler:
    """Responds to requests."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        observer: Observer,
        clock: Clock,
        rate_limited: RateLimitedLog,
    ) -> None:
        self.snapshot = snapshot
        """The snapshot for requests that begin now."""
        self._observer, self._clock, self._rate_limited = observer, clock, rate_limited
        self.date_line = DateLine(clock)
        self.closing_when_idle = False
        """Whether each response is the last of its connection."""
        self._loop = asyncio.get_running_loop()
        self._arrived: list[Client] = []

    async def serve(self, exchange: Exchange) -> None:
        """Respond to one request in any case, and report it to the observer. Raises only CancelledError."""
        exchange.began = self._clock.monotonic()
        snapshot = self.snapshot
        if exchange.is_probe:
            exchange.respond(_PONG)
            return
        self._observer.begun()
        await self._carry_out(exchange, snapshot, self._respond(exchange, snapshot))

    def arrived(self, client: Client) -> None:
        """The connection has bytes that may be a known request. `take_arrived` is called in the loop's next turn."""
        if not self._arrived:
            self._loop.call_soon(self._take_arrived)
        self._arrived.append(client)

    def _take_arrived(self) -> None:
        arrived, self._arrived = self._arrived, []
        for client in arrived:
            client.take_arrived()

    def respond_now(self, client: Client, data: bytes, head: HeadLimits, bodies: BodyRules) -> bool:
        """Begin to respond to the request in `data`. False if it must take the longer path; then nothing was done."""
        snapshot, began = self.snapshot, self._clock.monotonic()
        if snapshot.known is None or client.is_probe:
            return False
        known = snapshot.known.read(
            data, client.peer, client.scheme, most_lines=head.headers, most_bytes=snapshot.limits.body
        )
        if known is None:
            return False
        exchange = Exchange(client, known.head, known.framing)
        exchange.began = began
        try:
            decision = exchange.decision = snapshot.gate.decide_now(known.head, known.understood)
            if decision is None:
                return self._respond_later(exchange, snapshot, known, bodies)
            if known.body:
                exchange.body = ClientBody.whole(client, bodies, known.body)
            self._begin(exchange)
            self._respond_now(exchange, snapshot, decision)
        except Exception as exc:
            if exchange.decision is None:
                self._begin(exchange)
            self._break_off(exchange, snapshot, exc)
        return True

    def _respond_later(self, exchange: Exchange, snapshot: Snapshot, known: KnownRequest, bodies: BodyRules) -> bool:
        """Begin to respond, if the limiter must be awaited. The task ends with the decision."""
        decide = snapshot.gate.decide_later(known.head, known.understood)
        if decide is None:
            return False
        if known.body:
            exchange.body = ClientBody.whole(exchange.client, bodies, known.body)
        self._begin(exchange)
        exchange.pending = PendingDecision(self, exchange, self._decide_later(exchange, snapshot, decide))
        return True

    async def _decide_later(
        self, exchange: Exchange, snapshot: Snapshot, decide: Callable[[], Awaitable[Decision]]
    ) -> None:
        try:
            decision = exchange.decision = await decide()
            exchange.pending = None
            self._respond_now(exchange, snapshot, decision)
        except Exception as exc:
            self._break_off(exchange, snapshot, exc)

    def take_response(self, pending: PendingResponse, response: UpstreamResponse) -> None:
        """Pass on the upstream's response on the shorter path. If it is not in one piece, a task takes over."""
        exchange, snapshot = pending.exchange, pending.snapshot
        if not response.complete or response.status == SWITCHING_PROTOCOLS:
            begun = asyncio.get_running_loop().create_future()
            begun.set_result(response)
            self._hand_over(pending, begun)
            return
        exchange.upstream_seconds = self._clock.monotonic() - exchange.sent
        try:
            fields = self._client_headers(exchange, snapshot, pending.allow, response)
            exchange.begin_upstream_response(response, fields, snapshot.id_header)
            self._end(exchange)
        except Exception as exc:
            self._break_off(exchange, snapshot, exc)

    def take_failure(self, pending: PendingResponse, failure: Exception) -> None:
        begun = asyncio.get_running_loop().create_future()
        begun.set_exception(failure)
        self._hand_over(pending, begun)

    def finish(self, exchange: Exchange) -> None:
        """Report to the observer."""
        self._observer.finished(
            exchange.head,
            exchange.decision,
            exchange.status,
            seconds=self._clock.monotonic() - exchange.began,
            upstream_seconds=exchange.upstream_seconds,
            bytes_in=exchange.bytes_in,
            bytes_out=exchange.bytes_out,
            reason=exchange.reason,
            cause=exchange.cause,
            forwarding=exchange.forwarding,
            request_id=exchange.request_id,
            cut=exchange.cut,
        )

    async def _carry_out(self, exchange: Exchange, snapshot: Snapshot, work: Coroutine[object, None, None]) -> None:
        try:
            await work
        except BrokenBody as broken:
            self._give_up(exchange, snapshot, broken.reason)
        except Exception as exc:
            self._give_up(exchange, snapshot, Reason.INTERNAL)
            self.failed(exc)
        finally:
            self.finish(exchange)

    def refuse(self, peer: str, reason: Reason) -> bytes:
        """The whole response to bytes that are not a request."""
        snapshot = self.snapshot
        response, request_id = snapshot.responses.for_reason(reason), snapshot.gate.request_id()
        self._observer.bad_request(response.status, reason, peer=peer, request_id=request_id)
        self._rate_limited.count("malformed request", "refused", f"{peer or 'a Unix socket'}: {reason}")
        end = self.date_line() + id_line(snapshot.id_header, request_id) + persistence(False, (1, 1))
        return local_response_head(response, end=end) + response.body

    def failed(self, exc: Exception) -> None:
        """Our own code raised an unexpected exception."""
        self._observer.internal_error()
        _log_failure(exc)

    async def _respond(self, exchange: Exchange, snapshot: Snapshot) -> None:
        if exchange.head.method == "OPTIONS" and self._respond_to_options(exchange, snapshot):
            return
        decision = exchange.decision = await snapshot.gate.decide(exchange.head)
        if not self._respond_alone(exchange, snapshot, decision) and isinstance(decision, Allow):
            await self._forward(exchange, snapshot, decision)

    def _respond_to_options(self, exchange: Exchange, snapshot: Snapshot) -> bool:
        """Respond to requests that the gate does not decide: a ping, and a browser's preflight."""
        if exchange.head.target == "*":
            exchange.request_id = snapshot.gate.request_id(exchange.head)
            exchange.respond(_PONG, id_header=snapshot.id_header)
            return True
        allow = snapshot.gate.preflight(exchange.head) if snapshot.sharing.tells_browsers else None
        if allow is None:
            return False
        exchange.decision = allow
        exchange.respond(snapshot.sharing.preflight(exchange.head, allow.route), id_header=snapshot.id_header)
        return True

    def _respond_alone(self, exchange: Exchange, snapshot: Snapshot, decision: Decision) -> bool:
        """Respond without the upstream, where possible."""
        if isinstance(decision, Deny):
            if exchange.head.method not in _HARMLESS and decision.reason is Reason.METHOD_NOT_ALLOWED:
                exchange.keep_alive = False
            response = snapshot.responses.denied(decision, self._clock.seconds())
            self._send(exchange, snapshot, response, decision.reason)
            return True
        if (own := decision.route.policy.respond) is not None:
            response = snapshot.responses.static_response(decision, own, self._clock.seconds())
            self._send(exchange, snapshot, response)
            return True
        return False

    def _send(self, exchange: Exchange, snapshot: Snapshot, response: Response, reason: Reason | None = None) -> None:
        """Send the sidecar's own response, which scripts of other origins may read if they may read the upstream's."""
        if snapshot.sharing.tells_browsers:
            route = exchange.decision.route if exchange.decision is not None else None
            response = snapshot.sharing.decorated(response, route, exchange.head.headers)
        exchange.respond(response, reason, id_header=snapshot.id_header)

    def _respond_now(self, exchange: Exchange, snapshot: Snapshot, decision: Decision) -> None:
        if self._respond_alone(exchange, snapshot, decision) or not isinstance(decision, Allow):
            self._end(exchange)
            return
        try:
            upstream = snapshot.upstream_for(decision.route) if snapshot.upstreams else snapshot.upstream
            head = self._upstream_head(exchange, upstream, decision)
        except Fault as fault:
            self._respond_fault(exchange, snapshot, decision, fault)
            self._end(exchange)
            return
        connection = upstream.idle()
        pending = exchange.pending = PendingResponse(self, exchange, snapshot, decision, connection)
        if connection is None:
            self._hand_over(pending, None)
            return
        pieces = (head, b"" if exchange.body is None else exchange.body.at_hand() or b"")
        connection.begin(
            pieces,
            exchange.head.method,
            waiter=pending,
            informational=exchange.interim,
            answer_timeout=decision.route.policy.forward.answer_timeout_seconds,
        )

    def _begin(self, exchange: Exchange) -> None:
        self._observer.begun()
        exchange.client.begin(exchange)

    def _hand_over(self, pending: PendingResponse, begun: "asyncio.Future[UpstreamResponse] | None") -> None:
        """Hand over to a task. begun: receives the response, if the request has been sent."""
        pending.exchange.client.carry_on(partial(self._carry_on, pending, begun))

    async def _carry_on(self, pending: PendingResponse, begun: "asyncio.Future[UpstreamResponse] | None") -> None:
        exchange, snapshot = pending.exchange, pending.snapshot
        exchange.pending = None  # Not earlier: a task that is cancelled before its first step does nothing.
        sent = None if pending.connection is None or begun is None else (pending.connection, begun)
        await self._carry_out(exchange, snapshot, self._forward(exchange, snapshot, pending.allow, sent))

    def _end(self, exchange: Exchange) -> None:
        """End an exchange on the shorter path."""
        exchange.pending = None
        self.finish(exchange)
        exchange.client.end(exchange)

    def _break_off(self, exchange: Exchange, snapshot: Snapshot, exc: Exception) -> None:
        """Our own code raised on the shorter path."""
        self._give_up(exchange, snapshot, Reason.INTERNAL)
        self.failed(exc)
        if exchange.pending is not None:
            exchange.pending.withdraw()
        self._end(exchange)

    def _client_headers(
        self, exchange: Exchange, snapshot: Snapshot, allow: Allow, response: UpstreamResponse
    ) -> Headers:
        """Headers for the client that are added to the upstream's, or replace some of them."""
        fields = snapshot.responses.client_headers(allow.principal, allow.quota_states, self._clock.seconds())
        upstream = snapshot.upstream_for(allow.route) if snapshot.upstreams else snapshot.upstream
        if name := upstream.via:
            fields = (*fields, (VIA, via(response.headers, response.version, name)))
        sharing = snapshot.sharing.of(allow.route)
        if sharing is None:
            return fields
        if sharing.cors is not None and tells_browsers(response.names):
            response.headers, response.start = without_cors(response.headers), b""
        request, in_query = exchange.head.headers, allow.key_in_query
        return (*fields, *sharing.fields(request, response.names, response.headers, key_in_query=in_query))

    def _upstream_head(self, exchange: Exchange, upstream: Upstream, allow: Allow) -> bytes:
        """Made only once, except for a request that is sent again."""
        if not exchange.sent:
            exchange.sent = self._clock.monotonic()
            exchange.forwarding = self._observer.forwarding(exchange.head, upstream.name)
        return exchange.request_head(allow, upstream.host_for(allow.host), upstream.via)

    async def _forward(self, exchange: Exchange, snapshot: Snapshot, allow: Allow, begun: Begun | None = None) -> None:
        """begun: set if the request has been sent."""
        upstream, rules = snapshot.upstream_for(allow.route), allow.route.policy.forward
        exchange.gate = snapshot.gate
        try:
            exchange.check_body(rules.body_bytes)
            head = self._upstream_head(exchange, upstream, allow)
            response = await upstream.send(
                head,
                method=exchange.head.method,
                body=exchange.body,
                upgrade=exchange.upgrade != "",
                informational=exchange.interim,
                begun=begun,
                answer_timeout=rules.answer_timeout_seconds,
            )
            exchange.upstream_seconds = self._clock.monotonic() - exchange.sent
            try:
                fields = self._client_headers(exchange, snapshot, allow, response)
                await exchange.send_upstream_response(response, fields, id_header=snapshot.id_header)
            finally:
                response.close()
        except Fault as fault:  # Only before anything of the response is sent.
            self._respond_fault(exchange, snapshot, allow, fault)

    def _respond_fault(self, exchange: Exchange, snapshot: Snapshot, allow: Allow, fault: Fault) -> None:
        exchange.cause = fault.cause
        response = snapshot.responses.fault(fault.reason, allow, self._clock.seconds())
        self._send(exchange, snapshot, response, fault.reason)

    def _give_up(self, exchange: Exchange, snapshot: Snapshot, reason: Reason) -> None:
        if exchange.responded:
            exchange.reset(reason)
        else:
            exchange.keep_alive = False
            if exchange.decision is None:
                exchange.request_id = snapshot.gate.request_id(exchange.head)
            self._send(exchange, snapshot, snapshot.responses.for_reason(reason), reason)


def _log_failure(exc: Exception) -> None:
    """Log the place and type of the exception, not its message, which could contain bytes of the request."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "?"
    _log.error("internal error: %s at %s", type(exc).__name__, where)
