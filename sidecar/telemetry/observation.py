"""Requests that passed although they would have been refused (`mode: observe`), and whether anything is observed."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sidecar.core.errors import Reason


class WouldDenyMetrics(Collector):
    """Counts of requests by the route and the reason that would have refused them."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, ...], int] = {}

    def count(self, route: str, reason: Reason) -> None:
        self._counts[route, reason] = self._counts.get((route, reason), 0) + 1

    def counts(self) -> Mapping[tuple[str, ...], int]:
        """Counts by route and reason."""
        return dict(self._counts)

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "sidecar_would_deny",
            "Requests let through that `mode: observe` alone did not refuse.",
            labels=("route", "reason"),
        )
        for labels, count in list(self._counts.items()):
            family.add_metric(labels, count)
        yield family


class ObservingMetrics(Collector):
    """observing: whether any refusal of the current configuration is only observed."""

    def __init__(self, observing: Callable[[], bool]) -> None:
        self._observing = observing

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "sidecar_observing", "1 while anything is only observed and not enforced.", value=self._observing()
        )
