"""Metrics, as Prometheus reads them."""

import platform
from importlib.metadata import version

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from sidecar.core.errors import Reason, UpstreamCause, reason_of, status_of
from sidecar.core.model import Quota, QuotaState
from sidecar.core.routing import NO_ROUTE
from sidecar.telemetry.metrics import Metrics

ROUTE = "GET /v1/streams/**"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


def samples(metrics: Metrics) -> Samples:
    body, _ = metrics.exposition("text/plain")
    families = text_string_to_metric_families(body.decode())
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((name, frozenset(labels.items())))


def state(quota: str) -> QuotaState:
    return QuotaState(quota=Quota(name=quota, limit=5, period="hour"), limit=5, remaining=4, resets_at=0.0)


def test_a_finished_request_is_counted_by_route_method_and_code(metrics: Metrics) -> None:
    metrics.finished(ROUTE, "GET", 200, seconds=0.003, upstream_seconds=0.002)
    metrics.finished(ROUTE, "GET", 200, seconds=0.003)
    metrics.finished(NO_ROUTE, "GET", 403, seconds=0.003)
    assert value(metrics, "sidecar_requests_total", route=ROUTE, method="GET", code="200") == 2
    assert value(metrics, "sidecar_requests_total", route="(none)", method="GET", code="403") == 1


def test_unknown_methods_share_a_label(metrics: Metrics) -> None:
    for method in ("get", "BREW", "X" * 5000, "\udcff"):
        metrics.finished(ROUTE, method, 405, seconds=0.0)
    assert value(metrics, "sidecar_requests_total", route=ROUTE, method="other", code="405") == 4
    methods = {dict(labels).get("method") for name, labels in samples(metrics) if name == "sidecar_requests_total"}
    assert methods == {"other"}


def test_durations_fall_into_cumulative_buckets(metrics: Metrics) -> None:
    for seconds in (0.0, 0.001, 0.0011, 0.3, 10.0, 10.1, 3600.0):
        metrics.finished(ROUTE, "GET", 200, seconds=seconds, upstream_seconds=seconds / 2)
    expected = {"0.001": 2, "0.0025": 3, "0.25": 3, "0.5": 4, "5.0": 4, "10.0": 5, "+Inf": 7}
    for bound, count in expected.items():
        assert value(metrics, "sidecar_request_seconds_bucket", route=ROUTE, le=bound) == count
    assert value(metrics, "sidecar_request_seconds_count", route=ROUTE) == 7
    assert value(metrics, "sidecar_request_seconds_sum", route=ROUTE) == pytest.approx(3620.4021)
    assert value(metrics, "sidecar_upstream_seconds_sum", route=ROUTE) == pytest.approx(1810.20105)


def exemplars(metrics: Metrics) -> dict[str, tuple[dict[str, str], float, float]]:
    """By bucket, as OpenMetrics has them."""
    body, _ = metrics.exposition("application/openmetrics-text")
    found = [one for family in open_metrics(body.decode()) for one in family.samples if one.exemplar is not None]
    assert {one.name for one in found} <= {"sidecar_request_seconds_bucket"}
    return {
        one.labels["le"]: (one.exemplar.labels, one.exemplar.value, float(one.exemplar.timestamp or 0))
        for one in found
        if one.exemplar is not None
    }


def test_the_newest_trace_of_each_bucket_is_an_exemplar_for_who_asks_for_open_metrics(metrics: Metrics) -> None:
    metrics.finished(ROUTE, "GET", 200, seconds=0.003)
    assert exemplars(metrics) == {}
    for trace_id, seconds in (("a" * 32, 0.003), ("b" * 32, 0.0045), ("c" * 32, 100.0)):
        metrics.finished(ROUTE, "GET", 200, seconds=seconds)
        metrics.traced(ROUTE, trace_id, seconds=seconds, at=1700000000.5)
    assert exemplars(metrics) == {
        "0.005": ({"trace_id": "b" * 32}, 0.0045, 1700000000.5),
        "+Inf": ({"trace_id": "c" * 32}, 100.0, 1700000000.5),
    }
    assert value(metrics, "sidecar_request_seconds_bucket", route=ROUTE, le="0.005") == 3
    assert b"trace_id" not in metrics.exposition("text/plain")[0]


def test_a_request_that_never_reached_the_upstream_has_no_upstream_time(metrics: Metrics) -> None:
    metrics.finished(ROUTE, "GET", 401, seconds=0.1)
    assert value(metrics, "sidecar_upstream_seconds_count", route=ROUTE) is None


@pytest.mark.parametrize("reason", list(Reason))
def test_only_a_denial_with_401_is_an_auth_failure(metrics: Metrics, reason: Reason) -> None:
    metrics.denied(ROUTE, reason)
    assert value(metrics, "sidecar_denied_total", route=ROUTE, reason=reason.value) == 1
    failures = value(metrics, "sidecar_auth_failures_total", reason=reason.value)
    assert failures == (1 if status_of(reason) == 401 else None)


@pytest.mark.parametrize("cause", list(UpstreamCause))
def test_upstream_errors_are_counted_from_zero(metrics: Metrics, cause: UpstreamCause) -> None:
    labels = {"reason": reason_of(cause).value, "cause": cause.value}
    assert value(metrics, "sidecar_upstream_failures_total", **labels) == 0
    metrics.upstream_failed(cause)
    assert value(metrics, "sidecar_upstream_failures_total", **labels) == 1
    assert status_of(reason_of(cause)) in (502, 504)


def test_failed_rounds_in_the_background_are_counted_from_zero(metrics: Metrics) -> None:
    assert value(metrics, "sidecar_background_failures_total", reason="internal") == 0
    metrics.background_failed(Reason.INTERNAL)
    assert value(metrics, "sidecar_background_failures_total", reason="internal") == 1


def test_auth_failures_begin_at_zero(metrics: Metrics) -> None:
    assert value(metrics, "sidecar_auth_failures_total", reason="revoked_key") == 0


def test_connections_over_a_limit_are_counted_by_limit(metrics: Metrics) -> None:
    metrics.connection_refused("connections")
    assert value(metrics, "sidecar_connections_refused_total", limit="connections") == 1
    assert value(metrics, "sidecar_connections_refused_total", limit="connections_per_address") == 0


def test_quotas_are_counted_when_taken_and_when_refused(metrics: Metrics) -> None:
    metrics.taken([state("general"), state("videos")])
    metrics.taken([state("general")])
    metrics.quota_refused("videos", ROUTE)
    assert value(metrics, "sidecar_quota_taken_total", quota="general") == 2
    assert value(metrics, "sidecar_quota_taken_total", quota="videos") == 1
    assert value(metrics, "sidecar_quota_refused_total", quota="videos", route=ROUTE) == 1


def test_declared_series_start_at_zero_and_keep_their_counts(metrics: Metrics) -> None:
    metrics.taken([state("general")])
    metrics.declare_series(routes=[ROUTE], quotas=["general", "videos"])
    assert value(metrics, "sidecar_request_seconds_count", route=ROUTE) == 0
    assert value(metrics, "sidecar_quota_taken_total", quota="videos") == 0
    assert value(metrics, "sidecar_quota_taken_total", quota="general") == 1


def test_the_sidecars_own_time_is_a_requests_without_the_upstreams(metrics: Metrics) -> None:
    metrics.finished(ROUTE, "GET", 200, seconds=0.50004, upstream_seconds=0.5)
    metrics.finished(ROUTE, "GET", 401, seconds=0.0002)
    metrics.finished(ROUTE, "GET", 101, seconds=7200.0, upstream_seconds=0.5)
    for bound, count in {"5e-05": 1, "0.0001": 1, "0.00025": 2, "+Inf": 2}.items():
        assert value(metrics, "sidecar_overhead_seconds_bucket", route=ROUTE, le=bound) == count


def test_the_process_and_its_interpreter_are_measured(metrics: Metrics) -> None:
    names = {name for name, _ in samples(metrics)}
    assert {"process_open_fds", "process_max_fds", "process_resident_memory_bytes"} <= names
    assert {"python_gc_collections_total", "python_info"} <= names


def test_gauges_and_counts_of_other_workers_are_read_on_scrape(metrics: Metrics) -> None:
    cache, dropped = {"hit": 3, "miss": 1}, [2]
    metrics.watch(key_cache=lambda: cache)
    metrics.watch(access_log_dropped=lambda: dropped[0])
    metrics.set_keys({("active", "live"): 7, ("revoked", ""): 1})
    metrics.in_flight += 2
    metrics.store_timed("find", 0.004)
    cache["hit"], dropped[0] = 4, 5
    assert value(metrics, "sidecar_key_cache_total", result="hit") == 4
    assert value(metrics, "sidecar_access_log_dropped_total") == 5
    assert value(metrics, "sidecar_keys", status="active", environment="live") == 7
    assert value(metrics, "sidecar_in_flight") == 2
    assert value(metrics, "sidecar_store_seconds_bucket", operation="find", le="0.005") == 1


def test_a_running_sidecar_is_reported(metrics: Metrics) -> None:
    told = {"version": version("sidecar"), "python": platform.python_version()}
    assert value(metrics, "sidecar_build_info", **told) == 1


def test_open_metrics_are_written_where_asked_for(metrics: Metrics) -> None:
    metrics.finished('GET /a"b\\c\nd', "GET", 200, seconds=0.1)
    body, content_type = metrics.exposition("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    names = {family.name for family in open_metrics(body.decode())}
    assert {"sidecar_requests", "sidecar_request_seconds", "sidecar_build", "sidecar_in_flight"} <= names


def test_plain_text_is_written_where_nothing_is_asked_for(metrics: Metrics) -> None:
    body, content_type = metrics.exposition("")
    assert content_type.startswith("text/plain; version=0.0.4")
    assert b"# TYPE sidecar_requests_total counter\n" in body


def test_every_metric_has_the_name_and_labels_that_dashboards_know(metrics: Metrics) -> None:
    metrics.finished(ROUTE, "GET", 200, seconds=0.1, upstream_seconds=0.1)
    metrics.denied(ROUTE, Reason.REVOKED_KEY)
    metrics.taken([state("general")])
    metrics.quota_refused("general", ROUTE)
    metrics.store_timed("find", 0.1)
    metrics.set_keys({("active", "live"): 1})
    metrics.set_keys_due({("expires", "7d"): 1})
    metrics.background_failed(Reason.STORE_UNAVAILABLE)
    metrics.watch(key_cache=lambda: {"hit": 1})
    shapes = {
        (name, *sorted(key for key, _ in labels))
        for name, labels in samples(metrics)
        if not name.endswith("_bucket") and name.startswith("sidecar_")
    }
    assert shapes == {
        ("sidecar_requests_total", "code", "method", "route"),
        ("sidecar_denied_total", "reason", "route"),
        ("sidecar_auth_failures_total", "reason"),
        ("sidecar_quota_taken_total", "quota"),
        ("sidecar_quota_refused_total", "quota", "route"),
        ("sidecar_connections_refused_total", "limit"),
        ("sidecar_key_cache_total", "result"),
        ("sidecar_internal_errors_total",),
        ("sidecar_background_failures_total", "reason"),
        ("sidecar_access_log_dropped_total",),
        ("sidecar_log_dropped_total",),
        ("sidecar_request_seconds_count", "route"),
        ("sidecar_request_seconds_sum", "route"),
        ("sidecar_upstream_seconds_count", "route"),
        ("sidecar_upstream_seconds_sum", "route"),
        ("sidecar_overhead_seconds_count", "route"),
        ("sidecar_overhead_seconds_sum", "route"),
        ("sidecar_store_seconds_count", "operation"),
        ("sidecar_store_seconds_sum", "operation"),
        ("sidecar_streams_ended_total", "reason"),
        ("sidecar_upstream_failures_total", "cause", "reason"),
        ("sidecar_in_flight",),
        ("sidecar_keys", "environment", "status"),
        ("sidecar_keys_due", "turn", "within"),
        ("sidecar_build_info", "python", "version"),
    }
