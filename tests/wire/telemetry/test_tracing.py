"""Tracing with a real collector: what spans contain, what the upstream gets, and what is never exported."""

import time
from collections.abc import Callable, Iterator
from hashlib import sha256

import pytest

from tests.harness.keys import IssuedKey
from tests.harness.ports import free_port
from tests.harness.recording import Upstream
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.wire import Connection
from tests.wire.telemetry.collector import Collector, Told

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere
scopes: {read: Read}
keys: {environments: {live: hv_live_}}
routes:
  - GET /items/**: {scopes: [read]}
  - GET /me: {respond: {id: "{key.id}"}}
  - POST /items/**: {scopes: [read]}
"""
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{CALLER}-01", f"00-{TRACE}-{CALLER}-00"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


def tracing(endpoint: str, more: str = "sample: 1.0") -> str:
    return f"tracing: {{endpoint: '{endpoint}', {more}}}\n"


@pytest.fixture(scope="module")
def sidecar(start_shared_sidecar: Callable[..., Sidecar], collector: Collector) -> Sidecar:
    return start_shared_sidecar(CONFIG + tracing(collector.url))


@pytest.fixture(scope="module")
def key(sidecar: Sidecar) -> IssuedKey:
    return sidecar.keys.issue("traced", scopes=("read",), tenant="acme")


def of(request_id: str) -> Callable[[Told], bool]:
    return lambda span: span.attributes.get("sidecar.request_id") == request_id


def server_span(collector: Collector, request_id: str) -> Told:
    return collector.wait_for(of(request_id))[0]


def child_of(collector: Collector, parent: Told) -> list[Told]:
    return [span for span in collector.spans() if span.parent_id == parent.id]


def identified(request_id: str, *more: tuple[str, str]) -> list[tuple[str, str]]:
    return [("X-Request-Id", request_id), *more]


def test_a_request_is_a_server_span_and_a_client_span(
    sidecar: Sidecar, key: IssuedKey, collector: Collector, upstream: Upstream
) -> None:
    answer = sidecar.ask("GET", "/items/7?page=secret", identified("both", ("User-Agent", "curl/8")), key=key)
    assert answer.status == 200
    server = server_span(collector, "both")
    [client] = collector.wait_for(lambda span: span.parent_id == server.id)
    assert (server.name, server.kind, server.parent_id, server.failed) == ("GET /items/**", "server", "", False)
    host, _ = sidecar.data
    assert server.attributes == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "http.route": "/items/**",
        "url.scheme": "http",
        "url.path": "/items/7",
        "server.address": "api.test",
        "client.address": host,
        "network.peer.address": host,
        "network.protocol.name": "http",
        "network.protocol.version": "1.1",
        "user_agent.original": "curl/8",
        "http.request.body.size": 0,
        "http.response.body.size": len(answer.body),
        "sidecar.decision": "allow",
        "sidecar.key.id": key.id,
        "sidecar.key.tenant": "acme",
        "sidecar.request_id": "both",
    }
    assert (client.name, client.kind, client.trace_id, client.failed) == ("GET", "client", server.trace_id, False)
    upstream_port = int(upstream.url.rpartition(":")[2])
    assert client.attributes == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
        "server.port": upstream_port,
        "url.full": f"{upstream.url}/items/7",
        "network.protocol.name": "http",
        "network.protocol.version": "1.1",
    }
    assert server.began <= client.began <= client.ended <= server.ended
    assert abs(server.ended / 1e9 - time.time()) < 60
    assert server.resource["service.name"] == "sidecar"
    parents = [value for name, value in upstream.last().headers if name.lower() == "traceparent"]
    assert parents == [f"00-{server.trace_id}-{client.id}-03"]


def test_the_callers_trace_continues_and_its_tracestate_is_kept(
    sidecar: Sidecar, key: IssuedKey, collector: Collector, upstream: Upstream
) -> None:
    sent = identified("parent", ("traceparent", SAMPLED), ("tracestate", "a=1,b=2"), ("Tracestate", "c=3"))
    assert sidecar.ask("GET", "/items/7", sent, key=key).status == 200
    server = server_span(collector, "parent")
    [client] = collector.wait_for(lambda span: span.parent_id == server.id)
    assert (server.trace_id, server.parent_id, server.state) == (TRACE, CALLER, "a=1,b=2,c=3")
    told = [(name.lower(), value) for name, value in upstream.last().headers if name.lower().startswith("trace")]
    assert told == [("tracestate", "a=1,b=2"), ("tracestate", "c=3"), ("traceparent", f"00-{TRACE}-{client.id}-01")]


def test_a_callers_decision_not_to_sample_is_respected_and_passed_on_unchanged(
    sidecar: Sidecar, key: IssuedKey, collector: Collector, upstream: Upstream
) -> None:
    sent = identified("unsampled", ("traceparent", UNSAMPLED), ("tracestate", "a=1"))
    sidecar.ask("GET", "/items/7", sent, key=key)
    head = upstream.last().head
    sidecar.ask("GET", "/items/7", identified("after"), key=key)
    server_span(collector, "after")
    assert not [span for span in collector.spans() if of("unsampled")(span)]
    assert f"traceparent: {UNSAMPLED}\r\ntracestate: a=1\r\n".encode() in head


@pytest.mark.parametrize(
    "broken",
    [
        [("traceparent", SAMPLED.upper())],
        [("traceparent", SAMPLED + "-x")],
        [("traceparent", SAMPLED.replace("00-", "ff-", 1))],
        [("traceparent", f"00-{'0' * 32}-{CALLER}-01")],
        [("traceparent", f"00-{TRACE}-{'0' * 16}-01")],
        [("traceparent", SAMPLED), ("Traceparent", SAMPLED)],
        [("traceparent", "hv_live_" + "x" * 43)],
        [],
    ],
)
def test_a_context_that_cannot_be_read_is_replaced_with_its_tracestate(
    sidecar: Sidecar, key: IssuedKey, collector: Collector, upstream: Upstream, broken: list[tuple[str, str]]
) -> None:
    name = f"broken-{sha256(repr(broken).encode()).hexdigest()}"
    sidecar.ask("GET", "/items/7", identified(name, *broken, ("tracestate", "a=1")), key=key)
    server = server_span(collector, name)
    assert (server.parent_id, server.state) == ("", "")
    assert server.trace_id != TRACE
    told = [(name.lower(), value) for name, value in upstream.last().headers if name.lower().startswith("trace")]
    [client] = collector.wait_for(lambda span: span.parent_id == server.id)
    assert told == [("traceparent", f"00-{server.trace_id}-{client.id}-03")]


def test_a_later_version_is_parsed_as_far_as_it_is_known(
    sidecar: Sidecar, key: IssuedKey, collector: Collector
) -> None:
    sidecar.ask("GET", "/items/7", identified("later", ("traceparent", f"cc-{TRACE}-{CALLER}-01-more")), key=key)
    assert server_span(collector, "later").trace_id == TRACE


def test_a_refusal_has_its_reason_and_no_client_span(sidecar: Sidecar, key: IssuedKey, collector: Collector) -> None:
    sidecar.keys.told("revoke", (revoked := sidecar.keys.issue("gone", scopes=("read",))).id)
    assert sidecar.ask("GET", "/items/7", identified("revoked"), key=revoked).status == 401
    assert sidecar.ask("GET", "/nowhere?x", identified("nowhere"), key=key).status == 403
    refused, unrouted = server_span(collector, "revoked"), server_span(collector, "nowhere")
    assert refused.attributes["sidecar.decision"] == "deny"
    assert refused.attributes["sidecar.reason"] == "revoked_key"
    assert refused.attributes["sidecar.key.id"] == revoked.id
    assert refused.attributes["http.response.status_code"] == 401
    assert (unrouted.name, unrouted.attributes["sidecar.reason"]) == ("GET", "no_route")
    for span in (refused, unrouted):
        assert not span.failed
        assert "error.type" not in span.attributes
        assert child_of(collector, span) == []


def test_the_sidecars_own_responses_have_no_client_span(sidecar: Sidecar, key: IssuedKey, collector: Collector) -> None:
    assert sidecar.ask("GET", "/me", identified("me"), key=key).status == 200
    span = server_span(collector, "me")
    assert (span.name, child_of(collector, span)) == ("GET /me", [])


def test_an_upstream_that_cannot_be_reached_is_an_error_of_both_spans(
    start_sidecar: StartSidecar, collector: Collector
) -> None:
    sidecar = start_sidecar(CONFIG + tracing(collector.url), upstream_url=f"http://127.0.0.1:{free_port()}")
    key = sidecar.keys.issue(scopes=("read",))
    assert sidecar.ask("GET", "/items/7", identified("unreachable"), key=key).status == 502
    server = server_span(collector, "unreachable")
    [client] = collector.wait_for(lambda span: span.parent_id == server.id)
    for span in (server, client):
        assert span.failed
        assert span.attributes["error.type"] == "upstream_unreachable"
        assert span.attributes["sidecar.cause"] == "refused"
    assert server.attributes["http.response.status_code"] == 502
    assert "http.response.status_code" not in client.attributes
    assert sidecar.logged(lambda line: line["request_id"] == "unreachable")["cause"] == "refused"


def test_an_upstreams_failure_is_an_error_by_its_status(
    sidecar: Sidecar, key: IssuedKey, collector: Collector, upstream: Upstream
) -> None:
    for status, ours, theirs in ((503, "503", "503"), (404, None, "404")):
        upstream.plan(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode())
        assert sidecar.ask("GET", "/items/7", identified(f"status-{status}"), key=key).status == status
        server = server_span(collector, f"status-{status}")
        [client] = collector.wait_for(lambda span, parent=server: span.parent_id == parent.id)
        assert (server.attributes.get("error.type"), server.failed) == (ours, ours is not None)
        assert (client.attributes.get("error.type"), client.failed) == (theirs, True)
        assert client.attributes["http.response.status_code"] == status


def test_an_uncommon_method_is_reported_as_other(sidecar: Sidecar, key: IssuedKey, collector: Collector) -> None:
    sidecar.ask("PROPFIND", "/items/7", identified("method"), key=key)
    span = server_span(collector, "method")
    assert (span.name, span.attributes["http.request.method"]) == ("HTTP", "_OTHER")
    assert "PROPFIND" not in str(span.attributes)


def test_the_histogram_names_sampled_traces_for_who_asks_for_open_metrics(
    sidecar: Sidecar, key: IssuedKey, collector: Collector
) -> None:
    sidecar.ask("GET", "/items/7", identified("exemplary", ("traceparent", SAMPLED.replace(TRACE, "1" * 32))), key=key)
    sidecar.ask("GET", "/items/7", identified("unseen", ("traceparent", UNSAMPLED.replace(TRACE, "2" * 32))), key=key)
    server_span(collector, "exemplary")
    with Connection(sidecar.ops) as ops:
        found = ops.ask("GET", "/metrics", [("Accept", "application/openmetrics-text;version=1.0.0")]).body.decode()
    assert f'trace_id="{"1" * 32}"' in found
    assert f'trace_id="{"2" * 32}"' not in found
    assert "trace_id" not in sidecar.metrics()


def test_the_log_names_the_trace(sidecar: Sidecar, key: IssuedKey, collector: Collector) -> None:
    sidecar.ask("GET", "/items/7", identified("logged"), key=key)
    span = server_span(collector, "logged")
    assert sidecar.logged(lambda line: line["request_id"] == "logged")["trace_id"] == span.trace_id


def test_without_tracing_the_context_passes_through_untouched(start_sidecar: StartSidecar, upstream: Upstream) -> None:
    sidecar = start_sidecar(CONFIG)
    key = sidecar.keys.issue(scopes=("read",))
    sent = [("TraceParent", "anything"), ("tracestate", "a=1"), ("traceparent", SAMPLED)]
    sidecar.ask("GET", "/items/7", sent, key=key)
    assert [pair for pair in upstream.last().headers if pair[0].lower().startswith("trace")] == sent
    assert "sidecar_tracing_spans" not in sidecar.metrics()
    assert "trace_id" not in sidecar.logged(lambda line: line["path"] == "/items/7")


def test_a_sample_rate_of_zero_only_follows_the_callers_sampling(
    start_sidecar: StartSidecar, collector: Collector, upstream: Upstream
) -> None:
    sidecar = start_sidecar(CONFIG + tracing(collector.url, "sample: 0"))
    key = sidecar.keys.issue(scopes=("read",))
    sidecar.ask("GET", "/items/7", identified("not-ours"), key=key)
    assert upstream.last().header("traceparent").endswith("-02")
    sidecar.ask("GET", "/items/7", identified("theirs", ("traceparent", SAMPLED)), key=key)
    server_span(collector, "theirs")
    assert not [span for span in collector.spans() if of("not-ours")(span)]


@pytest.mark.parametrize(("parent", "proxies", "believed"), [
    ("nobody", "[127.0.0.1]", False),
    ("trusted_proxies", "[]", False),
    ("trusted_proxies", "[127.0.0.1]", True),
    ("anyone", "[]", True),
])  # fmt: skip
def test_the_trusted_sources_of_a_trace_context_can_be_chosen(
    start_sidecar: StartSidecar, collector: Collector, parent: str, proxies: str, believed: bool
) -> None:
    more = tracing(collector.url, f"sample: 1, parent: {parent}") + f"trusted_proxies: {proxies}\n"
    sidecar = start_sidecar(CONFIG + more)
    name = f"chosen-{parent}-{believed}"
    sidecar.ask("GET", "/items/7", identified(name, ("traceparent", SAMPLED)))
    assert (server_span(collector, name).trace_id == TRACE) == believed


def test_pending_spans_are_sent_at_the_end_with_configured_headers_and_name(
    start_sidecar: StartSidecar, collector: Collector
) -> None:
    more = tracing(collector.url + "/its/own", "sample: 1, service: mine, headers: {Authorization: 'Bearer ${T}'}")
    sidecar = start_sidecar(CONFIG + more, environ={"T": "for-the-collector"})
    sidecar.ask("GET", "/items/7", identified("last"))
    assert sidecar.stop() == 0
    [span] = [span for span in collector.spans() if of("last")(span)]
    assert span.resource["service.name"] == "mine"
    [headers] = [headers for path, headers, _ in collector.requests if path == "/its/own"]
    assert headers["Authorization"] == "Bearer for-the-collector"


def test_the_environment_names_the_service(start_sidecar: StartSidecar, collector: Collector) -> None:
    sidecar = start_sidecar(CONFIG + tracing(collector.url), environ={"OTEL_SERVICE_NAME": "from-the-environment"})
    sidecar.ask("GET", "/items/7", identified("named"))
    assert server_span(collector, "named").resource["service.name"] == "from-the-environment"
