"""Reports every finished request to the metrics, the access log, tracing and the usage counts."""

from collections.abc import Callable
from typing import Final, Literal

from sidecar.core.errors import Reason, UpstreamCause
from sidecar.core.model import Allow, ApiKey, Decision, Deny, RequestHead
from sidecar.core.observer import Forwarding, UpstreamName
from sidecar.core.routing import NO_ROUTE
from sidecar.core.units import Clock
from sidecar.telemetry.access_log import Access, AccessLog, with_client, with_quota, with_refusal, with_trace
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.observation import WouldDenyMetrics
from sidecar.telemetry.refusals import Refusals
from sidecar.telemetry.tracing import Tracer
from sidecar.usage.recorder import Usage


class Exchanges:
    """The data path's observer. access_log, tracer: None if disabled."""

    def __init__(
        self,
        metrics: Metrics,
        access_log: AccessLog | None,
        usage: Usage,
        *,
        clock: Clock,
        refusals: Refusals,
        tracer: Tracer | None = None,
        would_deny: WouldDenyMetrics | None = None,
        config: Callable[[], str | None] = lambda: None,
    ) -> None:
        """config: the beginning of the hash of the configuration in force."""
        self._would_deny = would_deny or WouldDenyMetrics()
        self._metrics, self._access_log, self._usage, self._clock = metrics, access_log, usage, clock
        self._tracer, self._refusals, self._config = tracer, refusals, config

    def begun(self) -> None:
        self._metrics.in_flight += 1

    def forwarding(self, head: RequestHead, upstream: UpstreamName) -> Forwarding | None:
        return None if self._tracer is None else self._tracer.forwarding(head, upstream)

    def finished(
        self,
        head: RequestHead,
        decision: Decision | None,
        status: int,
        *,
        seconds: float,
        upstream_seconds: float | None,
        bytes_in: int,
        bytes_out: int,
        reason: Reason | None,
        cause: UpstreamCause | None = None,
        forwarding: Forwarding | None = None,
        request_id: str = "",
        cut: bool = False,
    ) -> None:
        metrics, now = self._metrics, self._clock.seconds()
        metrics.in_flight -= 1
        route = decision.route.name if decision is not None and decision.route is not None else NO_ROUTE
        metrics.finished(route, head.method, status, seconds=seconds, upstream_seconds=upstream_seconds)
        if reason is not None:
            self._failed(route, reason, cause, decision)
            self._refusals.add(head, decision, status, now, reason=reason, cause=cause, request_id=request_id)
        if isinstance(decision, Allow):
            self._allowed(decision, head, status, now, reason)
        elif decision is not None:
            self._refused(decision, route, status, now)
        if self._access_log is None and self._tracer is None:
            return
        access = Access(
            at=now - seconds,
            request_id=request_id if decision is None else decision.request_id,
            key=_key_of(decision), credential=_credential(decision), route=None if route == NO_ROUTE else route,
            method=head.method, target=head.target,
            status=status, reason=reason, cause=cause,
            seconds=seconds, upstream_seconds=upstream_seconds,
            bytes_in=bytes_in, bytes_out=bytes_out, cut=cut, config=self._config(),
            client_address=head.peer if decision is None else decision.client_address,
        )  # fmt: skip
        self._record(access, head, decision, forwarding)

    def _record(
        self, access: Access, head: RequestHead, decision: Decision | None, forwarding: Forwarding | None
    ) -> None:
        log, tracer = self._access_log, self._tracer
        if access.reason is Reason.QUOTA_EXCEEDED and isinstance(decision, Deny):
            access = with_quota(access, decision.refused_quota)
        if isinstance(decision, Allow) and decision.would_deny is not None:
            access = with_refusal(access, decision.would_deny)
        if tracer is not None:
            trace = tracer.begin(head) if forwarding is None else forwarding.trace
            access = with_trace(access, trace.trace_id)
            if trace.sampled:
                self._metrics.traced(
                    access.route or NO_ROUTE, trace.trace_id, seconds=access.seconds, at=access.at + access.seconds
                )
                tracer.finished(trace, access, head, decision, forwarding)
        if log is not None and log.wants(access):
            log.record(with_client(access, head) if log.tells_client else access)

    def internal_error(self) -> None:
        self._metrics.internal_errors += 1

    def connection_refused(self, limit: str) -> None:
        self._metrics.connection_refused(limit)

    def bad_request(self, status: int, reason: Reason, *, peer: str, request_id: str = "") -> None:
        self._metrics.finished(NO_ROUTE, "", status, seconds=0.0)
        self._metrics.denied(NO_ROUTE, reason)
        self._refusals.malformed(peer, status, self._clock.seconds(), reason=reason, request_id=request_id)

    def _failed(self, route: str, reason: Reason, cause: UpstreamCause | None, decision: Decision | None) -> None:
        self._metrics.denied(route, reason)
        if isinstance(decision, Allow):
            self._metrics.stream_ended(reason)
        if cause is not None:
            route_of = None if decision is None else decision.route
            self._metrics.upstream_failed(cause, None if route_of is None else route_of.policy.forward.upstream)

    def _allowed(self, allow: Allow, head: RequestHead, status: int, now: float, reason: Reason | None) -> None:
        if allow.quota_states:
            self._metrics.taken(allow.quota_states)
        self._usage.used(allow, head, status, now, reason or "")
        if allow.would_deny is not None:
            self._would_deny.count(allow.route.name, allow.would_deny.reason)
            self._refusals.add(head, allow, status, now, reason=allow.would_deny.reason, cause=None, observed=True)

    def _refused(self, deny: Deny, route: str, status: int, now: float) -> None:
        if deny.refused_quota is not None:
            self._metrics.quota_refused(deny.refused_quota.quota.name, route)
            if deny.key is not None:
                self._refusals.used_up(deny.key.id, deny.refused_quota)
        self._usage.refused(deny, status, now)


def _key_of(decision: Decision | None) -> ApiKey | None:
    if isinstance(decision, Allow):
        return decision.principal.key if decision.principal else None
    return decision.key if decision else None


_NOT_FOUND: Final = frozenset({Reason.INVALID_KEY, Reason.TOO_MANY_FAILURES})


def _credential(decision: Decision | None) -> Literal["key", "pass_through"] | None:
    """What the client presented, valid or not."""
    if decision is None:
        return None
    if decision.principal is not None:
        return "key"
    if decision.pass_through:
        return "pass_through"
    if isinstance(decision, Allow):
        return None
    return "key" if decision.key is not None or decision.reason in _NOT_FOUND else None
