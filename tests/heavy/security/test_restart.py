"""A restart gives no client a new allowance, and a request's trace continues through the sidecar."""

import pytest

from tests.harness.recording import Upstream
from tests.harness.running import Sidecar, StartSidecar

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere
scopes: {read: Read}
quotas:
  window: {limit: 3, per: month}
  bucket: {limit: 4, per: 24h, window: bucket}
  sliding: {limit: 3, per: 24h, window: sliding}
routes:
- GET /window: {quotas: [window]}
- GET /bucket: {quotas: [bucket]}
- GET /sliding: {quotas: [sliding]}
"""


def statuses(sidecar: Sidecar, target: str, key: str, times: int) -> list[int]:
    return [sidecar.ask("GET", target, key=key).status for _ in range(times)]


@pytest.mark.parametrize(("target", "limit"), [("/window", 3), ("/bucket", 4), ("/sliding", 3)])
def test_quota_taken_before_a_restart_stays_taken(start_sidecar: StartSidecar, target: str, limit: int) -> None:
    first = start_sidecar(CONFIG)
    key = first.keys.issue("counted").text
    assert statuses(first, target, key, 2) == [200, 200]
    assert first.stop() == 0
    second = start_sidecar(CONFIG, store=first.keys.store)
    assert statuses(second, target, key, limit - 1) == [200] * (limit - 2) + [429]


def test_a_trace_continues_and_a_missing_request_id_is_generated(
    start_sidecar: StartSidecar, upstream: Upstream
) -> None:
    sidecar = start_sidecar(CONFIG)
    key = sidecar.keys.issue("traced")
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert sidecar.ask("GET", "/window", [("traceparent", trace), ("X-Request-Id", "mine-1")], key=key).status == 200
    seen = upstream.last()
    assert (seen.all("traceparent"), seen.all("X-Request-Id")) == ([trace], ["mine-1"])
    sidecar.ask("GET", "/window", key=key)
    assert len(upstream.last().header("X-Request-Id")) == 32
