"""Tracing: a server span for each sampled request, and a client span if it was forwarded to the upstream.

A request joins a trace when it is forwarded, because the upstream gets a trace header. Spans are made when it ends, and
exported in batches off the request's path.
"""

import re
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sidecar.core.model import Allow, Decision, Headers, RequestHead
from sidecar.core.observer import SAMPLED, Forwarding, Trace, UpstreamName
from sidecar.core.units import Clock
from sidecar.core.upstream_request import TRACEPARENT, TRACESTATE
from sidecar.telemetry.access_log import Access
from sidecar.telemetry.batching import Batches
from sidecar.telemetry.spans import Span, Spans

_SPANS_AT_ONCE: Final = 512
_MAX_SPANS: Final = 16_384
"""Most spans that wait for a collector: about 2 KiB each."""
_EXPORT_SECONDS: Final = 1.0
_FLUSH_SECONDS: Final = 2.0


# The trace that a request belongs to.


_RANDOM: Final = 0x02
"""The flag that the trace id is random (Trace Context level 2); passed on unchanged."""
_PARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_WHOLE: Final = 1 << 64


class Contexts:
    """Continues the callers' traces (W3C Trace Context), or begins new ones.

    share: the part of traces beginning here that is sampled, 0 to 1. random_bytes: returns that many. believes: whether
    a peer's traceparent is trusted. An untrusted or malformed one is replaced, and its tracestate dropped.
    """

    def __init__(self, *, share: float, random_bytes: Callable[[int], bytes], believes: Callable[[str], bool]) -> None:
        self._bound, self._random_bytes, self._believes = int(share * _WHOLE), random_bytes, believes

    def begin(self, head: RequestHead) -> Trace:
        """The parent's sampling decision is kept; without a parent, the trace id decides."""
        digits = self._random_bytes(32).hex()
        span_id, client_span_id = _not_zero(digits[:16]), _not_zero(digits[16:32])
        parent = _parent(head.headers) if self._believes(head.peer) else None
        if parent is None:
            trace_id = digits[32:]
            flags = _RANDOM | (SAMPLED if int(trace_id[16:], 16) < self._bound else 0)
            return Trace(trace_id=_not_zero(trace_id), span_id=span_id, client_span_id=client_span_id, flags=flags)
        return Trace(
            trace_id=parent[2].decode(),
            parent_id=parent[3].decode(),
            span_id=span_id,
            client_span_id=client_span_id,
            flags=int(parent[4], 16) & (SAMPLED | _RANDOM),
            state=_state(head.headers),
        )


def _parent(headers: Headers) -> re.Match[bytes] | None:
    """The parent, if there is exactly one well-formed traceparent.

    Parsed strictly for version 00, leniently for later ones.
    """
    values = [value for name, value in headers if name.lower() == TRACEPARENT]
    found = _PARENT.fullmatch(values[0]) if len(values) == 1 else None
    return None if found is None or (found[1] == b"00" and found[5] is not None) else found


def _state(headers: Headers) -> str:
    lines = [value for name, value in headers if name.lower() == TRACESTATE]
    return b",".join(lines).decode("latin-1") if lines else ""


def _not_zero(digits: str) -> str:
    """An id of zeros is invalid."""
    return digits if digits.strip("0") else f"{digits[:-1]}1"


# Spans of finished requests.


class Tracer:
    """export: delivers a batch, or raises; may block, and is called in its own thread."""

    def __init__(
        self,
        export: Callable[[list[Span]], None],
        *,
        contexts: Contexts,
        spans: Spans,
        clock: Clock,
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
        """Spans that a collector accepted."""
        return self._batches.delivered

    @property
    def dropped(self) -> int:
        """Spans that could not be delivered."""
        return self._batches.dropped

    def forwarding(self, head: RequestHead, upstream: UpstreamName) -> Forwarding:
        """The request's trace, now that it is sent to `upstream`."""
        return Forwarding(trace=self._contexts.begin(head), upstream=upstream, sent=self._clock.seconds())

    def begin(self, head: RequestHead) -> Trace:
        """The trace of a request that was not forwarded."""
        return self._contexts.begin(head)

    def finished(
        self, trace: Trace, access: Access, head: RequestHead, decision: Decision | None, forwarding: Forwarding | None
    ) -> None:
        """A request of a sampled trace has ended."""
        self._batches.record(self._spans.server(trace, access, head, decision))
        if forwarding is not None and isinstance(decision, Allow):
            self._batches.record(self._spans.client(forwarding, access, decision))

    async def run(self) -> None:
        """Export waiting spans every second, until cancelled; `flush` exports the rest."""
        await self._batches.run(_EXPORT_SECONDS)

    async def flush(self) -> None:
        """Export all waiting spans, for at most two seconds."""
        await self._batches.flush(_FLUSH_SECONDS)


# Metrics of spans.


class TraceMetrics(Collector):
    """Metrics of a tracer, if there is one."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def collect(self) -> Iterator[Metric]:
        spans = CounterMetricFamily("sidecar_tracing_spans", "Spans by outcome.", labels=("result",))
        spans.add_metric(("exported",), self._tracer.exported)
        spans.add_metric(("dropped",), self._tracer.dropped)
        yield spans
