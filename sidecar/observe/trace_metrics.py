"""What became of spans."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sidecar.telemetry.tracing import Tracer


class TraceMetrics(Collector):
    """Of a tracer, where there is one."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def collect(self) -> Iterator[Metric]:
        spans = CounterMetricFamily("sidecar_tracing_spans", "Spans by what became of them.", labels=("result",))
        spans.add_metric(("exported",), self._tracer.exported)
        spans.add_metric(("dropped",), self._tracer.dropped)
        yield spans
