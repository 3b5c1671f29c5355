"""What is stored of the use of keys, and the port that writes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

HOUR: Final = 3_600_000_000
DAY: Final = 24 * HOUR
"""In microseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """How often a key was presented on a route with responses of one class (2 for 200 to 299)."""

    key_id: str
    """Empty in a sum over keys."""
    at: int
    """Start of the hour or day, in microseconds."""
    route: str
    """Name as configured, or `(none)`."""
    status_class: int
    count: int
    reason: str = ""
    """Why the requests were refused or not served; empty for others, and where reasons were not asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageFilter:
    """Which counts to read: of the hour or day that holds `since`, and of later ones that begin before `until`.

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
    with_reasons: bool = False
    """Counts by reason are summed up otherwise."""
    by: Literal["hour", "day"] = "hour"
    """By the hour, a count too old to be kept by the hour has the start of its day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastUse:
    """When (microseconds), from which address and by which program a key was last used; empty is unknown."""

    at: int
    address: str = ""
    agent: str = ""
    networks: tuple[str, ...] = ()
    """Networks that the key was used from since its last use was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What was stored of a key before its newest use. Times in microseconds."""

    used_at: int | None
    created_at: int
    new_networks: tuple[str, ...]
    """Networks of the use that were not known; none where no network was known at all, or very many are."""


class UsageSink(Protocol):
    """Where uses are written. Each call is one transaction. Both raise StoreUnavailable."""

    async def touch(self, last_uses: Mapping[str, LastUse]) -> Mapping[str, Earlier]:
        """Write the last use of each key id, never backwards. Returns what was stored before, for each known key."""

    async def add(self, rows: Sequence[UsageRow]) -> None:
        """Add the counts of hours to those that are stored."""
