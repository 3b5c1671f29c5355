"""Sets up the access log and tracing as configured."""

import secrets
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from itertools import accumulate
from typing import Final

from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from sidecar.config.build.config import Config
from sidecar.config.build.modes import observing
from sidecar.config.document import AccessLogSettings, Tracing
from sidecar.core.client_address import TrustedProxies
from sidecar.core.units import Clock
from sidecar.gate.compile import key_prefixes
from sidecar.runtime.serving import StartError
from sidecar.runtime.tasks import Background
from sidecar.telemetry.access_log import AccessLog, CombinedLines, JsonLines, descriptor_writer, lines_writer
from sidecar.telemetry.metrics import BOUNDS, Metrics
from sidecar.telemetry.observation import ObservingMetrics, WouldDenyMetrics
from sidecar.telemetry.observer import Exchanges
from sidecar.telemetry.redaction import Redaction
from sidecar.telemetry.refusals import Refusals
from sidecar.telemetry.spans import Spans
from sidecar.telemetry.tracing import Contexts, TraceMetrics, Tracer
from sidecar.usage.recorder import Usage

_FORMATS: Mapping[str, type[JsonLines] | type[CombinedLines]] = {"json": JsonLines, "combined": CombinedLines}

SHOWN_OF_HASH: Final = 12
"""Hexadecimal digits of a configuration's SHA-256, also printed by `serve`."""
REFUSALS_SECONDS: Final = 2.0
"""How often the newest refusals are made readable, so that their requests can be freed."""


class RevocationLag(Collector):
    """The delay between the commit of a change of keys and its arrival here, if the store reports it (PostgreSQL)."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._total = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self._total += seconds

    def collect(self) -> Iterator[Metric]:
        buckets = zip((*map(str, BOUNDS), "+Inf"), accumulate(self._counts), strict=True)
        yield HistogramMetricFamily(
            "sidecar_revocation_lag_seconds",
            "Seconds until this process learned of a change to keys.",
            buckets=[*buckets],
            sum_value=self._total,
        )


class ReplicaInStep(Collector):
    """Whether keys are looked up at the store's replica (PostgreSQL)."""

    def __init__(self, in_step: Callable[[], bool]) -> None:
        self._in_step = in_step

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "sidecar_store_replica_in_step",
            "0 while lookups go to the primary, because the replica lags or is unreachable.",
            value=self._in_step(),
        )


class Observing:
    """Create it inside the running loop. Raises StartError.

    What it starts ends with `stack`: first tasks end, then pending output is written.
    """

    def __init__(
        self,
        config: Config,
        *,
        metrics: Metrics,
        background: Background,
        stack: AsyncExitStack,
        clock: Clock,
        log_lock: int | None = None,
    ) -> None:
        """log_lock: as in `lines_writer`, if other processes also write the log."""
        self._log_lock = log_lock
        self._metrics, self._background, self._stack, self._clock = metrics, background, stack, clock
        self._redaction = Redaction()
        self.refusals = Refusals(self._redaction, config=lambda: self._config_hash)
        background.repeat(self.refusals.settle, REFUSALS_SECONDS)
        self._proxies = TrustedProxies((), b"")
        self._would_deny = WouldDenyMetrics()
        metrics.also(self._would_deny)
        metrics.watch(would_deny=self._would_deny.counts)
        self.reconfigure(config)
        metrics.also(ObservingMetrics(lambda: self._observing))
        self.access_log = None if config.access_log is None else self._log(config.access_log)
        """None if disabled; so is `tracer`."""
        self.tracer = None if config.tracing is None else self._trace(config.tracing)

    def exchanges(self, usage: Usage) -> Exchanges:
        """The observer of requests."""
        return Exchanges(
            self._metrics,
            self.access_log,
            usage,
            clock=self._clock,
            refusals=self.refusals,
            tracer=self.tracer,
            would_deny=self._would_deny,
            config=lambda: self._config_hash,
        )

    def reconfigure(self, config: Config) -> None:
        """Update prefixes of keys, trusted peers, the current configuration, and whether anything is observed."""
        self._config_hash = config.sha256[:SHOWN_OF_HASH] or None
        self._observing = bool(observing(config))
        self._redaction.reconfigure(key_prefixes(config))
        self._proxies = TrustedProxies(config.trusted_proxies, b"")

    def _log(self, settings: AccessLogSettings) -> AccessLog:
        share, random = settings.sample_successes, secrets.SystemRandom().random
        log = AccessLog(
            self._writer(sys.stdout.fileno()),
            line=_FORMATS[settings.format](
                self._redaction,
                with_query=settings.query == "redacted",
                share=share,
            ),
            sample=None if share >= 1.0 else lambda: random() < share,
        )
        self._metrics.watch(access_log_dropped=lambda: log.dropped)
        self._stack.push_async_callback(log.flush)
        self._background.run(log.run)
        return log

    def _writer(self, descriptor: int) -> Callable[[bytes], None]:
        lock = self._log_lock
        return descriptor_writer(descriptor) if lock is None else lines_writer(descriptor, lock)

    def _trace(self, settings: Tracing) -> Tracer:
        try:
            # Imported here, because only users of tracing need its libraries.
            from sidecar.telemetry.otlp import OtlpExport
        except ImportError:
            raise StartError(
                "tracing is configured, but OpenTelemetry is not installed: install the extra otel (where the sidecar "
                "was installed from a checkout: pip install '.[otel]'), or remove `tracing` from the configuration"
            ) from None
        export = OtlpExport(
            settings.endpoint,
            headers=settings.headers,
            timeout_seconds=settings.timeout,
            service=settings.service,
        )
        contexts = Contexts(
            share=settings.sample, random_bytes=secrets.token_bytes, believes=self._believes(settings.parent)
        )
        tracer = Tracer(export, contexts=contexts, spans=Spans(self._redaction), clock=self._clock)
        self._metrics.also(TraceMetrics(tracer))
        self._stack.callback(export.close)
        self._stack.push_async_callback(tracer.flush)
        self._background.run(tracer.run)
        return tracer

    def _believes(self, parent: str) -> Callable[[str], bool]:
        if parent == "trusted_proxies":
            return lambda peer: self._proxies.trusts(peer)
        return lambda peer: parent == "anyone"
