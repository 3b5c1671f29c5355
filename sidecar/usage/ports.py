"""Port of what is stored of the use of keys. Adapters translate every foreign exception at the call that raises it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from sidecar.usage.anomalies import Anomaly

HOUR: Final = 3_600_000_000
DAY: Final = 24 * HOUR
"""In microseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """How often a key was presented on a route with answers of one class (2 for 200 to 299)."""

    key_id: str
    """Empty in a sum over keys."""
    at: int
    """Start of the hour or day, in microseconds."""
    route: str
    """Name as configured, or `(none)`."""
    status_class: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageFilter:
    """Which counts to read: of hours or days from the one that holds `since`, and that begin before `until`.

    Both in microseconds.
    """

    key_id: str | None = None
    """Of this key. None, with `key_ids` None as well: the sum over all keys."""
    key_ids: tuple[str, ...] | None = None
    """Of each of these keys."""
    tenant: str | None = None
    """Of keys of this tenant alone."""
    since: int
    until: int
    by: Literal["hour", "day"] = "hour"
    """By the hour, what is too old to be kept by the hour stands at its day's start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastUse:
    """When (microseconds), from which address and by which program a key was last used; empty is unknown."""

    at: int
    address: str = ""
    agent: str = ""
    networks: tuple[str, ...] = ()
    """Where it was used from since the last use was written before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What was stored of a key before its newest use was written. Times in microseconds."""

    used_at: int | None
    created_at: int
    new_networks: tuple[str, ...]
    """Those of the use that were not known; none where no network was known at all, or very many are."""


class UsageStore(Protocol):
    """Where counts of use are kept. Each call is one transaction. All raise StoreUnavailable."""

    async def add_usage(self, rows: Sequence[UsageRow]) -> None:
        """Add the counts of hours to those that are stored."""

    async def usage(self, wanted: UsageFilter) -> Sequence[UsageRow]:
        """In order of key, time, route and class."""

    async def roll_up(self, before: int, *, most: int) -> int:
        """Sum counts of hours before `before` by the day, at most `most` rows; how many there were."""

    async def prune(self, before: int, *, most: int) -> int:
        """Forget counts, networks and unusual events from before `before`, at most `most` of each; how many."""


class AnomalyStore(Protocol):
    """Where unusual events outlive a restart. Both raise StoreUnavailable."""

    async def add_unusual(self, events: Sequence[Anomaly]) -> None: ...

    async def unusual(self, *, limit: int, tenant: str | None = None) -> Sequence[Anomaly]:
        """The newest first; of keys of `tenant` alone where one is given."""
