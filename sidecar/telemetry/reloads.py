"""What the operator is told of the configuration in force: metrics, log lines, and a remark for readiness."""

import logging
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_log = logging.getLogger(__name__)


class Reloads(Collector):
    """How often the configuration was read again, and which one is in force since when (Unix seconds)."""

    def __init__(self, sha256: str, *, at: float) -> None:
        self._sha256, self._at = sha256, at
        self._counts = {"success": 0, "failure": 0}
        self._failed = False
        self._remark = ""

    def taken(self, path: str, sha256: str, *, at: float, kept: Sequence[str]) -> None:
        """It is in force, but for the options in `kept`."""
        self._sha256, self._at, self._failed = sha256, at, False
        self._counts["success"] += 1
        self._remark = f"in force but for what needs a restart: {', '.join(kept)}" if kept else ""
        _log.warning("sidecar: config: %s is in force (sha256 %s)", path, sha256[:12])
        if kept:
            _log.warning("sidecar: config: needs a restart to take effect: %s", ", ".join(kept))

    def refused(self, problem: str, *, where: str, more: int = 0) -> None:
        """It is not; the one before stays in force. `problem`: the first of them, one line; `more`: how many others."""
        self._failed = True
        self._counts["failure"] += 1
        self._remark = f"not taken, the one before stays in force: {where}"
        others = f" (and {more} more)" if more else ""
        _log.warning("sidecar: config: not taken, the one before stays in force: %s%s", problem, others)

    def remarks(self) -> Sequence[str]:
        """A line where there is something to say. The problem's place only: its words may hold what the file does."""
        return [f"config: {self._remark}"] if self._remark else []

    def collect(self) -> Iterator[Metric]:
        reloads = CounterMetricFamily("sidecar_config_reload", "Times the file was read again.", labels=("result",))
        for result, count in self._counts.items():
            reloads.add_metric((result,), count)
        yield reloads
        yield InfoMetricFamily("sidecar_config", "What is in force.", value={"sha256": self._sha256})
        yield GaugeMetricFamily(
            "sidecar_config_last_reload_success_timestamp_seconds",
            "When the configuration in force was taken, in Unix seconds.",
            value=self._at,
        )
        yield GaugeMetricFamily(
            "sidecar_config_last_reload_successful", "0 after a reload that failed, else 1.", value=not self._failed
        )
