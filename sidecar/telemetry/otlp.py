"""Sends spans to a collector: OTLP over HTTP, with OpenTelemetry's own SDK and exporter (the extra `otel`)."""

import logging
from collections.abc import Mapping, Sequence
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from sidecar import __version__
from sidecar.core.observer import SAMPLED
from sidecar.telemetry.spans import Span

_KINDS: Final = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT}
_MAX_REASON: Final = 200
_log = logging.getLogger(__name__)


class ExportFailed(Exception):
    """The collector did not accept a batch."""


class OtlpExport:
    """A callable that sends spans; raises ExportFailed. Blocks, at most about `timeout_seconds`.

    endpoint: the whole URL. headers: of every request to it, in addition to those of OTEL_EXPORTER_OTLP_HEADERS.
    service: if empty, from OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, or `sidecar` by default.
    """

    def __init__(self, endpoint: str, *, headers: Mapping[str, str], timeout_seconds: float, service: str) -> None:
        self._endpoint = endpoint
        self._complaints = _Complaints()
        self._failing = False
        self._ids, self._ended = _Ids(), _Ended()
        provider = TracerProvider(
            sampler=ALWAYS_ON, resource=_resource(service), id_generator=self._ids, shutdown_on_exit=False
        )
        provider.add_span_processor(self._ended)
        self._tracer = provider.get_tracer("sidecar", __version__)
        self._exporter = OTLPSpanExporter(endpoint, headers=dict(headers) or None, timeout=timeout_seconds)

    def __call__(self, spans: Sequence[Span]) -> None:
        for span in spans:
            self._convert(span)
        sent = self._exporter.export(self._ended.take()) is SpanExportResult.SUCCESS
        self._report(failing=not sent)
        if not sent:
            raise ExportFailed

    def close(self) -> None:
        """Abort pending attempts."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # it has no annotations

    def _convert(self, span: Span) -> None:
        """`span` as the SDK's type."""
        self._ids.trace_id, self._ids.span_id = int(span.trace_id, 16), int(span.span_id, 16)
        context = set_span_in_context(NonRecordingSpan(_parent(span))) if span.parent_id else None
        exported = self._tracer.start_span(
            span.name, context, _KINDS[span.kind], attributes=span.attributes, start_time=span.began
        )
        if span.failed:
            exported.set_status(Status(StatusCode.ERROR))
        exported.end(span.ended)

    def _report(self, *, failing: bool) -> None:
        """Make the SDK's span: start it and end it."""
        if failing and not self._failing:
            _log.warning(
                "sidecar: tracing: %s does not accept spans, which are dropped meanwhile: %s",
                self._endpoint,
                self._complaints.last,
            )
        elif self._failing and not failing:
            _log.warning("sidecar: tracing: %s accepts spans again", self._endpoint)
        self._failing = failing


class _Ids(IdGenerator):
    """The ids of the next span."""

    trace_id = 0
    span_id = 0

    def generate_span_id(self) -> int:
        return self.span_id

    def generate_trace_id(self) -> int:
        return self.trace_id


class _Ended(SpanProcessor):
    """Keeps ended spans until they are taken."""

    def __init__(self) -> None:
        self._spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self._spans.append(span)

    def take(self) -> list[ReadableSpan]:
        spans, self._spans = self._spans, []
        return spans


class _Complaints(logging.Filter):
    """Suppresses what OpenTelemetry would log at each attempt, but keeps the last message."""

    def __init__(self) -> None:
        super().__init__()
        self.last = "no reason given"
        # Nothing that a client wrote may reach the log.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        exporter = logging.getLogger(OTLPSpanExporter.__module__)
        exporter.setLevel(logging.WARNING)
        exporter.addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        self.last = " ".join(record.getMessage().split())[:_MAX_REASON]
        return False


def _parent(span: Span) -> SpanContext:
    return SpanContext(
        trace_id=int(span.trace_id, 16),
        span_id=int(span.parent_id, 16),
        is_remote=span.kind == "server",
        trace_flags=TraceFlags(SAMPLED),
        trace_state=TraceState.from_header([span.state]) if span.state else None,
    )


def _resource(service: str) -> Resource:
    resource = Resource.create({SERVICE_NAME: service} if service else {})
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "sidecar"}))
    return resource
