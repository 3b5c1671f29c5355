"""Tracing: a server span of every sampled request, and a client span of what was forwarded to the upstream.

A request gets its place in a trace when it is forwarded, because the upstream is sent a trace header. Spans are made
when it is over, and exported in batches off the request's path.
"""

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sidecar.core.model import Allow, Decision, RequestHead
from sidecar.core.observer import Forwarding, Trace, UpstreamName
from sidecar.telemetry.access_log import Access
from sidecar.telemetry.batching import Batches
from sidecar.telemetry.spans import Span, Spans
from sidecar.telemetry.trace_context import Contexts

_SPANS_AT_ONCE: Final = 512
_MAX_SPANS: Final = 16_384
"""That wait for a collector: about 2 KiB each."""
_EXPORT_SECONDS: Final = 1.0
_FLUSH_SECONDS: Final = 2.0


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

    def forwarding(self, head: RequestHead, upstream: UpstreamName) -> Forwarding:
        """The request's place in a trace, now that it is sent to `upstream`."""
        return Forwarding(trace=self._contexts.begin(head), upstream=upstream, sent=self._clock())

    def begin(self, head: RequestHead) -> Trace:
        """The trace of a request that was not forwarded."""
        return self._contexts.begin(head)

    def finished(
        self, trace: Trace, access: Access, head: RequestHead, decision: Decision | None, forwarding: Forwarding | None
    ) -> None:
        """A request of a sampled trace is over."""
        self._batches.record(self._spans.server(trace, access, head, decision))
        if forwarding is not None and isinstance(decision, Allow):
            self._batches.record(self._spans.client(forwarding, access, decision))

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
