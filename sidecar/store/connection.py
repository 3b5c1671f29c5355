"""Connections to a store's file: one for requests, one for management, one for writes, each with its thread."""

import asyncio
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from errno import ENOENT
from itertools import chain
from pathlib import Path
from typing import Any, Final

import aiosqlite

from sidecar.keys.ports import StoreUnavailable
from sidecar.store.schema import migrate, version_of

# SQLite's exceptions, translated into what happened and what to do about it.


_PRIMARY: Final = 0xFF
"""Extended result codes hold the primary one in their last byte."""

_ADVICE: Final = {
    sqlite3.SQLITE_BUSY: "is locked by another process: try again, or end the process that holds it (see `fuser`)",
    sqlite3.SQLITE_PROTOCOL: "is locked by another process: try again, or end the process that holds it (see `fuser`)",
    sqlite3.SQLITE_READONLY: "is read-only: give this user write permission to the file and its folder",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: check that this user may read and write the file and its folder",
    sqlite3.SQLITE_PERM: "cannot be opened: check that this user may read and write the file and its folder",
    sqlite3.SQLITE_CORRUPT: "is damaged: stop the sidecar and restore the file from a backup",
    sqlite3.SQLITE_NOTADB: "is not a SQLite database: name another file, or restore it from a backup",
    sqlite3.SQLITE_FULL: "cannot be written, the disk is full: free some space",
    sqlite3.SQLITE_IOERR: "cannot be read or written (I/O error): check the disk, its free space and file size limits",
}


def is_lock(error: sqlite3.Error) -> bool:
    """Whether the database could not be read only because somebody holds it just now."""
    return _code(error) & _PRIMARY in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_PROTOCOL)


def unavailable(error: sqlite3.Error, path: str) -> StoreUnavailable:
    """The same news in the store's terms."""
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    advice = _ADVICE.get(_code(error) & _PRIMARY, "failed: check the file with `sqlite3 FILE 'PRAGMA integrity_check'`")
    return StoreUnavailable(f"the key store {path} {advice} [{name}]")


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Every sqlite3.Error inside becomes StoreUnavailable."""
    try:
        yield
    except sqlite3.Error as error:
        raise unavailable(error, path) from error


def _code(error: sqlite3.Error) -> int:
    # Errors of the module itself (a closed connection) have no code.
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE)


# The store's file: made for its owner only, checked before it is used, and noticed when it is taken away.


WRITE_LOCK_SECONDS = 5.0
_ISSUE = "`sidecar keys issue` or `sidecar store make` makes it"


def prepare(path: str, *, create: bool) -> None:
    """Make sure that a store of the newest schema, in WAL mode, is at `path`. Blocking.

    Raises StoreUnavailable; without `create`, also where there is no store yet, for an empty store put in the place of
    a lost one would refuse every key.
    """
    if create:
        _make(path)
    elif not os.path.exists(path):
        raise StoreUnavailable(f"there is no key store at {path}: {_ISSUE}, or check the path")
    _refuse_unwritable(path)
    with translated(path), closing(connect(path, timeout=WRITE_LOCK_SECONDS)) as connection:
        if version_of(connection, path) == 0 and not create:
            raise StoreUnavailable(f"the key store {path} is empty: {_ISSUE}, or restore it from a backup")
        [(mode,)] = connection.execute("PRAGMA journal_mode = WAL")
        if mode != "wal":
            raise StoreUnavailable(f"the key store {path} cannot use a write-ahead log: put it on a local disk")
        migrate(connection, path)


def connect(path: str, *, timeout: float, mode: str = "rw") -> sqlite3.Connection:
    """A plain connection in autocommit mode that never makes a file."""
    return sqlite3.connect(uri_of(path, mode), uri=True, timeout=timeout, isolation_level=None)


def uri_of(path: str, mode: str) -> str:
    return f"{Path(path).absolute().as_uri()}?mode={mode}"


class FileIdentity:
    """Which file was opened: one moved into its place holds other keys, and its revocations would go unseen."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen = self._look()

    def check(self) -> None:
        """Raises StoreUnavailable when the file is no more the one that was opened. About a microsecond."""
        if self._look() != self._seen:
            raise StoreUnavailable(f"the key store {self._path} was replaced while in use: restart the sidecar")

    def _look(self) -> tuple[int, int]:
        try:
            found = os.stat(self._path)
        except OSError as error:
            raise StoreUnavailable(
                f"the key store {self._path} is gone or out of reach ({error.strerror}): restore it and restart"
            ) from error
        return found.st_dev, found.st_ino


def _make(path: str) -> None:
    try:
        # SQLite gives the -wal and -shm files the mode of the database.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        return
    except OSError as error:
        folder_missing = f"there is no folder {os.path.dirname(os.path.abspath(path))}"
        reason = folder_missing if error.errno == ENOENT else error.strerror
        raise StoreUnavailable(f"the key store {path} cannot be made: {reason}") from error


def _refuse_unwritable(path: str) -> None:
    if os.path.isdir(path):
        raise StoreUnavailable(f"the key store {path} is a folder: name a file in it")
    for place in (path, os.path.dirname(os.path.abspath(path))):
        if not os.access(place, os.R_OK | os.W_OK):
            raise StoreUnavailable(f"the key store {path} cannot be used: this user may not read and write {place}")


# Whether any process has changed a key, asked of SQLite in microseconds.


class GenerationWatch:
    """A read-only connection of its own, used on the thread of the event loop only; it never waits for a lock.

    `PRAGMA data_version` tells of any commit by another connection. Most commits are of last-used times and quota
    states, so only the `generation` row, which triggers change with every change of a key, says that keys changed.
    """

    def __init__(self, path: str) -> None:
        """Raises StoreUnavailable."""
        self._path = path
        self._file = FileIdentity(path)
        self._version = -1
        self._generation = 0
        with translated(path), ExitStack() as stack:
            self._connection = stack.enter_context(closing(connect(path, timeout=0, mode="ro")))
            self._execute = self._connection.execute
            self._refresh()
            stack.pop_all()

    def current(self) -> int:
        """Raises StoreUnavailable. The last known number while the database is locked: nobody could learn more."""
        self._file.check()
        try:
            self._refresh()
        except sqlite3.Error as error:
            if not is_lock(error):
                raise unavailable(error, self._path) from error
        return self._generation

    def close(self) -> None:
        self._connection.close()

    def _refresh(self) -> None:
        [(version,)] = self._execute("PRAGMA data_version")
        if version != self._version:
            [(self._generation,)] = self._execute("SELECT value FROM generation")
            self._version = version


FIND_SECONDS: Final = 1.0
"""A request waits at most this long, queueing included."""
READ_SECONDS: Final = 5.0
_LATE_SECONDS: Final = 0.1
_PARAMETERS: Final = 32_766
"""What a statement may have at most, by SQLite's default."""

Parameters = Sequence[Any] | Mapping[str, Any]


class Connection:
    """One connection and its thread; one user at a time, so that a transaction is never joined by strangers."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self.connection = connection
        self.lock = asyncio.Lock()

    @classmethod
    async def open(cls, path: str, *, lock_seconds: float) -> "Connection":
        connection = await aiosqlite.connect(
            uri_of(path, "rw"), uri=True, timeout=lock_seconds, isolation_level=None, cached_statements=32
        )
        line = cls(connection)
        try:
            await line.rows("PRAGMA synchronous = FULL")
            [(journal,)] = await line.rows("PRAGMA journal_mode")
            [(synchronous,)] = await line.rows("PRAGMA synchronous")
            if (journal, synchronous) != ("wal", 2):
                raise StoreUnavailable(
                    f"the key store {path} refuses WAL with synchronous=FULL: put it on a local disk"
                )
        except BaseException:
            await connection.close()
            raise
        return line

    async def rows(self, sql: str, parameters: Parameters = ()) -> list[Any]:
        return list(await self.connection.execute_fetchall(sql, parameters))

    async def many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        await self.connection.executemany(sql, rows)

    async def insert(self, into: str, rows: Sequence[Sequence[Any]]) -> None:
        """`into` (INSERT INTO table (columns)) with the values of all rows.

        In few statements, for each of them costs a turn for the interpreter's lock.
        """
        at_once = _PARAMETERS // len(rows[0]) if rows else 1
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            holes = f"({', '.join('?' * len(some[0]))})"
            await self.rows(f"{into} VALUES {', '.join([holes] * len(some))}", list(chain.from_iterable(some)))

    async def read(self, sql: str, parameters: Parameters, seconds: float) -> list[Any]:
        loop = asyncio.get_running_loop()
        reading = asyncio.ensure_future(self._rows_in_turn(sql, parameters))
        try:
            for _ in range(2):
                due = loop.time() + seconds
                await asyncio.wait([reading], timeout=seconds)
                if reading.done():
                    return reading.result()
                # Woken late, it was this process that stood still, and not the store: that is given its time once more.
                if loop.time() - due < _LATE_SECONDS:
                    break
            raise StoreUnavailable(f"the key store did not answer within {seconds:g} s")
        finally:
            reading.cancel()

    async def _rows_in_turn(self, sql: str, parameters: Parameters) -> list[Any]:
        async with self.lock:
            return await self.rows(sql, parameters)


class Connections:
    """What the parts of a SQLite store share: its lines, its clock, and who is told how long each operation took."""

    def __init__(
        self,
        path: str,
        lines: tuple[Connection, Connection, Connection],
        *,
        clock: Callable[[], float],
        timings: Callable[[str, float], None],
    ) -> None:
        """Use `open`."""
        self.path = path
        self.finding, self.reading, self.writing = lines
        self._clock = clock
        self._timings = timings
        self._file = FileIdentity(path)
        self._open = True

    @classmethod
    async def open(
        cls, path: str, *, create: bool, clock: Callable[[], float], timings: Callable[[str, float], None]
    ) -> "Connections":
        """As SqliteStore.open."""
        logging.getLogger("aiosqlite").addFilter(_without_parameters)
        await asyncio.to_thread(prepare, path, create=create)
        lines: list[Connection] = []
        try:
            with translated(path):
                for seconds in (FIND_SECONDS, READ_SECONDS, WRITE_LOCK_SECONDS):
                    line = await Connection.open(path, lock_seconds=seconds)
                    lines.append(line)
            finding, reading, writing = lines
            return cls(path, (finding, reading, writing), clock=clock, timings=timings)
        except BaseException:
            await _close(lines)
            raise

    async def close(self) -> None:
        self._open = False
        await _close([self.finding, self.reading, self.writing])

    def now(self) -> int:
        """Microseconds."""
        return int(self._clock() * 1_000_000)

    async def read(self, operation: str, sql: str, parameters: Parameters = ()) -> list[Any]:
        """Rows for management. Raises StoreUnavailable, past READ_SECONDS too."""
        with self.operation(operation):
            return await self.reading.read(sql, parameters, READ_SECONDS)

    @asynccontextmanager
    async def transaction(self, operation: str) -> AsyncIterator[Connection]:
        """The line for writes, in a transaction that ends with a commit or a rollback. Raises StoreUnavailable."""
        line = self.writing
        with self.operation(operation):
            async with line.lock:
                # A write into a file that was taken away would be acknowledged and lost.
                self._file.check()
                try:
                    await line.rows("BEGIN IMMEDIATE")
                    yield line
                    await line.connection.commit()
                except BaseException:
                    # What is cancelled here runs on its thread all the same; the rollback queues behind it.
                    await line.connection.rollback()
                    raise

    @contextmanager
    def operation(self, operation: str) -> Iterator[None]:
        """Time what happens inside, and translate its errors to StoreUnavailable."""
        if not self._open:
            raise StoreUnavailable(f"the key store {self.path} is closed")
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            with translated(self.path):
                yield
        finally:
            self._timings(operation, loop.time() - started)


class StorePart:
    """Some of a store's methods, on lines that it shares with the others."""

    def __init__(self, lines: Connections) -> None:
        self._lines = lines


async def _close(lines: Sequence[Connection]) -> None:
    for line in lines:
        await line.connection.close()


def _without_parameters(record: logging.LogRecord) -> bool:
    """At debug level aiosqlite logs every statement with its parameters, which are not for a log."""
    return record.levelno > logging.DEBUG
