"""Tells metrics, access log and last-used times of every finished request."""

from collections.abc import Callable

from sidecar.core.errors import Reason
from sidecar.core.model import Allow, ApiKey, Decision, RequestHead
from sidecar.keys.usage import LastUsed
from sidecar.observe.accesslog import Access, AccessLog
from sidecar.observe.metrics import NO_ROUTE, Metrics


class Exchanges:
    """The data path's observer. clock: Unix seconds. access_log: None where it is off."""

    def __init__(
        self, metrics: Metrics, access_log: AccessLog | None, last_used: LastUsed, clock: Callable[[], float]
    ) -> None:
        self._metrics, self._access_log, self._last_used, self._clock = metrics, access_log, last_used, clock

    def begun(self) -> None:
        self._metrics.in_flight += 1

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
    ) -> None:
        metrics, now = self._metrics, self._clock()
        metrics.in_flight -= 1
        route = decision.route.name if decision is not None and decision.route is not None else NO_ROUTE
        metrics.finished(route, head.method, status, seconds=seconds, upstream_seconds=upstream_seconds)
        if reason is not None:
            metrics.denied(route, reason)
        if isinstance(decision, Allow):
            self._allowed(decision, now)
        elif decision is not None and decision.refused_quota is not None:
            metrics.quota_refused(decision.refused_quota.quota.name, route)
        if self._access_log is not None:
            self._access_log.record(
                Access(
                    at=now - seconds,
                    request_id="" if decision is None else decision.request_id,
                    key=_key_of(decision),
                    route=None if route is NO_ROUTE else route,
                    method=head.method,
                    target=head.target,
                    status=status,
                    reason=reason,
                    seconds=seconds,
                    upstream_seconds=upstream_seconds,
                    bytes_in=bytes_in,
                    bytes_out=bytes_out,
                    client_address=head.peer if decision is None else decision.client_address,
                )
            )

    def malformed(self, peer: str, status: int, reason: Reason) -> None:
        self._metrics.finished(NO_ROUTE, "", status, seconds=0.0)
        self._metrics.denied(NO_ROUTE, reason)

    def _allowed(self, allow: Allow, now: float) -> None:
        if allow.quota_states:
            self._metrics.taken(allow.quota_states)
        if allow.principal is not None:
            self._last_used.used(allow.principal.key.id, int(now * 1_000_000))


def _key_of(decision: Decision | None) -> ApiKey | None:
    if isinstance(decision, Allow):
        return decision.principal.key if decision.principal else None
    return decision.key if decision else None
