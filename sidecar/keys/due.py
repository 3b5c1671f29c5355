"""Keys that somebody has to look at: too old, about to expire, or about to retire."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sidecar.core.model import ApiKey
from sidecar.keys.ports import KeyCalendar
from sidecar.keys.retiring import unused_since

Why = Literal["max_age", "expires", "retires"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """An active key, why it is due, and when it is or was (microseconds)."""

    key: ApiKey
    why: Why
    at: int
    unless_used_at: int | None = None
    """When it retires already if nobody uses it until then."""


async def due_keys(
    calendar: KeyCalendar,
    now: int,
    *,
    max_age_seconds: float | None,
    within_seconds: float,
    retire_unused_seconds: float | None = None,
    tenant: str | None = None,
    limit: int = 1_000,
) -> Sequence[Due]:
    """Keys that are older than `max_age_seconds` (None is any age) or end `within_seconds`, the earliest first.

    At most `limit` for each reason. A key that is being replaced is told by its retirement alone. Raises
    StoreUnavailable.
    """
    end = now + int(within_seconds * 1_000_000)
    retiring = await calendar.turning("retires", since=now + 1, until=end, tenant=tenant, limit=limit)
    expiring = await calendar.turning("expires", since=now + 1, until=end, tenant=tenant, limit=limit)
    found = [
        Due(key=key, why="retires", at=key.retires_at or 0, unless_used_at=_unless_used_at(key, retire_unused_seconds))
        for key in retiring
    ]
    found += [Due(key=key, why="expires", at=key.expires_at or 0) for key in expiring if key.retires_at is None]
    if max_age_seconds is not None:
        age = int(max_age_seconds * 1_000_000)
        old = await calendar.turning("created", since=0, until=now - age, tenant=tenant, limit=limit)
        alive = [key for key in old if key.expires_at is None or key.expires_at > now]
        found += [Due(key=key, why="max_age", at=key.created_at + age) for key in alive]
    return sorted(found, key=lambda one: (one.at, one.key.id))


def _unless_used_at(key: ApiKey, seconds: float | None) -> int | None:
    if seconds is None or key.replaced_at is None or key.retires_at is None:
        return None
    at = unused_since(key) + int(seconds * 1_000_000)
    return at if at < key.retires_at else None
