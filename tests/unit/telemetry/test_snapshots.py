"""Metrics of several processes as those of one."""

import pickle

import pytest
from prometheus_client import CollectorRegistry

from sidecar.core.errors import Reason
from sidecar.telemetry.metrics import Metrics, StoreMetrics
from sidecar.telemetry.reloads import Reloads
from sidecar.telemetry.snapshots import Snapshot, kept, merged, totals_by


def worker(*, requests: int = 0, in_flight: int = 0, write_problem: str = "") -> Snapshot:
    """As another process gets it."""
    metrics = Metrics()
    metrics.also(StoreMetrics(lambda: write_problem, grace=lambda: (False, 0), processes=lambda: 1))
    for _ in range(requests):
        metrics.finished("GET /v1/**", "GET", 200, seconds=0.004)
        metrics.denied("GET /v1/**", Reason.QUOTA_EXCEEDED)
    metrics.in_flight = in_flight
    told: Snapshot = pickle.loads(pickle.dumps(metrics.snapshot()))  # noqa: S301 - our own
    return told


def samples(snapshot: Snapshot) -> dict[str, float]:
    """By name and labels; each stands there once."""
    found = [
        (f"{sample.name}{sorted(sample.labels.items()) or ''}", sample.value)
        for metric in snapshot
        for sample in metric.samples
    ]
    assert len(dict(found)) == len(found)
    return dict(found)


def test_counters_and_histograms_are_added_up() -> None:
    found = samples(merged({"1": worker(requests=2), "2": worker(requests=3)}))
    assert found["sidecar_requests_total[('code', '200'), ('method', 'GET'), ('route', 'GET /v1/**')]"] == 5
    assert found["sidecar_request_seconds_bucket[('le', '0.0025'), ('route', 'GET /v1/**')]"] == 0
    assert found["sidecar_request_seconds_bucket[('le', '+Inf'), ('route', 'GET /v1/**')]"] == 5
    assert found["sidecar_request_seconds_sum[('route', 'GET /v1/**')]"] == pytest.approx(0.02)


def test_gauges_are_summed_shown_per_process_or_show_the_worst() -> None:
    found = samples(merged({"1": worker(in_flight=2), "2": worker(in_flight=3, write_problem="disk full")}))
    assert found["sidecar_in_flight"] == 5
    assert found["sidecar_store_writable"] == 0
    assert {"process_open_fds[('worker', '1')]", "process_open_fds[('worker', '2')]"} <= found.keys()
    assert [value for name, value in found.items() if name.split("[")[0].endswith("_info")] == [1, 1]


def test_only_the_counts_of_ended_processes_are_kept() -> None:
    ended = kept(kept((), worker(requests=2, in_flight=4)), worker(requests=3))
    found = samples(merged({"": ended, "1": worker(requests=1)}))
    assert found["sidecar_requests_total[('code', '200'), ('method', 'GET'), ('route', 'GET /v1/**')]"] == 6
    assert found["sidecar_in_flight"] == 0
    assert [name for name in found if "worker" in name and "'1'" not in name] == []


def test_the_process_that_shows_them_shows_its_own_with_them() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.also(Reloads("f00", at=1.0))
    metrics.denied("(none)", Reason.QUOTA_EXCEEDED)
    metrics.merge(lambda: {"1": worker(requests=2)})
    text = metrics.exposition("")[0].decode()
    assert 'sidecar_denied_total{reason="quota_exceeded",route="GET /v1/**"} 2.0' in text
    assert 'sidecar_config_info{sha256="f00"} 1.0' in text
    assert metrics.exposition("application/openmetrics-text")[0].endswith(b"# EOF\n")
    assert metrics.refusals() == {"quota_exceeded": 3}
    metrics.finished("(none)", "GET", 429, seconds=0.1)
    metrics.finished("(none)", "POST", 200, seconds=0.1)
    assert metrics.by_route() == {"GET /v1/**": {"": 2, "quota_exceeded": 2}, "(none)": {"": 2, "quota_exceeded": 1}}


def test_refusals_are_counted_over_all() -> None:
    parts = {"1": worker(requests=2), "2": worker(requests=1)}
    assert totals_by(["reason"], "sidecar_denied", parts) == {("quota_exceeded",): 3}
