"""Writes months of history into a store: old keys, and their use."""

import asyncio
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path

from sidecar.cli.key_service import open_store
from sidecar.usage.recorder import DAY, HOUR, UsageRow


def make_old(store: Path, *, days: int = 200) -> None:
    """Backdate the issue of all keys of a SQLite store by this many days."""
    with sqlite3.connect(store) as connection:
        connection.execute("UPDATE api_key SET created_at = created_at - ?", (days * DAY,))
    connection.close()


def write_use(url: str, key_id: str, counts: Mapping[tuple[str, str], int], *, days_ago: int = 3) -> None:
    """Add counts by route and reason (empty for none)."""
    at = int(time.time() * 1_000_000) - days_ago * DAY
    rows = [
        UsageRow(key_id=key_id, at=at - at % HOUR, route=route, status_class=2, reason=reason, count=count)
        for (route, reason), count in counts.items()
    ]

    async def work() -> None:
        async with open_store(url) as store:
            await store.usage.add(rows)

    asyncio.run(work())
