"""Metrics of the quota limiters."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sidecar.limiter.remote import BREAKERS, LATENCIES, RemoteStatistics
from sidecar.limiter.shared import EmbeddedLimiter


class LimiterMetrics(Collector):
    """The number of entries in the quotas' memory."""

    def __init__(self, limiter: EmbeddedLimiter) -> None:
        self._limiter = limiter

    def collect(self) -> Iterator[Metric]:
        limiter = self._limiter
        yield GaugeMetricFamily("sidecar_quota_entries", "Counts of quotas in memory.", value=len(limiter))
        yield GaugeMetricFamily(
            "sidecar_quota_entries_limit", "Most counts of quotas in memory.", value=limiter.max_entries
        )
        yield CounterMetricFamily(
            "sidecar_quota_entries_evicted",
            "Counts evicted to make room for others; they start from zero.",
            value=limiter.evicted,
        )


class RemoteLimiterMetrics(Collector):
    """Metrics of the shared limiter, and of decisions while it is unavailable."""

    def __init__(self, statistics: RemoteStatistics) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        statistics = self._statistics
        errors = CounterMetricFamily(
            "sidecar_limiter_errors", "Times the shared limiter became unavailable.", labels=("cause",)
        )
        for cause, count in statistics.errors.items():
            errors.add_metric((cause,), count)
        yield errors
        breaker = GaugeMetricFamily(
            "sidecar_limiter_breaker_state", "1 for the state of the circuit breaker, else 0.", labels=("state",)
        )
        for state in BREAKERS:
            breaker.add_metric((state,), float(state == statistics.breaker))
        yield breaker
        fallbacks = CounterMetricFamily(
            "sidecar_limiter_fallback", "Decisions without the shared limiter.", labels=("decision",)
        )
        for decision, count in statistics.fallbacks.items():
            fallbacks.add_metric((decision,), count)
        yield fallbacks
        yield self._latency()

    def _latency(self) -> HistogramMetricFamily:
        buckets, total = list[tuple[str, float]](), 0
        bounds = [*map(str, LATENCIES), "+Inf"]
        for bound, count in zip(bounds, self._statistics.latencies, strict=True):
            total += count
            buckets.append((bound, total))
        return HistogramMetricFamily(
            "sidecar_limiter_duration_seconds",
            "Time until the shared limiter answered.",
            buckets=buckets,
            sum_value=self._statistics.latency_sum,
        )
