"""The way of one request on the data listener. Read `Handler._respond` first."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from sidecar.config.document import Limits
from sidecar.core.error_responses import ErrorResponses
from sidecar.core.errors import Fault, Reason
from sidecar.core.model import Allow, Deny, Response
from sidecar.core.observer import Observer
from sidecar.core.routing import KNOWN_METHODS
from sidecar.core.units import Clock
from sidecar.gate.gate import Gate
from sidecar.http.accepting import RateLimitedLog
from sidecar.proxy.exchange import Exchange, local_response_head, persistence
from sidecar.proxy.request_parser import BrokenBody
from sidecar.proxy.transport import DateLine
from sidecar.proxy.upstream import Upstream

_PONG = Response(status=204, headers=(), body=b"")
"""To `OPTIONS *`, which asks whether the server is there (RFC 9110 section 9.3.7)."""
_HARMLESS = KNOWN_METHODS - {"CONNECT"}
"""Methods whose requests end where everybody says. After any other that is refused, nothing more is served."""
_log = logging.getLogger(__name__)


ALWAYS_SECRET = frozenset({b"authorization", b"cookie", b"proxy-authorization"})
"""Headers whose values may be credentials, whatever is configured."""


def _nobody(peer: str) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What decides, words and forwards one request, from its head to its end. A reload swaps it whole.

    trusts: peers that stand for many clients. credential_names: lower-case names of headers that may hold a credential.
    """

    gate: Gate
    responses: ErrorResponses
    upstream: Upstream
    limits: Limits
    trusts: Callable[[str], bool] = _nobody
    credential_names: frozenset[bytes] = ALWAYS_SECRET


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
        """For requests that begin now."""
        self._observer, self._clock, self._rate_limited = observer, clock, rate_limited
        self.date_line = DateLine(clock)
        self.closing_when_idle = False
        """Every response is its connection's last."""

    async def serve(self, exchange: Exchange) -> None:
        """Respond to one request, whatever happens, and tell the observer. Raises nothing but CancelledError."""
        began = exchange.began = self._clock.monotonic()
        snapshot = self.snapshot
        if exchange.is_probe:
            exchange.respond(_PONG)
            return
        self._observer.begun()
        try:
            await self._respond(exchange, snapshot)
        except BrokenBody as broken:
            self._give_up(exchange, snapshot, broken.reason)
        except Exception as exc:
            self._give_up(exchange, snapshot, Reason.INTERNAL)
            self.failed(exc)
        finally:
            self._observer.finished(
                exchange.head,
                exchange.decision,
                exchange.status,
                seconds=self._clock.monotonic() - began,
                upstream_seconds=exchange.upstream_seconds,
                bytes_in=exchange.bytes_in,
                bytes_out=exchange.bytes_out,
                reason=exchange.reason,
                cause=exchange.cause,
                forwarding=exchange.forwarding,
            )

    def refuse(self, peer: str, reason: Reason) -> bytes:
        """The whole response to bytes that are not a request."""
        response = self.snapshot.responses.for_reason(reason)
        self._observer.bad_request(response.status, reason)
        self._rate_limited.count("malformed request", "refused", f"{peer or 'a Unix socket'}: {reason}")
        end = self.date_line() + persistence(False, (1, 1))
        return local_response_head(response, end=end) + response.body

    def failed(self, exc: Exception) -> None:
        """Something of ours raised what it should not."""
        self._observer.internal_error()
        _log_failure(exc)

    async def _respond(self, exchange: Exchange, snapshot: Snapshot) -> None:
        if exchange.head.target == "*" and exchange.head.method == "OPTIONS":
            exchange.respond(_PONG)
            return
        decision = exchange.decision = await snapshot.gate.decide(exchange.head)
        if isinstance(decision, Deny):
            if decision.reason is Reason.METHOD_NOT_ALLOWED and exchange.head.method not in _HARMLESS:
                exchange.keep_alive = False
            exchange.respond(snapshot.responses.denied(decision, self._clock.seconds()), decision.reason)
        elif decision.route.policy.respond is not None:
            exchange.respond(snapshot.responses.static_response(decision, self._clock.seconds()))
        else:
            await self._forward(exchange, snapshot, decision)

    async def _forward(self, exchange: Exchange, snapshot: Snapshot, allow: Allow) -> None:
        upstream, responses, sent = snapshot.upstream, snapshot.responses, self._clock.monotonic()
        exchange.gate = snapshot.gate
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
            exchange.upstream_seconds = self._clock.monotonic() - sent
            try:
                fields = responses.client_headers(allow.principal, allow.quota_states, self._clock.seconds())
                await exchange.send_upstream_response(response, fields)
            finally:
                response.close()
        except Fault as fault:  # Only before any of the response is sent.
            exchange.cause = fault.cause
            exchange.respond(responses.fault(fault.reason, allow, self._clock.seconds()), fault.reason)

    def _give_up(self, exchange: Exchange, snapshot: Snapshot, reason: Reason) -> None:
        if exchange.responded:
            exchange.reset(reason)
        else:
            exchange.keep_alive = False
            exchange.respond(snapshot.responses.for_reason(reason), reason)


def _log_failure(exc: Exception) -> None:
    """Where it happened and what kind it is; its message could hold the request's bytes."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "?"
    _log.error("internal error: %s at %s", type(exc).__name__, where)
