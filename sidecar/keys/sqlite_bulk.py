"""What makes a transaction of many new keys cheap: that is done once for all which is usually done for each."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from sidecar.keys.migration_two import ADD_TEXT_AFTER
from sidecar.store.connection import Line

_CACHE_KIB: Final = 256 * 1024
_INDEXES: Final = "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND tbl_name = ? AND sql IS NOT NULL"
_DIGEST: Final = "api_key_digest"
"""Tells which keys are stored already, if there are any."""


class Bulk:
    """Indexes of keys and audit, dropped where no fewer rows come than were there, and then made anew from all of them.

    One row after another costs three times as much; and where fewer come, most of the index is there already.
    """

    def __init__(self, line: Line, before: dict[str, int], expected: int) -> None:
        self._line = line
        self._before = before
        """Rows of the tables whose indexes still stand."""
        self._expected, self._added = expected, 0
        self._dropped: list[str] = []

    async def expect(self, rows: int) -> None:
        """So many keys, each with its audit row, are about to be added."""
        self._added += rows
        coming = max(self._expected, self._added)
        for table, before in [(table, before) for table, before in self._before.items() if before <= coming]:
            del self._before[table]
            for name, sql in await self._line.rows(_INDEXES, (table,)):
                if name != _DIGEST or not before:
                    await self._line.rows(f"DROP INDEX {name}")
                    self._dropped.append(sql)

    async def finish(self) -> None:
        for sql in self._dropped:
            await self._line.rows(sql)


@asynccontextmanager
async def in_bulk(line: Line, expected: int) -> AsyncIterator[Bulk]:
    """In the transaction of `line`; whose rollback brings back what was dropped. B-trees stay in memory meanwhile."""
    last = await last_serial(line)
    [(trail,)] = await line.rows("SELECT id FROM audit_head")
    [(cached,)] = await line.rows("PRAGMA cache_size")
    triggers = await line.rows("SELECT name, sql FROM sqlite_schema WHERE name IN ('api_key_added', 'key_text_added')")
    await line.rows(f"PRAGMA cache_size = {-_CACHE_KIB}")
    try:
        for name, _ in triggers:
            await line.rows(f"DROP TRIGGER {name}")
        bulk = Bulk(line, {"api_key": last, "audit": trail}, expected)
        yield bulk
        await bulk.finish()
        await line.rows(ADD_TEXT_AFTER, (last,))
        await line.rows("UPDATE generation SET value = random()")
        for _, sql in triggers:
            await line.rows(sql)
    finally:
        await line.rows(f"PRAGMA cache_size = {cached}")


async def last_serial(line: Line) -> int:
    """Of the keys that are stored; 0 where there are none."""
    [(last,)] = await line.rows("SELECT coalesce(max(serial), 0) FROM api_key")
    return int(last)
