"""Connections to a store's file: one for requests, one for management, one for writes, each with its thread."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import chain
from typing import Any, Final

import aiosqlite

from sidecar.keys.ports import StoreUnavailable
from sidecar.keys.sqlite_errors import translated
from sidecar.keys.sqlite_file import WRITE_LOCK_SECONDS, FileIdentity, prepare, uri_of

FIND_SECONDS: Final = 1.0
"""A request waits at most this long, queueing included."""
READ_SECONDS: Final = 5.0
_LATE_SECONDS: Final = 0.1
_PARAMETERS: Final = 32_766
"""What a statement may have at most, by SQLite's default."""

Parameters = Sequence[Any] | Mapping[str, Any]


class Line:
    """One connection and its thread; one user at a time, so that a transaction is never joined by strangers."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self.connection = connection
        self.lock = asyncio.Lock()

    @classmethod
    async def open(cls, path: str, *, lock_seconds: float) -> "Line":
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


class Lines:
    """What the parts of a SQLite store share: its lines, its clock, and who is told how long each operation took."""

    def __init__(
        self,
        path: str,
        lines: tuple[Line, Line, Line],
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
    ) -> "Lines":
        """As SqliteStore.open."""
        logging.getLogger("aiosqlite").addFilter(_without_parameters)
        await asyncio.to_thread(prepare, path, create=create)
        lines: list[Line] = []
        try:
            with translated(path):
                for seconds in (FIND_SECONDS, READ_SECONDS, WRITE_LOCK_SECONDS):
                    line = await Line.open(path, lock_seconds=seconds)
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
    async def transaction(self, operation: str) -> AsyncIterator[Line]:
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

    def __init__(self, lines: Lines) -> None:
        self._lines = lines


async def _close(lines: Sequence[Line]) -> None:
    for line in lines:
        await line.connection.close()


def _without_parameters(record: logging.LogRecord) -> bool:
    """At debug level aiosqlite logs every statement with its parameters, which are not for a log."""
    return record.levelno > logging.DEBUG
