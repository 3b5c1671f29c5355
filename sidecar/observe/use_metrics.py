"""What the operator counts of the use of keys beside the requests themselves."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class UseMetrics(Collector):
    """unusual: events by kind, every kind from the start. dropped: requests that were not counted as use."""

    def __init__(self, unusual: Mapping[str, int], *, dropped: Callable[[], int]) -> None:
        self._unusual, self._dropped = unusual, dropped

    def collect(self) -> Iterator[Metric]:
        unusual = CounterMetricFamily("sidecar_unusual", "Unusual events in how keys are used.", labels=("kind",))
        for kind, count in self._unusual.items():
            unusual.add_metric((kind,), count)
        yield unusual
        yield CounterMetricFamily(
            "sidecar_usage_dropped", "Requests of a key that were not counted as its use.", value=self._dropped()
        )
