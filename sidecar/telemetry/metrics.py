"""Metrics: plain numbers on the request's path, Prometheus families when they are scraped.

prometheus_client takes a lock and hashes labels on every increment; dicts of ints cost a tenth of that. Every label is
bounded: a route's name as configured or `(none)`, a known method or `other`, a `Reason`, a quota's name.
"""

import platform
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from sidecar import __version__
from sidecar.core.errors import Reason, UpstreamCause, reason_of, status_of
from sidecar.core.model import QuotaState
from sidecar.core.routing import STANDARD_METHODS
from sidecar.telemetry.snapshots import Merged, Snapshot, snapshot_of, totals_by

# Metrics about the use of keys, besides the requests themselves.


class UsageMetrics(Collector):
    """unusual: events by kind; every kind exists from the start. dropped: requests that were not counted as use."""

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


class StoreMetrics(Collector):
    """write_problem: why the store accepts no changes; empty if it does. grace: whether it is active, and its lookups.

    processes: how many sidecars use the store.
    """

    def __init__(
        self, write_problem: Callable[[], str], *, grace: Callable[[], tuple[bool, int]], processes: Callable[[], int]
    ) -> None:
        self._write_problem, self._grace, self._processes = write_problem, grace, processes

    def collect(self) -> Iterator[Metric]:
        active, lookups = self._grace()
        yield GaugeMetricFamily(
            "sidecar_store_writable", "0 after the store failed to write a change.", value=not self._write_problem()
        )
        yield GaugeMetricFamily(
            "sidecar_store_processes",
            "Sidecars that serve this store and count quotas in memory, including this one; each counts separately.",
            value=self._processes(),
        )
        yield GaugeMetricFamily(
            "sidecar_store_grace_active",
            "1 while the store does not answer and cached keys keep working.",
            value=active,
        )
        yield CounterMetricFamily(
            "sidecar_store_grace_lookups", "Keys taken from memory while the store does not answer.", value=lookups
        )


BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histograms' buckets, in seconds; one more bucket is for higher values."""
OVERHEAD_BOUNDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5)
"""For the sidecar's own time, which is far less than a service takes."""

_METHODS = frozenset(STANDARD_METHODS)
_AUTH_FAILURES = tuple(reason for reason in Reason if status_of(reason) == 401)
_STREAM_ENDS = (
    Reason.INVALID_KEY,
    Reason.EXPIRED_KEY,
    Reason.DISABLED_KEY,
    Reason.REVOKED_KEY,
    Reason.RETIRED_KEY,
    Reason.INSUFFICIENT_SCOPE,
    Reason.WRONG_TENANT,
    Reason.WRONG_ENVIRONMENT,
    Reason.KEY_NOT_ACCEPTED,
    Reason.AMBIGUOUS_TARGET,
)
"""Refusals of exchanges that had been allowed: only a changed key causes them."""
_BACKGROUND_FAILURES = (Reason.STORE_UNAVAILABLE, Reason.INTERNAL)
_CONNECTION_LIMITS = ("connections", "connections_per_address", "open_files", "proxy_protocol", "held_bytes")
_SWITCHING_PROTOCOLS = 101

Counts = dict[tuple[str, ...], int]
_Bucket = tuple[str, float] | tuple[str, float, Exemplar]


class _Histogram:
    """Durations, each counted in a single bucket. exemplars: the newest of each bucket, if any."""

    __slots__ = ("bounds", "counts", "exemplars", "total")

    def __init__(self, bounds: Sequence[float] = BOUNDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.exemplars: dict[int, Exemplar] = {}
        self.total = 0.0

    def cumulative(self) -> list[_Bucket]:
        reached = 0
        buckets: list[_Bucket] = []
        for at, (label, count) in enumerate(zip((*map(str, self.bounds), "+Inf"), list(self.counts), strict=True)):
            reached += count
            exemplar = self.exemplars.get(at)
            buckets.append((label, reached) if exemplar is None else (label, reached, exemplar))
        return buckets


class Metrics(Collector):
    """The sidecar's metrics, registered with `registry` (None: a new one)."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.in_flight = 0
        """Requests begun and not yet finished. The data listener adds and subtracts."""
        self.internal_errors = 0
        """Incremented by whoever catches one."""
        self._requests: dict[tuple[str, str, int], int] = {}
        self._denied: Counts = {}
        self._auth_failures: Counts = {(reason.value,): 0 for reason in _AUTH_FAILURES}
        self._upstream_failures: Counts = {_failure(cause): 0 for cause in UpstreamCause}
        self._streams_ended: Counts = {(reason.value,): 0 for reason in _STREAM_ENDS}
        self._taken: dict[str, int] = {}
        self._refused: Counts = {}
        self._turned_away: Counts = {(limit,): 0 for limit in _CONNECTION_LIMITS}
        self._request_seconds: dict[str, _Histogram] = {}
        self._upstream_seconds: dict[str, _Histogram] = {}
        self._overhead_seconds: dict[str, _Histogram] = {}
        self._store_seconds: dict[str, _Histogram] = {}
        self._keys: Mapping[tuple[str, str], int] = {}
        self._keys_due: Mapping[tuple[str, str], int] = {}
        self._background_failures: Counts = {(reason.value,): 0 for reason in _BACKGROUND_FAILURES}
        self._read_key_cache: Callable[[], Mapping[str, int]] = dict
        self._read_access_log_dropped: Callable[[], int] = int
        self._read_log_dropped: Callable[[], int] = int
        self._read_would_deny: Callable[[], Mapping[tuple[str, ...], int]] = dict
        self._others: Callable[[], Mapping[str, Snapshot]] | None = None
        self._registry = registry if registry is not None else CollectorRegistry()
        self.snapshot: Callable[[], Snapshot] = lambda: snapshot_of(self._registry)
        """Everything registered, to be shown by another process."""
        self._registry.register(self)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)

    def finished(
        self, route: str, method: str, status: int, *, seconds: float, upstream_seconds: float | None = None
    ) -> None:
        """A request got its response; `upstream_seconds` if the upstream was involved."""
        requests, key = self._requests, (route, method if method in _METHODS else "other", status)
        requests[key] = requests.get(key, 0) + 1
        whole = self._request_seconds.get(route) or _begun(self._request_seconds, route)
        whole.counts[bisect_left(BOUNDS, seconds)] += 1
        whole.total += seconds
        own_seconds = seconds
        if upstream_seconds is not None:
            upstream = self._upstream_seconds.get(route) or _begun(self._upstream_seconds, route)
            upstream.counts[bisect_left(BOUNDS, upstream_seconds)] += 1
            upstream.total += upstream_seconds
            own_seconds -= upstream_seconds
        if status != _SWITCHING_PROTOCOLS:  # The duration of a tunnel is up to both ends.
            own = self._overhead_seconds.get(route) or _begun(self._overhead_seconds, route, OVERHEAD_BOUNDS)
            own.counts[bisect_left(OVERHEAD_BOUNDS, own_seconds)] += 1
            own.total += own_seconds

    def traced(self, route: str, trace_id: str, *, seconds: float, at: float) -> None:
        """The trace of a request that `finished` has counted, which ended `at` (Unix seconds), was sampled."""
        histogram = self._request_seconds[route]
        exemplar = Exemplar({"trace_id": trace_id}, seconds, at)
        histogram.exemplars[bisect_left(histogram.bounds, seconds)] = exemplar

    def denied(self, route: str, reason: Reason) -> None:
        """A request was refused, or not served because of a fault."""
        _add(self._denied, (route, reason))
        failure = (reason,)
        if failure in self._auth_failures:
            self._auth_failures[failure] += 1

    def upstream_failed(self, cause: UpstreamCause, upstream: str | None = None) -> None:
        """The upstream failed to respond, or broke off its response; `denied` counts it, too.

        upstream: its name; None is the default one.
        """
        _add(self._upstream_failures, _failure(cause, upstream))

    def stream_ended(self, reason: Reason) -> None:
        """An allowed exchange was ended for `reason`; counted if the key is the reason."""
        if (reason.value,) in self._streams_ended:
            _add(self._streams_ended, (reason.value,))

    def refusals(self) -> Mapping[str, int]:
        """Requests that were denied, by reason, since the start."""
        counts: Counter[str] = Counter()
        for denied in self.by_route().values():
            counts.update(denied)
        del counts[""]
        return counts

    def by_route(self) -> Mapping[str, Counter[str]]:
        """Requests since the start by route and reason of denial; an empty reason: all requests of the route."""
        counts: dict[str, Counter[str]] = {}
        others = {} if self._others is None else self._others()
        for (route, _, _), count in self._requests.items():
            counts.setdefault(route, Counter())[""] += count
        for (route,), count in totals_by(["route"], "sidecar_requests", others).items():
            counts.setdefault(route, Counter())[""] += count
        denied = (self._denied, totals_by(["route", "reason"], "sidecar_denied", others))
        for (route, reason), count in (item for each in denied for item in each.items()):
            counts.setdefault(route, Counter())[reason] += count
        return counts

    def observed_by_route(self) -> Mapping[str, Counter[str]]:
        """Requests since the start that passed only because their refusal is observed, by route and reason."""
        counts: dict[str, Counter[str]] = {}
        others = {} if self._others is None else self._others()
        observed = (self._read_would_deny(), totals_by(["route", "reason"], "sidecar_would_deny", others))
        for (route, reason), count in (item for each in observed for item in each.items()):
            counts.setdefault(route, Counter())[reason] += count
        return counts

    def taken(self, states: Iterable[QuotaState]) -> None:
        """A take of every quota in `states` passed."""
        counts = self._taken
        for state in states:
            name = state.quota.name
            counts[name] = counts.get(name, 0) + 1

    def connection_refused(self, limit: str) -> None:
        """A connection was refused because of `limits.connections` or `limits.connections_per_address`.

        Or it had to wait (`open_files`), or did not begin as `proxy_protocol` requires.
        """
        _add(self._turned_away, (limit,))

    def quota_refused(self, quota: str, route: str) -> None:
        _add(self._refused, (quota, route))

    def store_timed(self, operation: str, seconds: float) -> None:
        """An operation on the key store took `seconds`."""
        store = self._store_seconds.get(operation) or _begun(self._store_seconds, operation)
        store.counts[bisect_left(BOUNDS, seconds)] += 1
        store.total += seconds

    def set_keys(self, keys: Mapping[tuple[str, str], int]) -> None:
        """Number of stored keys by (status, environment)."""
        self._keys = keys

    def set_keys_due(self, keys: Mapping[tuple[str, str], int]) -> None:
        """Number of active keys by (`expires` or `retires`, the period in which they do, such as `7d`)."""
        self._keys_due = keys

    def background_failed(self, reason: Reason) -> None:
        """A round of background work (writing, counting keys, reloading, timers) failed."""
        _add(self._background_failures, (reason.value,))

    def declare_series(
        self, *, routes: Iterable[str] = (), quotas: Iterable[str] = (), upstreams: Iterable[str] = ()
    ) -> None:
        """Create the series of these at zero, so that an alert sees their first increase."""
        for upstream in upstreams:
            for cause in UpstreamCause:
                self._upstream_failures.setdefault(_failure(cause, upstream), 0)
        for route in routes:
            self._request_seconds.setdefault(route, _Histogram())
            self._overhead_seconds.setdefault(route, _Histogram(OVERHEAD_BOUNDS))
        for quota in quotas:
            self._taken.setdefault(quota, 0)

    def watch(
        self,
        *,
        key_cache: Callable[[], Mapping[str, int]] | None = None,
        access_log_dropped: Callable[[], int] | None = None,
        log_dropped: Callable[[], int] | None = None,
        would_deny: Callable[[], Mapping[tuple[str, ...], int]] | None = None,
    ) -> None:
        """Counters kept elsewhere, read on each scrape: key cache lookups by result, dropped log lines.

        would_deny: requests by route and observed reason; its owner also shows it.
        """
        self._read_key_cache = key_cache or self._read_key_cache
        self._read_access_log_dropped = access_log_dropped or self._read_access_log_dropped
        self._read_log_dropped = log_dropped or self._read_log_dropped
        self._read_would_deny = would_deny or self._read_would_deny

    def also(self, collector: Collector) -> None:
        """Also show the metrics of `collector`."""
        self._registry.register(collector)

    def merge(self, others: Callable[[], Mapping[str, Snapshot]]) -> None:
        """Merge the last snapshots of other processes into this one's metrics."""
        self._others = others

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Everything registered, and its content type: OpenMetrics if `accept` (the header) asks for it."""
        encode, content_type = choose_encoder(accept)
        shown = self._registry if self._others is None else Merged(self._registry, self._others)
        return encode(shown), content_type

    def collect(self) -> Iterator[Metric]:
        yield from self._counters()
        yield _histograms(
            "sidecar_request_seconds",
            "Seconds from a request's head to the end of its response.",
            "route",
            self._request_seconds,
        )
        yield _histograms(
            "sidecar_upstream_seconds", "Seconds that the upstream took.", "route", self._upstream_seconds
        )
        yield _histograms(
            "sidecar_overhead_seconds",
            "Seconds of a request outside the upstream: the sidecar's own time, and the transfer of bodies.",
            "route",
            self._overhead_seconds,
        )
        yield _histograms("sidecar_store_seconds", "Seconds that the key store took.", "operation", self._store_seconds)
        yield from self._gauges()

    def _counters(self) -> Iterator[Metric]:
        requests: Counts = {
            (route, method, str(status)): n for (route, method, status), n in list(self._requests.items())
        }
        taken: Counts = {(quota,): count for quota, count in list(self._taken.items())}
        cache: Counts = {(result,): count for result, count in self._read_key_cache().items()}
        yield _counter("sidecar_requests", "Requests answered.", ("route", "method", "code"), requests)
        yield _counter(
            "sidecar_denied", "Requests refused, or not served because of a fault.", ("route", "reason"), self._denied
        )
        yield _counter(
            "sidecar_auth_failures", "Requests whose credential was refused (401).", ("reason",), self._auth_failures
        )
        yield from self._failures()
        yield _counter("sidecar_quota_taken", "Takes that a quota allowed.", ("quota",), taken)
        yield _counter("sidecar_quota_refused", "Takes that a quota refused.", ("quota", "route"), self._refused)
        yield _counter("sidecar_connections_refused", "Connections past a limit.", ("limit",), self._turned_away)
        yield CounterMetricFamily(
            "sidecar_internal_errors", "Errors of the sidecar's own code.", value=self.internal_errors
        )
        yield _counter("sidecar_key_cache", "Lookups in the cache of keys.", ("result",), cache)
        yield _counter(
            "sidecar_background_failures",
            "Rounds of background work that failed.",
            ("reason",),
            self._background_failures,
        )
        yield _counter(
            "sidecar_access_log_dropped",
            "Lines of the access log that were dropped.",
            (),
            {(): self._read_access_log_dropped()},
        )
        yield _counter("sidecar_log_dropped", "Lines of stderr that were dropped.", (), {(): self._read_log_dropped()})

    def _failures(self) -> Iterator[Metric]:
        """Requests that failed although they had been allowed."""
        yield _counter(
            "sidecar_upstream_failures",
            "Requests that the upstream failed, by what was wrong with it.",
            ("reason", "cause", "upstream"),
            self._upstream_failures,
        )
        yield _counter(
            "sidecar_streams_ended",
            "Streams, tunnels and uploads closed because of their key.",
            ("reason",),
            self._streams_ended,
        )

    def _gauges(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("sidecar_in_flight", "Requests begun and not yet finished.", value=self.in_flight)
        keys = GaugeMetricFamily("sidecar_keys", "Keys stored.", labels=("status", "environment"))
        for labels, count in self._keys.items():
            keys.add_metric(labels, count)
        yield keys
        due = GaugeMetricFamily("sidecar_keys_due", "Active keys that end soon.", labels=("turn", "within"))
        for labels, count in self._keys_due.items():
            due.add_metric(labels, count)
        yield due
        build = {"version": __version__, "python": platform.python_version()}
        yield InfoMetricFamily("sidecar_build", "What is running.", value=build)


def _failure(cause: UpstreamCause, upstream: str | None = None) -> tuple[str, ...]:
    """The series of the default upstream has no label `upstream`."""
    named = () if upstream is None else (upstream,)
    return (reason_of(cause).value, cause.value, *named)


def _add(counts: Counts, labels: tuple[str, ...]) -> None:
    counts[labels] = counts.get(labels, 0) + 1


def _begun(histograms: dict[str, _Histogram], label: str, bounds: Sequence[float] = BOUNDS) -> _Histogram:
    return histograms.setdefault(label, _Histogram(bounds))


def _counter(name: str, about: str, labels: Sequence[str], counts: Mapping[tuple[str, ...], int]) -> Metric:
    family = CounterMetricFamily(name, about, labels=labels)
    for values, count in list(counts.items()):
        family.add_metric(values, count)
    return family


def _histograms(name: str, about: str, label: str, histograms: Mapping[str, _Histogram]) -> Metric:
    family = HistogramMetricFamily(name, about, labels=(label,))
    for value, histogram in list(histograms.items()):
        family.add_metric((value,), histogram.cumulative(), sum_value=histogram.total)
    return family
