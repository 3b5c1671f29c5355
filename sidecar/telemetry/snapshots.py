"""Merges the metrics of several processes: counters are added, histograms merged, nothing counted twice.

Gauges are added up if that makes sense. The kernel's numbers about a process (memory, descriptors, its start) are shown
per process, with a label `worker`. Counters of an ended process are kept.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import add
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.samples import Sample

Snapshot = Sequence[Metric]
"""The metric families of one process at one moment."""

CONTROL: Final = "control"
"""The label `worker` of the process that shows them."""
_OF_A_PROCESS: Final = "process_"
_LEAST: Final = frozenset({"sidecar_store_writable"})
"""Gauges whose minimum shows the worst process,"""
_MOST: Final = frozenset({"sidecar_store_grace_active", "sidecar_limiter_breaker_state", "sidecar_observing"})
"""and gauges whose maximum does."""
_KEPT: Final = frozenset({"counter", "histogram"})

_Series = dict[tuple[str, tuple[tuple[str, str], ...]], Sample]


def snapshot_of(registry: CollectorRegistry) -> Snapshot:
    """A snapshot of this process, now. It can be sent to another (pickle)."""
    return list(registry.collect())


def merged(snapshots: Mapping[str, Snapshot]) -> Snapshot:
    """One snapshot of all, by the name of the process; an empty name is for ended processes."""
    families = dict[str, Metric]()
    series = dict[str, _Series]()
    for worker, snapshot in snapshots.items():
        for metric in snapshot:
            if metric.name not in families:
                families[metric.name] = Metric(metric.name, metric.documentation, metric.type, metric.unit)
                series[metric.name] = {}
            for sample in metric.samples:
                _add(series[metric.name], sample, metric, worker)
    for name, family in families.items():
        family.samples = list(series[name].values())
    return list(families.values())


def kept(ended: Snapshot, last: Snapshot) -> Snapshot:
    """What is kept of ended processes, plus the last snapshot of another one."""
    counts = [metric for metric in last if metric.type in _KEPT]
    return merged({"": ended, " ": counts})


def totals_by(labels: Sequence[str], name: str, snapshots: Mapping[str, Snapshot]) -> Mapping[tuple[str, ...], int]:
    """Sums of a counter's samples by some of its labels. name: that of the family."""
    counts = dict[tuple[str, ...], int]()
    for snapshot in snapshots.values():
        for sample in (sample for metric in snapshot if metric.name == name for sample in metric.samples):
            values = tuple(sample.labels[label] for label in labels)
            counts[values] = counts.get(values, 0) + int(sample.value)
    return counts


class Merged(Collector):
    """This process's metrics with those of the others."""

    def __init__(self, registry: CollectorRegistry, others: Callable[[], Mapping[str, Snapshot]]) -> None:
        self._registry, self._others = registry, others

    def collect(self) -> Iterator[Metric]:
        yield from merged({CONTROL: snapshot_of(self._registry), **self._others()})


class WorkerMetrics(Collector):
    """How many workers serve, and how often one was restarted."""

    def __init__(self, serving: Callable[[], int], restarts: Callable[[], int]) -> None:
        self._serving, self._restarts = serving, restarts

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("sidecar_workers", "Workers that serve.", value=self._serving())
        yield CounterMetricFamily("sidecar_worker_restarts", "Workers started again.", value=self._restarts())


def _add(series: _Series, sample: Sample, metric: Metric, worker: str) -> None:
    by_process = metric.type == "gauge" and metric.name.startswith(_OF_A_PROCESS)
    labels = {**sample.labels, "worker": worker} if by_process else sample.labels
    key = (sample.name, tuple(labels.items()))
    before = series.get(key)
    if before is None:
        series[key] = sample._replace(labels=labels)
    elif not sample.name.endswith("_info"):
        how = min if metric.name in _LEAST else max if metric.name in _MOST else add
        value = how(before.value, sample.value)
        exemplars = [each.exemplar for each in (before, sample) if each.exemplar is not None]
        newest = max(exemplars, key=lambda exemplar: exemplar.timestamp or 0, default=None)
        series[key] = before._replace(value=value, exemplar=newest)
