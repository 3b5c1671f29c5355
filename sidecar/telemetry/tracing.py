"""Tracing: a server span of every sampled request, and a client span of what was handed on to the upstream.

A request is given its place in a trace when it is let through, since the upstream must be told; spans are made when it
is over, and sent some at a time off the request's path.
"""

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sidecar.core.model import Allow, Decision, RequestHead
from sidecar.telemetry.access_log import Access
from sidecar.telemetry.batching import Batches
from sidecar.telemetry.spans import Span, Spans, UpstreamName, asked_upstream
from sidecar.telemetry.trace_context import Contexts, Trace, onward

_SPANS_AT_ONCE: Final = 512
_MAX_SPANS: Final = 16_384
"""That wait for a collector: about 2 KiB each."""
_EXPORT_SECONDS: Final = 1.0
_FLUSH_SECONDS: Final = 2.0


class TracedAllow(Allow, frozen=True, kw_only=True, gc=False):
    """A yes whose headers tell the upstream of the trace."""

    trace: Trace
    sent: float
    """Unix seconds at which the upstream was about to be asked."""
    upstream: UpstreamName


class Tracer:
    """export: delivers a batch, or raises; may block, and is called in a thread of its own. clock: Unix seconds."""

    def __init__(
        self,
        export: Callable[[list[Span]], None],
        *,
        contexts: Contexts,
        spans: Spans,
        clock: Callable[[], float],
    ) -> None:
        self._contexts, self._spans, self._clock = contexts, spans, clock
        self._batches: Batches[Span, list[Span]] = Batches(
            export,
            prepare=list,
            weigh=lambda span: 1,
            at_once=_SPANS_AT_ONCE,
            max_items=_MAX_SPANS,
            max_weight=_MAX_SPANS,
        )

    @property
    def exported(self) -> int:
        """Spans that a collector has taken."""
        return self._batches.delivered

    @property
    def dropped(self) -> int:
        """Spans that waited for a collector in vain."""
        return self._batches.dropped

    def traced(self, allow: Allow, head: RequestHead, upstream: UpstreamName) -> Allow:
        """What hands the trace on to `upstream`."""
        trace = self._contexts.begin(head)
        return TracedAllow(
            route=allow.route,
            principal=allow.principal,
            target=allow.target,
            headers=onward(trace, allow.headers),
            host=allow.host,
            request_id=allow.request_id,
            client_address=allow.client_address,
            quota_states=allow.quota_states,
            trace=trace,
            sent=self._clock(),
            upstream=upstream,
        )

    def trace_of(self, head: RequestHead, decision: Decision | None) -> Trace:
        """The one that was handed on; what was not, begins one now."""
        return decision.trace if isinstance(decision, TracedAllow) else self._contexts.begin(head)

    def finished(self, trace: Trace, access: Access, head: RequestHead, decision: Decision | None) -> None:
        """A request of a sampled trace is over."""
        self._batches.record(self._spans.server(trace, access, head, decision))
        if isinstance(decision, TracedAllow) and asked_upstream(decision, access):
            client = self._spans.client(trace, access, decision, decision.upstream, sent=decision.sent)
            self._batches.record(client)

    async def run(self) -> None:
        """Export what waits, every second, until cancelled; what then still waits is `flush`'s."""
        await self._batches.run(_EXPORT_SECONDS)

    async def flush(self) -> None:
        """Export all that waits, for at most two seconds."""
        await self._batches.flush(_FLUSH_SECONDS)


# What became of spans.


class TraceMetrics(Collector):
    """Of a tracer, where there is one."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def collect(self) -> Iterator[Metric]:
        spans = CounterMetricFamily("sidecar_tracing_spans", "Spans by what became of them.", labels=("result",))
        spans.add_metric(("exported",), self._tracer.exported)
        spans.add_metric(("dropped",), self._tracer.dropped)
        yield spans
