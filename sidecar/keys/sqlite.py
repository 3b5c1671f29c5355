"""The key store in one SQLite file: WAL, synchronous=FULL, many processes."""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any, Final, assert_never

import aiosqlite

from sidecar.core.model import ApiKey, KeyStatus
from sidecar.keys.generation import GenerationWatch
from sidecar.keys.records import COLUMNS, audited, key_of, row_of
from sidecar.keys.sqlite_errors import translated
from sidecar.keys.sqlite_file import WRITE_LOCK_SECONDS, FileIdentity, prepare, uri_of
from sidecar.keys.store import KeyConflict, KeyFilter, QuotaRow, StoreUnavailable

FIND_SECONDS: Final = 1.0
"""A request waits at most this long, queueing included."""
READ_SECONDS: Final = 5.0

_FIELDS: Final = ", ".join(COLUMNS)
_SELECT: Final = f"SELECT {_FIELDS} FROM api_key"  # noqa: S608 - column names of our own
_ACTIONS: Final = {KeyStatus.ACTIVE: "enable", KeyStatus.DISABLED: "disable", KeyStatus.REVOKED: "revoke"}
_SHOWN_TWINS: Final = 5


def find_statement(digests: int) -> str:
    """The lookup of a request, for so many candidate digests."""
    return f"{_SELECT} WHERE digest IN ({', '.join('?' * digests)})"


class _Line:
    """One connection and its thread; one user at a time, so that a transaction is never joined by strangers."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self.connection = connection
        self.lock = asyncio.Lock()

    @classmethod
    async def open(cls, path: str, *, lock_seconds: float) -> "_Line":
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

    async def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        return list(await self.connection.execute_fetchall(sql, parameters))

    async def read(self, sql: str, parameters: Sequence[Any], seconds: float) -> list[Any]:
        try:
            async with asyncio.timeout(seconds), self.lock:
                return await self.rows(sql, parameters)
        except TimeoutError as error:
            raise StoreUnavailable(f"the key store did not answer within {seconds:g} s") from error


class SqliteStore:
    """KeyStore, KeyCensus and QuotaStates. Requests, management and writes have a connection each."""

    def __init__(
        self,
        path: str,
        lines: tuple[_Line, _Line, _Line],
        *,
        clock: Callable[[], float],
        timings: Callable[[str, float], None],
    ) -> None:
        """Use `open`."""
        self._path = path
        self._finding, self._reading, self._writing = lines
        self._clock = clock
        self._timings = timings
        self._file = FileIdentity(path)
        self._watch = GenerationWatch(path)
        self._open = True
        self.generation = self._watch.current

    @classmethod
    async def open(
        cls, path: str, *, create: bool, clock: Callable[[], float], timings: Callable[[str, float], None]
    ) -> "SqliteStore":
        """`clock` in Unix seconds; `timings` is told each operation and its seconds.

        Without `create`, a missing or empty file is StoreUnavailable, and nothing is made.
        """
        logging.getLogger("aiosqlite").addFilter(_without_parameters)
        await asyncio.to_thread(prepare, path, create=create)
        lines: list[_Line] = []
        try:
            with translated(path):
                for seconds in (FIND_SECONDS, READ_SECONDS, WRITE_LOCK_SECONDS):
                    line = await _Line.open(path, lock_seconds=seconds)
                    lines.append(line)
            finding, reading, writing = lines
            return cls(path, (finding, reading, writing), clock=clock, timings=timings)
        except BaseException:
            await _close(lines)
            raise

    async def close(self) -> None:
        self._open = False
        self._watch.close()
        await _close([self._finding, self._reading, self._writing])

    async def find(self, digests: Mapping[bytes, str]) -> ApiKey | None:
        with self._operation("find"):
            rows = await self._finding.read(find_statement(len(digests)), tuple(digests), FIND_SECONDS)
        return next((key for key in map(key_of, rows) if digests[key.digest] == key.algorithm), None)

    async def add(self, key: ApiKey, *, actor: str) -> None:
        holes = ", ".join("?" * len(COLUMNS))
        row = row_of(key)
        async with self._transaction("add") as line:
            try:
                await line.rows(f"INSERT INTO api_key ({_FIELDS}) VALUES ({holes})", row)  # noqa: S608 - no input
            except sqlite3.IntegrityError as error:
                raise KeyConflict(f"a key with the id {key.id!r} or the same digest is stored already") from error
            await _audit(line, "issue", before=None, after=key, at=key.created_at, actor=actor)

    async def get(self, name: str) -> ApiKey | None:
        if not name.isascii():
            return None
        with self._operation("get"):
            rows = await self._reading.read(f"{_SELECT} WHERE id = ?", (name,), READ_SECONDS)
            if not rows:
                sql = f"{_SELECT} WHERE prefix = ? LIMIT {_SHOWN_TWINS}"
                rows = await self._reading.read(sql, (name,), READ_SECONDS)
        keys = [key_of(row) for row in rows]
        if len(keys) > 1:
            raise KeyConflict(f"several keys begin with {name!r}: use an id ({', '.join(key.id for key in keys)}…)")
        return keys[0] if keys else None

    async def list(self, wanted: KeyFilter) -> Sequence[ApiKey]:
        status = None if wanted.status is None else wanted.status.value
        asked = {
            "tenant = ?": wanted.tenant,
            "environment = ?": wanted.environment,
            "status = ?": status,
            "id > ?": wanted.after,
        }
        conditions = {sql: value for sql, value in asked.items() if value is not None}
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        limit = -1 if wanted.limit is None else wanted.limit
        with self._operation("list"):
            sql = f"{_SELECT}{where} ORDER BY id LIMIT ?"
            rows = await self._reading.read(sql, (*conditions.values(), limit), READ_SECONDS)
        return [key_of(row) for row in rows]

    async def set_status(self, key_id: str, status: KeyStatus, *, at: int, actor: str) -> ApiKey:
        async with self._transaction("set_status") as line:
            before = await _stored(line, key_id)
            if before.status is status:
                return before
            if before.status is KeyStatus.REVOKED:
                raise KeyConflict(f"key {key_id!r} is revoked, which is final: issue a new one")
            after = _changed(before, status, at)
            await line.rows(
                "UPDATE api_key SET status = ?, disabled_at = ?, revoked_at = ? WHERE id = ?",
                (status.value, after.disabled_at, after.revoked_at, key_id),
            )
            await _audit(line, _ACTIONS[status], before=before, after=after, at=at, actor=actor)
        return after

    async def touch(self, last_used_at: Mapping[str, int]) -> None:
        async with self._transaction("touch") as line:
            await line.connection.executemany(
                "UPDATE api_key SET last_used_at = ?1 WHERE id = ?2 AND (last_used_at IS NULL OR last_used_at < ?1)",
                [(at, key_id) for key_id, at in last_used_at.items()],
            )

    async def counts(self) -> Mapping[tuple[str, str], int]:
        # In the order of an index that holds all of it, so that nothing is sorted and no key is read.
        sql = """SELECT status, environment, count(*), total(status = 'active' AND expires_at <= ?)
            FROM api_key GROUP BY status, environment"""
        with self._operation("counts"):
            rows = await self._reading.read(sql, (self._now(),), READ_SECONDS)
        counts: dict[tuple[str, str], int] = {}
        for status, environment, count, expired in rows:
            for standing, number in ((status, count - int(expired)), ("expired", int(expired))):
                if number:
                    counts[standing, environment or ""] = number
        return counts

    async def algorithms(self) -> Mapping[str, int]:
        sql = "SELECT algorithm, count(*) FROM api_key WHERE status <> 'revoked' GROUP BY algorithm"
        with self._operation("algorithms"):
            return dict(await self._reading.read(sql, (), READ_SECONDS))

    async def load_quota_states(self) -> Sequence[QuotaRow]:
        sql = "SELECT quota, subject, state, expires_at FROM quota_state WHERE expires_at > ?"
        with self._operation("load_quota_states"):
            return await self._reading.read(sql, (self._now(),), READ_SECONDS)

    async def save_quota_states(self, rows: Sequence[QuotaRow]) -> None:
        async with self._transaction("save_quota_states") as line:
            await line.rows("DELETE FROM quota_state WHERE expires_at <= ?", (self._now(),))
            await line.connection.executemany("INSERT OR REPLACE INTO quota_state VALUES (?, ?, ?, ?)", rows)

    @asynccontextmanager
    async def _transaction(self, operation: str) -> AsyncIterator[_Line]:
        line = self._writing
        with self._operation(operation):
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
    def _operation(self, operation: str) -> Iterator[None]:
        if not self._open:
            raise StoreUnavailable(f"the key store {self._path} is closed")
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            with translated(self._path):
                yield
        finally:
            self._timings(operation, loop.time() - started)

    def _now(self) -> int:
        return int(self._clock() * 1_000_000)


async def _stored(line: _Line, key_id: str) -> ApiKey:
    rows = await line.rows(f"{_SELECT} WHERE id = ?", (key_id,))
    if not rows:
        raise KeyConflict(f"no key has the id {key_id!r}")
    return key_of(rows[0])


def _changed(key: ApiKey, status: KeyStatus, at: int) -> ApiKey:
    match status:
        case KeyStatus.ACTIVE:
            return replace(key, status=status, disabled_at=None)
        case KeyStatus.DISABLED:
            return replace(key, status=status, disabled_at=at)
        case KeyStatus.REVOKED:
            return replace(key, status=status, revoked_at=at)
        case _:
            assert_never(status)


async def _audit(line: _Line, action: str, *, before: ApiKey | None, after: ApiKey, at: int, actor: str) -> None:
    await line.rows(
        "INSERT INTO audit (at, actor, action, key_id, before, after) VALUES (?, ?, ?, ?, ?, ?)",
        (at, actor, action, after.id, before and audited(before), audited(after)),
    )


async def _close(lines: Sequence[_Line]) -> None:
    for line in lines:
        await line.connection.close()


def _without_parameters(record: logging.LogRecord) -> bool:
    """At debug level aiosqlite logs every statement with its parameters, which are not for a log."""
    return record.levelno > logging.DEBUG
