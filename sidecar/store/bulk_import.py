"""Many keys at once: imported in one transaction, and hashed anew in batches."""

import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

from sidecar.keys.audit import Head, linked
from sidecar.keys.ports import Actor, KeyConflict
from sidecar.keys.records import NEW_COLUMNS, Batch, NewRow, key_of
from sidecar.keys.rehash import NewHash
from sidecar.keys.transfer.importer import Intake
from sidecar.store.audit import Change, append, head_of, write_audit
from sidecar.store.connection import Connection, StorePart
from sidecar.store.keys import SELECT_KEY
from sidecar.store.schema import ADD_TEXT_AFTER

# What makes a transaction of many new keys cheap: that is done once for all which is usually done for each.


_CACHE_KIB: Final = 256 * 1024
_INDEXES: Final = "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND tbl_name = ? AND sql IS NOT NULL"
_DIGEST: Final = "api_key_digest"
"""Tells which keys are stored already, if there are any."""


class Bulk:
    """Indexes of keys and audit, dropped where no fewer rows come than were there, and then made anew from all of them.

    One row after another costs three times as much; and where fewer come, most of the index is there already.
    """

    def __init__(self, line: Connection, before: dict[str, int], expected: int) -> None:
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
async def in_bulk(line: Connection, expected: int) -> AsyncIterator[Bulk]:
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


async def last_serial(line: Connection) -> int:
    """Of the keys that are stored; 0 where there are none."""
    [(last,)] = await line.rows("SELECT coalesce(max(serial), 0) FROM api_key")
    return int(last)


_INSERT: Final = f"INSERT INTO api_key ({', '.join(NEW_COLUMNS)})"
_REHASH: Final = "UPDATE api_key SET digest = ?, algorithm = ? WHERE id = ?"


class SqliteImport(StorePart):
    """KeyIntake and Rehashes."""

    @asynccontextmanager
    async def intake(self, *, at: int, actor: Actor, expected: int = 0) -> AsyncIterator[Intake]:
        """`expected`: about how many keys will come, where that is known."""
        async with self._lines.transaction("import") as line, in_bulk(line, expected) as bulk:
            head, who = await head_of(line), (at, actor.name, actor.source)
            yield _Intake(line, await last_serial(line), bulk, head=head, who=who)

    @asynccontextmanager
    async def dry_intake(self) -> AsyncIterator[Intake]:
        with self._lines.operation("import_dry"):
            yield _DryIntake(self._lines.reading, await last_serial(self._lines.reading))

    async def rehash(self, hashes: Sequence[NewHash], *, at: int, actor: Actor) -> None:
        async with self._lines.transaction("rehash") as line:
            changes = [change for wanted in hashes if (change := await _rehashed(line, wanted))]
            await write_audit(line, "rehash", changes, at=at, actor=actor)


class _DryIntake:
    """Nothing goes in; `_before` is the last serial of the keys that were there."""

    def __init__(self, line: Connection, before: int) -> None:
        self._line, self._before = line, before

    async def stored(self, rows: Sequence[NewRow]) -> Mapping[bytes | str, str]:
        found: dict[bytes | str, str] = {}
        for column, values in (("digest", [row.digest for row in rows]), ("id", [row.id for row in rows])):
            asked = f"{column} IN ({', '.join('?' * len(values))}) AND serial <= ?"
            sql = f"SELECT {column}, id FROM api_key WHERE {asked}"  # noqa: S608 - no input
            found.update(await self._line.rows(sql, (*values, self._before)))
        return found

    def batch(self, rows: Sequence[NewRow]) -> Batch:
        return Batch(rows=rows)

    async def add(self, batch: Batch) -> None:
        if await self.stored(batch.rows):
            raise _conflict()


class _Intake(_DryIntake):
    def __init__(self, line: Connection, before: int, bulk: Bulk, *, head: Head, who: tuple[int, str, str]) -> None:
        super().__init__(line, before)
        self._bulk, self._head, self._who = bulk, head, who

    def batch(self, rows: Sequence[NewRow]) -> Batch:
        told = [(*self._who, "import", row.id, row.tenant, None, row.after) for row in rows]
        trail = list(linked(self._head, told))
        if trail:
            self._head = Head(id=trail[-1][0], hash=trail[-1][-1])
        return Batch(rows=rows, trail=trail)

    async def add(self, batch: Batch) -> None:
        await self._bulk.expect(len(batch.rows))
        try:
            await self._line.insert(_INSERT, [row.values for row in batch.rows])
        except sqlite3.IntegrityError as error:
            raise _conflict() from error
        await append(self._line, batch.trail)


def _conflict() -> KeyConflict:
    return KeyConflict("one of these keys is stored already")


async def _rehashed(line: Connection, wanted: NewHash) -> Change | None:
    """The key before and after; None where it is not as it was, or another key has the digest."""
    rows = await line.rows(f"{SELECT_KEY} WHERE id = ? AND digest = ?", (wanted.key_id, wanted.old))
    if not rows:
        return None
    try:
        await line.rows(_REHASH, (wanted.digest, wanted.algorithm, wanted.key_id))
    except sqlite3.IntegrityError:
        return None
    before = key_of(rows[0])
    return before, replace(before, digest=wanted.digest, algorithm=wanted.algorithm)
