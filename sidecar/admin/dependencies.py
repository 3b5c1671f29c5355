"""What the admin listener's service uses of the rest of the process, and whether that is well."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from sidecar.config.build.config import Config
from sidecar.core.units import Clock
from sidecar.gate.gate import Gate, KeyFinder
from sidecar.keys.lifecycle import Lifecycle
from sidecar.keys.ports import KeyStatistics
from sidecar.keys.validation import KeyRules
from sidecar.limiter.port import Limiter
from sidecar.store.audit import StoredAudit
from sidecar.store.keys import StoredKeys
from sidecar.store.usage import StoredAnomalies, StoredUsage
from sidecar.telemetry.refusals import Refusal, Refusals


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminDependencies:
    """What the service uses. lifecycle, config, rules, gate_of: of the current configuration."""

    keys: StoredKeys
    statistics: KeyStatistics
    audit: StoredAudit
    usage: StoredUsage
    anomalies: StoredAnomalies
    lifecycle: Callable[[], Lifecycle]
    config: Callable[[], Config]
    rules: Callable[[], KeyRules]
    gate_of: Callable[[KeyFinder, Limiter], Gate]
    limiter: Limiter
    """Is read only: nothing is taken from a quota."""
    running: "Running"
    clock: Clock
    randbelow: Callable[[int], int]
    """As `secrets.randbelow`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What only the running process knows. Times in Unix seconds.

    counts_by_reason: since `since`. fullest: keys that have used most of a limit, given the limits of plans by quota;
    called in a thread. problems, remarks: lines as of `/readyz?verbose`.
    """

    refusals: Refusals
    counts_by_reason: Callable[[], Mapping[str, int]]
    since: float
    fullest: Callable[[Mapping[str, Collection[int]]], Sequence[str]]
    problems: Callable[[], Awaitable[Sequence[str]]]
    remarks: Callable[[], Sequence[str]]
    config_since: Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether requests can be decided on and served. problems, remarks: lines that begin with what they are about."""

    problems: Sequence[str]
    remarks: Sequence[str]
    config_since: float
    upstream_failed: Refusal | None
    """The newest of the refusals that are remembered, where it was for the upstream's fault."""

    @property
    def ready(self) -> bool:
        return not self.problems

    def of(self, part: str) -> str:
        """What is wrong with `config` or `store`; empty where nothing is."""
        lines = (line.partition(": ") for line in (*self.problems, *self.remarks))
        return "; ".join(text for name, _, text in lines if name == part)
