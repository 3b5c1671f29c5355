"""Reports reloads of the configuration to the operator: metrics, log, a remark for readiness, and refused files."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_log = logging.getLogger(__name__)
_KEPT: Final = 100
"""Most problems of one file that are kept."""
_LONGEST: Final = 500
"""Most characters of a problem: a file may contain a name of megabytes."""


class ConfigProblem(NamedTuple):
    """What is wrong with a configuration file. where: `file:line:column`, or empty if the file itself is valid."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedConfig:
    """A configuration that was refused, so that the previous one stays in force. Times in Unix seconds."""

    since: float
    """Time of the first refusal since the last successful load; `at` is that of the newest."""
    at: float
    problems: Sequence[ConfigProblem]
    """The first hundred of `total`, in the order of the file."""
    total: int


class Reloads(Collector):
    """Counts reloads, and records which configuration is in force since when (Unix seconds)."""

    def __init__(self, sha256: str, *, at: float) -> None:
        self._sha256, self._at = sha256, at
        self._counts = {"success": 0, "failure": 0}
        self.kept: Sequence[str] = ()
        """Options of the file that need a restart to take effect."""
        self.pending: RefusedConfig | None = None
        """None if the newest reload succeeded."""

    def taken(self, path: str, sha256: str, *, at: float, kept: Sequence[str]) -> None:
        """It is in force, except for the options in `kept`."""
        self._sha256, self._at, self.kept, self.pending = sha256, at, tuple(kept), None
        self._counts["success"] += 1
        _log.warning("sidecar: config: %s is in force (sha256 %s)", path, sha256[:12])
        if kept:
            _log.warning("sidecar: config: needs a restart to take effect: %s", ", ".join(kept))

    def refused(self, problems: Sequence[ConfigProblem], *, at: float) -> None:
        """It was refused, for one or more reasons; the previous one stays in force."""
        kept = tuple(ConfigProblem(one.where, _cut(one.message)) for one in problems[:_KEPT])
        refused = RefusedConfig(since=at, at=at, problems=kept, total=len(problems))
        self.pending = refused if self.pending is None else replace(refused, since=self.pending.since)
        self._counts["failure"] += 1
        others = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        _log.warning("sidecar: config: not taken, the one before stays in force: %s%s", problems[0], others)

    @property
    def at(self) -> float:
        """When the configuration in force was loaded, in Unix seconds."""
        return self._at

    def remarks(self) -> Sequence[str]:
        """A line if there is something to report. Only the problem's place: its text may contain secrets."""
        if self.pending is not None:
            where = self.pending.problems[0].where or "see the log"
            return [f"config: not taken, the one before stays in force: {where}"]
        return [f"config: in force but for what needs a restart: {', '.join(self.kept)}"] if self.kept else []

    def collect(self) -> Iterator[Metric]:
        reloads = CounterMetricFamily("sidecar_config_reload", "Times the file was read again.", labels=("result",))
        for result, count in self._counts.items():
            reloads.add_metric((result,), count)
        yield reloads
        yield InfoMetricFamily("sidecar_config", "The configuration in force.", value={"sha256": self._sha256})
        yield GaugeMetricFamily(
            "sidecar_config_last_reload_success_timestamp_seconds",
            "Time of the last successful reload, in Unix seconds.",
            value=self._at,
        )
        yield GaugeMetricFamily(
            "sidecar_config_last_reload_successful",
            "0 after a reload that failed, else 1.",
            value=self.pending is None,
        )


def _cut(message: str) -> str:
    return message if len(message) <= _LONGEST else f"{message[:_LONGEST]}…"
