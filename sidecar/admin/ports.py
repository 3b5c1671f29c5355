"""What administering needs of the rest of the house: store, verbs of a key's life, configuration, gate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sidecar.config.settings import Config
from sidecar.gate.gate import Gate, KeyFinder
from sidecar.keys.lifecycle import Lifecycle
from sidecar.keys.ports import AuditTrail, KeyCensus, KeyStore
from sidecar.keys.validation import KeyRules
from sidecar.limiter.port import Limiter
from sidecar.usage.anomalies import UnusualEvent
from sidecar.usage.ports import UsageFilter, UsageRow


class AdminStore(KeyStore, KeyCensus, AuditTrail, Protocol):
    """What administering needs of the store."""


class UsageReader(Protocol):
    """What is told of the use of keys. Both raise StoreUnavailable."""

    async def usage(self, wanted: UsageFilter) -> Sequence[UsageRow]: ...

    async def unusual(self, *, limit: int, tenant: str | None = None) -> Sequence[UnusualEvent]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """clock: Unix seconds. lifecycle, config, rules, gate_of: by what is in force now."""

    store: AdminStore
    usage: UsageReader
    lifecycle: Callable[[], Lifecycle]
    config: Callable[[], Config]
    rules: Callable[[], KeyRules]
    gate_of: Callable[[KeyFinder, Limiter], Gate]
    limiter: Limiter
    """Looked at, not taken from."""
    clock: Callable[[], float]
    randbelow: Callable[[int], int]
    """As `secrets.randbelow`."""
