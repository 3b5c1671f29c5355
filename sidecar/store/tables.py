"""Copies whole tables to another store, on any engine: reads pages, writes them, and compares the results.

Notes in `quota_state` mark an unfinished copy (see NO_NOTE). They are written in the transaction of each page, so that
a killed copy continues where it was, and are removed at the end.
"""

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from sidecar.core.units import counted
from sidecar.keys.ports import StoreUnavailable
from sidecar.keys.records import COLUMNS
from sidecar.store.audit import CHAINED, COPYING, UNFINISHED
from sidecar.store.connection import Connection, Database
from sidecar.store.usage import NO_NOTE


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The columns of a table that are copied. `order`: columns that give its rows a unique order."""

    name: str
    columns: tuple[str, ...]
    order: tuple[str, ...]
    where: str = "1 = 1"


_COUNTED: Final = ("route", "status_class", "reason")
TABLES: Final = (
    # Numbers that the engine assigns are not copied: rows are copied in their order.
    Table(name="api_key", columns=COLUMNS, order=("serial",)),
    Table(name="audit", columns=(*CHAINED, "hash"), order=("id",)),
    Table(name="usage", columns=("key_id", "hour", *_COUNTED, "count"), order=("key_id", "hour", *_COUNTED)),
    Table(name="usage_day", columns=("key_id", "day", *_COUNTED, "count"), order=("key_id", "day", *_COUNTED)),
    Table(name="key_network", columns=("key_id", "network", "seen_at"), order=("key_id", "network")),
    Table(name="unusual", columns=("at", "kind", "key_id", "tenant", "address", "detail"), order=("id",)),
    Table(
        name="idempotency",
        columns=("token_name", "idempotency_key", "fingerprint", "key_id", "at"),
        order=("token_name", "idempotency_key"),
    ),
    Table(
        name="quota_state",
        columns=("quota", "subject", "state", "expires_at"),
        order=("quota", "subject"),
        where=NO_NOTE,
    ),
)
"""Everything in a store, except for its schema and the engine's own data (generation, search index)."""

_PAGE: Final = 2_000
_FOR_EVER: Final = 2**62
_NO_HASH: Final = bytes(32)
_SUM_BITS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The progress of a table: the order values of the last copied row, the number of rows, and whether that is all."""

    after: tuple[Any, ...] = ()
    rows: int = 0
    done: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Checksum:
    """The checksum of a table, independent of the order in which its rows are read."""

    rows: int = 0
    sum: int = 0


class StoredTables:
    """Every method raises StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, table: Table, after: Sequence[Any]) -> Sequence[Sequence[Any]]:
        """The next rows: the values of `order`, then those of `columns`."""
        named = ", ".join((*table.order, *table.columns))
        order = ", ".join(table.order)
        beyond = f" AND ({order}) > ({', '.join('?' * len(after))})" if after else ""
        sql = f"SELECT {named} FROM {table.name} WHERE {table.where}{beyond} ORDER BY {order} LIMIT {_PAGE}"  # noqa: S608 - names of our own
        return await self._database.read("copy", sql, tuple(after))

    async def checksum(self, table: Table, progress: Callable[[int], None]) -> Checksum:
        """progress: called with the number of rows that were read."""
        rows = total = 0
        async for page in self._pages(table):
            rows += len(page)
            total += sum(_hash_of(row[len(table.order) :]) for row in page)
            progress(len(page))
        return Checksum(rows=rows, sum=total % (1 << _SUM_BITS))

    async def head(self) -> tuple[int, bytes]:
        """Number and hash of the last row of the audit."""
        [(number, digest)] = await self._database.read("copy", "SELECT id, hash FROM audit_head")
        return number, bytes(digest)

    async def origin(self) -> str:
        """The identity of this store: its first change."""
        rows = await self._database.read("copy", "SELECT hash FROM audit WHERE id = 1")
        return bytes(rows[0][0]).hex() if rows else ""

    async def refuse_unfinished(self) -> None:
        """Raises StoreUnavailable if a copy into this store was begun but not finished: keys would be missing."""
        if await self._database.read("copy", f"SELECT 1 FROM quota_state WHERE quota = '{COPYING}' LIMIT 1"):  # noqa: S608 - a name of our own
            raise StoreUnavailable(f"the key store cannot be used: {UNFINISHED}")

    async def begin(self, origin: str) -> Mapping[str, Place]:
        """Mark this store as a copy of the store with that origin. Returns the progress of an earlier copy, by table.

        Raises StoreUnavailable if the store holds anything other than an earlier copy.
        """
        async with self._database.transaction("copy") as connection:
            marks = await _marks_of(connection)
            if not marks:
                await _refuse_full(connection)
            elif marks.get("") == [origin]:
                return {name: _place_of(mark) for name, mark in marks.items() if name}
            for table in TABLES:
                await _clear(connection, table)
            await _mark(connection, "", [origin])
        return {}

    async def put(self, table: Table, rows: Sequence[Sequence[Any]], place: Place) -> Place:
        """Write a page from `page` after the last copied row. Returns the new progress."""
        skipped = len(table.order)
        after = tuple(rows[-1][:skipped]) if rows else place.after
        new = Place(after=after, rows=place.rows + len(rows), done=len(rows) < _PAGE)
        async with self._database.transaction("copy") as connection:
            mark = (await _marks_of(connection)).get(table.name)
            if (Place() if mark is None else _place_of(mark)) != place:
                raise StoreUnavailable("another process copies into this store")
            into = f"INSERT INTO {table.name} ({', '.join(table.columns)})"
            await connection.insert(into, [tuple(row[skipped:]) for row in rows])
            if table.name == "audit" and rows:
                last = dict(zip(table.columns, rows[-1][skipped:], strict=True))
                await _set_head(connection, last["id"], last["hash"])
            await _mark(connection, table.name, [list(new.after), new.rows, new.done])
        return new

    async def again(self, tables: Sequence[Table]) -> None:
        """Make the next copy start these tables from the beginning."""
        async with self._database.transaction("copy") as connection:
            for table in tables:
                await _clear(connection, table)

    async def finish(self) -> None:
        """Mark the copy as complete: this is now a store like any other."""
        async with self._database.transaction("copy") as connection:
            await connection.execute("DELETE FROM quota_state WHERE quota = ?", (COPYING,))

    async def _pages(self, table: Table) -> AsyncIterator[Sequence[Sequence[Any]]]:
        after: Sequence[Any] = ()
        while page := await self.page(table, after):
            yield page
            after = page[-1][: len(table.order)]


def _hash_of(row: Sequence[Any]) -> int:
    values = [bytes(value) if isinstance(value, bytes | bytearray | memoryview) else value for value in row]
    return int.from_bytes(sha256(repr(values).encode("utf-8", "surrogatepass")).digest(), "big")


async def _marks_of(connection: Connection) -> dict[str, list[Any]]:
    sql = "SELECT subject, state FROM quota_state WHERE quota = ?"
    return {name: json.loads(state) for name, state in await connection.fetch(sql, (COPYING,))}


def _place_of(mark: Sequence[Any]) -> Place:
    after, rows, done = mark
    return Place(after=tuple(after), rows=rows, done=done)


async def _mark(connection: Connection, name: str, mark: Sequence[Any]) -> None:
    await connection.execute("DELETE FROM quota_state WHERE quota = ? AND subject = ?", (COPYING, name))
    row = (COPYING, name, json.dumps(mark), _FOR_EVER)
    await connection.execute("INSERT INTO quota_state (quota, subject, state, expires_at) VALUES (?, ?, ?, ?)", row)


async def _set_head(connection: Connection, number: int, digest: bytes) -> None:
    await connection.execute("UPDATE audit_head SET id = ?, hash = ?", (number, digest))


async def _clear(connection: Connection, table: Table) -> None:
    await connection.execute(f"DELETE FROM {table.name} WHERE {table.where}")  # noqa: S608 - names of our own
    await connection.execute("DELETE FROM quota_state WHERE quota = ? AND subject = ?", (COPYING, table.name))
    if table.name == "audit":
        await _set_head(connection, 0, _NO_HASH)


async def _refuse_full(connection: Connection) -> None:
    for table in TABLES:
        [(rows,)] = await connection.fetch(f"SELECT count(*) FROM {table.name} WHERE {table.where}")  # noqa: S608 - names of our own
        if rows:
            held = counted(rows, "row")
            raise StoreUnavailable(f"the store to copy into holds {held} of {table.name}: name an empty one")


# From one store to another.


async def copy_tables(
    source: StoredTables, destination: StoredTables, *, progress: Callable[[int], None]
) -> Mapping[str, int]:
    """Copy all tables, compare them, and give the number of rows of each. `source` is only read.

    progress: called with the number of rows of each page. Raises StoreUnavailable. If the comparison fails, the next
    call copies the tables that differ again.
    """
    await source.refuse_unfinished()
    places = dict(await destination.begin(await source.origin()))
    for table in TABLES:
        place = places.get(table.name, Place())
        while not place.done:
            page = await source.page(table, place.after)
            place = await destination.put(table, page, place)
            progress(len(page))
    counts = await _compare(source, destination, progress)
    await destination.finish()
    return counts


async def _compare(
    source: StoredTables, destination: StoredTables, progress: Callable[[int], None]
) -> Mapping[str, int]:
    counts: dict[str, int] = {}
    differing: list[Table] = []
    for table in TABLES:
        there, here = await source.checksum(table, progress), await destination.checksum(table, progress)
        counts[table.name] = here.rows
        if there != here or (table.name == "audit" and await source.head() != await destination.head()):
            differing.append(table)
    if differing:
        await destination.again(differing)
        names = ", ".join(table.name for table in differing)
        raise StoreUnavailable(f"the copy differs in {names}: stop what uses the stores, then run the command again")
    return counts
