"""SQLite's connections: for requests, for management, for writes, and for the generation, each with its own thread."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

import aiosqlite

from sidecar.core.units import Clock
from sidecar.keys.ports import RESTORE, NoStore, StoreUnavailable
from sidecar.store.connection import DuplicateRow, Steps, answers_within
from sidecar.store.sqlite.files import OpenedFiles, is_there, make, refuse_strays, refuse_unwritable
from sidecar.store.sqlite.generation import CHANGES, GenerationWatch
from sidecar.store.sqlite.schema import migrate, version_of

# SQLite's exceptions, translated into what happened and what to do about it.


_PRIMARY: Final = 0xFF
"""Extended result codes hold the primary one in their last byte."""

_ADVICE: Final = {
    sqlite3.SQLITE_BUSY: "is locked by another process: try again, or end the process that holds it (see `fuser`)",
    sqlite3.SQLITE_PROTOCOL: "is locked by another process: try again, or end the process that holds it (see `fuser`)",
    sqlite3.SQLITE_READONLY: "is read-only: give this user write permission to the file and its folder",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: check that this user may read and write the file and its folder",
    sqlite3.SQLITE_PERM: "cannot be opened: check that this user may read and write the file and its folder",
    sqlite3.SQLITE_CORRUPT: f"is damaged: {RESTORE}",
    sqlite3.SQLITE_NOTADB: f"is not a SQLite database: name another file, or {RESTORE}",
    sqlite3.SQLITE_FULL: "cannot be written, the disk is full: free some space",
    sqlite3.SQLITE_IOERR: "cannot be read or written (I/O error): check the disk, its free space, quotas and file size "
    "limits, and that its path leads to no folder",
}


def is_lock(error: sqlite3.Error) -> bool:
    """Whether the only cause is that another process has locked the database."""
    return _code(error) & _PRIMARY in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_PROTOCOL)


def unavailable(error: sqlite3.Error, path: str) -> StoreUnavailable:
    """The exception in the store's terms: what happened, and what to do."""
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    advice = _ADVICE.get(_code(error) & _PRIMARY, "failed: check the file with `sidecar store check`")
    return StoreUnavailable(f"the key store {path} {advice} [{name}]", cause=advice)


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Turn each sqlite3.Error into StoreUnavailable, and a broken constraint into DuplicateRow."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise DuplicateRow(str(unavailable(error, path))) from error
    except sqlite3.Error as error:
        raise unavailable(error, path) from error


def _code(error: sqlite3.Error) -> int:
    # Errors of the module itself, such as a closed connection, have no code.
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE)


# The store's file is readable only by its owner, and is checked before use.


WRITE_LOCK_SECONDS = 5.0
_RETRY_SECONDS: Final = 0.01
_ISSUE = "`sidecar keys issue` or `sidecar store make` makes it"


def prepare(path: str, *, create: bool) -> None:
    """Ensure that there is a store with the newest schema, in WAL mode, at `path`. Blocks.

    Raises StoreUnavailable; without `create`, also if there is no store: an empty store in place of a lost one would
    refuse every key.
    """
    if create:
        make(path)
    elif not is_there(path):
        raise NoStore(f"there is no key store at {path}: {_ISSUE}, or check the path")
    refuse_unwritable(path)
    refuse_strays(path)
    with translated(path), closing(connect(path, timeout=WRITE_LOCK_SECONDS)) as connection:
        if version_of(connection, path) == 0 and not create:
            raise StoreUnavailable(f"the key store {path} is empty: {_ISSUE}, or {RESTORE}")
        if _switched_to_wal(connection) != "wal":
            raise StoreUnavailable(f"the key store {path} cannot use a write-ahead log: put it on a local disk")
        migrate(connection, path)


def _switched_to_wal(connection: sqlite3.Connection) -> str:
    """Switch to WAL, and return the mode that is in force.

    If several processes try at once, each may hold a lock that the others need: so none waits, and each retries.
    """
    deadline = time.monotonic() + WRITE_LOCK_SECONDS
    connection.execute("PRAGMA busy_timeout = 0")
    while True:
        try:
            [(mode,)] = connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if not is_lock(error) or time.monotonic() >= deadline:
                raise
            time.sleep(_RETRY_SECONDS)
        else:
            connection.execute(f"PRAGMA busy_timeout = {int(WRITE_LOCK_SECONDS * 1000)}")
            return str(mode)


def connect(path: str, *, timeout: float, mode: str = "rw") -> sqlite3.Connection:
    """A plain connection in autocommit mode, which never creates the file."""
    return sqlite3.connect(uri_of(path, mode), uri=True, timeout=timeout, isolation_level=None)


def uri_of(path: str, mode: str) -> str:
    return f"{Path(path).absolute().as_uri()}?mode={mode}"


FIND_SECONDS: Final = 1.0
"""A request waits at most this long, including the queue."""
READ_SECONDS: Final = 5.0
_PARAMETERS: Final = 32_766
"""Most values in one statement, by SQLite's default."""

Parameters = Sequence[Any] | Mapping[str, Any]


class SqliteConnection:
    """One connection and its thread; one user at a time, so that no one joins another's transaction."""

    def __init__(self, connection: aiosqlite.Connection, path: str) -> None:
        """Use `open`."""
        self.lock = asyncio.Lock()
        self._connection, self._path = connection, path

    @classmethod
    async def open(cls, path: str, *, lock_seconds: float, mode: str = "rw") -> "SqliteConnection":
        with translated(path):
            connection = await aiosqlite.connect(
                uri_of(path, mode), uri=True, timeout=lock_seconds, isolation_level=None, cached_statements=32
            )
        opened = cls(connection, path)
        try:
            await opened.execute("PRAGMA synchronous = FULL")
            [(journal,)] = await opened.fetch("PRAGMA journal_mode")
            [(synchronous,)] = await opened.fetch("PRAGMA synchronous")
            if (journal, synchronous) != ("wal", 2):
                raise StoreUnavailable(
                    f"the key store {path} refuses WAL with synchronous=FULL: put it on a local disk"
                )
        except BaseException:
            await connection.close()
            raise
        return opened

    async def fetch(self, sql: str, values: Parameters = ()) -> list[Any]:
        with translated(self._path):
            return list(await self._connection.execute_fetchall(sql, values))

    async def execute(self, sql: str, values: Parameters = ()) -> None:
        # One turn of the connection's thread; a separate cursor would take two.
        await self.fetch(sql, values)

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        with translated(self._path):
            await self._connection.executemany(sql, rows)

    async def insert(self, into: str, rows: Sequence[Sequence[Any]]) -> None:
        # Few statements, because each one has to wait for the interpreter's lock.
        at_once = _PARAMETERS // len(rows[0]) if rows else 1
        if len(rows) > at_once:
            await self._insert_gathered(into, rows, at_once)
        elif rows:
            await self.execute(*_values_of(into, rows))

    async def _insert_gathered(self, into: str, rows: Sequence[Sequence[Any]], at_once: int) -> None:
        """Insert all rows with one statement, from a table that only this connection sees.

        Each statement keeps the old content of every page that it changes, and adds a segment to the full-text index
        that must be merged later: many statements cost half as much again as one.
        """
        gathered = f"temp.gathered_{len(rows[0])}"
        columns = ", ".join(f"c{number}" for number in range(len(rows[0])))
        await self.execute(f"CREATE TABLE IF NOT EXISTS {gathered} ({columns})")
        try:
            for start in range(0, len(rows), at_once):
                await self.execute(*_values_of(f"INSERT INTO {gathered}", rows[start : start + at_once]))
            await self.execute(f"{into} SELECT * FROM {gathered} ORDER BY rowid")  # noqa: S608 - the same
        finally:
            await self.execute(f"DELETE FROM {gathered}")  # noqa: S608 - a name of our own

    async def read(self, sql: str, values: Parameters, seconds: float) -> list[Any]:
        """Rows within `seconds`, including the wait for the connection. Raises StoreUnavailable after that."""
        reading = asyncio.ensure_future(self._fetch_in_turn(sql, values))
        try:
            if await answers_within(seconds, reading):
                return reading.result()
            silent = f"did not answer within {seconds:g} s"
            raise StoreUnavailable(f"the key store {silent}", cause=silent)
        finally:
            reading.cancel()

    async def commit(self) -> None:
        with translated(self._path):
            await self._connection.commit()

    async def rollback(self) -> None:
        with translated(self._path):
            await self._connection.rollback()

    async def close(self) -> None:
        with translated(self._path):
            await self._connection.close()

    async def _fetch_in_turn(self, sql: str, values: Parameters) -> list[Any]:
        async with self.lock:
            return await self.fetch(sql, values)


def _values_of(into: str, rows: Sequence[Sequence[Any]]) -> tuple[str, list[Any]]:
    """The statement that inserts these rows, and its values."""
    placeholders = f"({', '.join('?' * len(rows[0]))})"
    return f"{into} VALUES {', '.join([placeholders] * len(rows))}", list(chain.from_iterable(rows))


class SqliteDatabase(Steps):
    """A Database over one file. Its connections stay open; `timings` receives each operation and its seconds."""

    def __init__(
        self,
        path: str,
        connections: Sequence[SqliteConnection],
        *,
        clock: Clock,
        timings: Callable[[str, float], None],
    ) -> None:
        """Use `open`. connections: for requests, for management, for writes, and one that reads the generation."""
        super().__init__(path, timings)
        self.connections = connections
        self._lookup, self._read, self._write, self._watching = connections
        self._path, self._clock = path, clock
        self._files = OpenedFiles(path)
        self._watch = GenerationWatch(self._files, partial(self._watching.fetch, CHANGES), clock)
        self.generation, self.read_generation = self._watch.current, self._watch.read
        self.changes_since = self._watch.changes_since

    @classmethod
    async def open(
        cls, path: str, *, create: bool, clock: Clock, timings: Callable[[str, float], None]
    ) -> "SqliteDatabase":
        """As SqliteStore.open."""
        logging.getLogger("aiosqlite").addFilter(_without_parameters)
        await asyncio.to_thread(prepare, path, create=create)
        opened: list[SqliteConnection] = []
        try:
            for seconds in (FIND_SECONDS, READ_SECONDS, WRITE_LOCK_SECONDS):
                connection = await SqliteConnection.open(path, lock_seconds=seconds)
                opened.append(connection)
            opened.append(await SqliteConnection.open(path, lock_seconds=0, mode="ro"))
            await opened[-1].fetch(CHANGES, (0, 1))
            return cls(path, opened, clock=clock, timings=timings)
        except BaseException:
            await _close(opened)
            raise

    async def close(self) -> None:
        self.is_open = False
        await self._watch.close()
        writers, reader = self.connections[:-1], self.connections[-1:]
        # The last connection to close writes its log into the database and removes the files at the log's path. It must
        # not if another process has begun its own log there. A read-only connection cannot.
        await _close([*writers, *reader] if self._files.replaced() else [*reader, *writers])

    async def may_issue(self) -> bool:
        return True

    def now(self) -> int:
        return self._clock.micros()

    def indexed(self, table: str, index: str) -> str:
        # Without statistics, SQLite chooses a less selective index.
        return f"{table} INDEXED BY {index}"

    async def lookup(self, operation: str, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        with self.operation(operation):
            return await self._lookup.read(sql, values, FIND_SECONDS)

    async def read(self, operation: str, sql: str, values: Parameters = ()) -> list[Any]:
        with self.operation(operation):
            return await self._read.read(sql, values, READ_SECONDS)

    @asynccontextmanager
    async def transaction(self, operation: str) -> AsyncIterator[SqliteConnection]:
        connection = self._write
        with self.operation(operation), self.write_noted():
            async with connection.lock:
                # A write to a file that was moved away would be acknowledged and lost.
                self._files.check()
                try:
                    await connection.execute("BEGIN IMMEDIATE")
                    yield connection
                    await connection.commit()
                    self._files.check()
                except BaseException:
                    # A cancelled statement keeps running on its thread; the rollback queues behind it.
                    await connection.rollback()
                    raise

    async def retry_write(self) -> None:
        """If the last change was not written, write again, so that `write_problem` clears once writing works again."""
        if self.write_problem:
            with suppress(StoreUnavailable):
                async with self.transaction("retry_write") as connection:
                    # SQLite does not write unchanged pages, so this changes the number; after a success, keys are
                    # looked up again.
                    await connection.execute("UPDATE generation SET value = random()")


async def _close(connections: Sequence[SqliteConnection]) -> None:
    for connection in connections:
        await connection.close()


def _without_parameters(record: logging.LogRecord) -> bool:
    """Drop debug records: aiosqlite logs every statement with its values, which must not be logged."""
    return record.levelno > logging.DEBUG
