"""A collector: takes spans by OTLP over HTTP and keeps them, decoded."""

import asyncio
from collections.abc import Callable
from threading import Condition, Event, Thread
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

WAIT_SECONDS = 60.0


class Told:
    """A span as it arrived."""

    def __init__(self, span: Span, resource: dict[str, Any]) -> None:
        self.name, self.resource = span.name, resource
        self.kind = Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower()
        self.trace_id, self.id, self.parent_id = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
        self.state = span.trace_state
        self.began, self.ended = span.start_time_unix_nano, span.end_time_unix_nano
        self.failed = span.status.code == Status.STATUS_CODE_ERROR
        self.attributes = values(span.attributes)


class Collector:
    """Listens in its own thread inside the context. status: the response to every batch."""

    def __init__(self, *, port: int = 0, status: int = 200) -> None:
        self._port, self._status = port, status
        self._changed, self._ready = Condition(), Event()
        self._spans: list[Told] = []
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        """Path, headers and body of each."""
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(WAIT_SECONDS)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_SECONDS)

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def spans(self) -> list[Told]:
        """All received spans."""
        with self._changed:
            return list(self._spans)

    def written(self) -> bytes:
        """All received bytes, including headers."""
        with self._changed:
            return b"".join(repr(request).encode() + request[2] for request in self.requests)

    def wait_for(self, wanted: Callable[[Told], bool], *, count: int = 1) -> list[Told]:
        """The first spans that are `wanted`."""
        with self._changed:
            found: list[Told] = []

            def enough() -> bool:
                found[:] = [span for span in self._spans if wanted(span)]
                return len(found) >= count

            assert self._changed.wait_for(enough, WAIT_SECONDS), f"not among {len(self._spans)} spans"
            return found

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application()
        app.router.add_post("/{path:.*}", self._take)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        self._loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", self._port).start())
        self._port = runner.addresses[0][1]
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        sent = ExportTraceServiceRequest.FromString(body)
        with self._changed:
            self.requests.append((request.path, dict(request.headers), body))
            if self._status == 200:
                for group in sent.resource_spans:
                    resource = values(group.resource.attributes)
                    self._spans += [Told(span, resource) for scope in group.scope_spans for span in scope.spans]
            self._changed.notify_all()
        response = ExportTraceServiceResponse().SerializeToString()
        return web.Response(status=self._status, body=response, content_type="application/x-protobuf")


def values(attributes: Any) -> dict[str, Any]:
    """Attributes by name, of text and whole numbers."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
