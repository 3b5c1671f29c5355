"""Reports on a store in PostgreSQL that change nothing, whatever its schema version."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

from sidecar.config.store_url import shown_store
from sidecar.core.units import counted
from sidecar.keys.ports import RESTORE_DUMP, AuditState
from sidecar.store.audit import CHAINED, COPYING, UNFINISHED, Head, Walk
from sidecar.store.connection import Connection
from sidecar.store.postgresql.connection import CHANGE_LOCK, READ_SECONDS, PostgresqlConnection, connector
from sidecar.store.postgresql.migrations import version_of
from sidecar.store.postgresql.replica import ASK_NUMBER, ASK_SECONDS
from sidecar.store.postgresql.schema import MIGRATIONS, SCHEMA
from sidecar.store.sqlite.inspect import OF_KEYS, Checked, StoreInfo, StoreReport

_COUNTS: Final = """SELECT count(*), count(*) FILTER (WHERE expires_at IS NULL), count(*) FILTER (WHERE created_at < ?)
    FROM api_key WHERE status = 'active'
    AND (expires_at IS NULL OR expires_at > ?) AND (retires_at IS NULL OR retires_at > ?)"""
_NEWEST: Final = "SELECT coalesce(greatest(max(created_at), max(last_used_at)), 0) FROM api_key"
_LAST_CHANGE: Final = "SELECT id, at FROM audit ORDER BY id DESC LIMIT 1"
_ALGORITHMS: Final = "SELECT algorithm, count(*) FROM api_key WHERE status <> 'revoked' GROUP BY algorithm"


async def inspect(url: str, *, now: int, max_age_seconds: float | None) -> StoreReport:
    """now: microseconds. Raises StoreUnavailable."""
    connection = await connector(url, READ_SECONDS)()
    try:
        version, _ = await version_of(connection, shown_store(url))
        known = StoreReport(version=version, newest_version=len(MIGRATIONS), journal="", algorithms={})
        oldest = 0 if max_age_seconds is None else now - int(max_age_seconds * 1_000_000)
        return await _with_keys(connection, known, now, oldest) if 0 < version <= len(MIGRATIONS) else known
    finally:
        await connection.close()


async def lock_seconds(url: str) -> float:
    """How long it takes to get the lock for changing keys, which is released again. Raises StoreUnavailable."""
    connection = await connector(url, READ_SECONDS)()
    try:
        await connection.run("BEGIN")
        started = time.perf_counter()
        await connection.run(f"SELECT {CHANGE_LOCK}")
        taken = time.perf_counter() - started
        await connection.run("ROLLBACK")
        return taken
    finally:
        await connection.close()


_PAUSE_SECONDS: Final = 0.05


async def standby(url: str, replica: str) -> tuple[bool, bool, float]:
    """Whether the replica is a standby, whether it shows the primary's newest change in time, and its response time in
    seconds. Raises StoreUnavailable.
    """
    there = await connector(replica, READ_SECONDS)()
    try:
        primary = await connector(url, READ_SECONDS)()
        try:
            return await _in_step(primary, there)
        finally:
            await primary.close()
    finally:
        await there.close()


async def _in_step(primary: PostgresqlConnection, replica: PostgresqlConnection) -> tuple[bool, bool, float]:
    late = time.perf_counter() + ASK_SECONDS
    while True:
        newest = await primary.fetch("SELECT value FROM generation")
        asked = time.perf_counter()
        shown = await replica.fetch(ASK_NUMBER)
        answered = time.perf_counter()
        is_standby = shown != [(None,)]
        if shown == newest or not is_standby or answered > late:
            return is_standby, shown == newest, answered - asked
        await asyncio.sleep(_PAUSE_SECONDS)


async def _with_keys(connection: Connection, known: StoreReport, now: int, oldest: int) -> StoreReport:
    [(active, without_expiry, too_old)] = await connection.fetch(_COUNTS, (oldest, now, now))
    [(newest,)] = await connection.fetch(_NEWEST)
    rows, changed = next(iter(await connection.fetch(_LAST_CHANGE)), (0, 0))
    return replace(
        known,
        newest_at=max(newest, changed),
        audit_rows=rows,
        active=active,
        without_expiry=without_expiry,
        too_old=too_old,
        algorithms=dict(await connection.fetch(_ALGORITHMS)),
    )


# What operators ask about a store: `sidecar store info`.

_STANDINGS: Final = """SELECT CASE WHEN status <> 'active' THEN status WHEN expires_at <= ? THEN 'expired'
    WHEN retires_at <= ? THEN 'retired' ELSE 'active' END, count(*) FROM api_key GROUP BY 1 ORDER BY 1"""
_NEWEST_CHANGE: Final = "SELECT id, at, action, actor FROM audit ORDER BY id DESC LIMIT 1"
_SIZE: Final = """SELECT coalesce(sum(pg_total_relation_size(pg_class.oid)), 0)::bigint FROM pg_class
    JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE nspname = ? AND relkind = 'r'"""
_CONNECTIONS: Final = """SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'sidecar' AND pid <> pg_backend_pid()"""


async def info(url: str, *, now: int) -> StoreInfo:
    """now: microseconds. Raises StoreUnavailable."""
    async with _snapshot(url) as connection:
        [(server,)] = await connection.fetch("SHOW server_version")
        [(size,)] = await connection.fetch(_SIZE, (SCHEMA,))
        [(connections,)] = await connection.fetch(_CONNECTIONS)
        known = StoreInfo(
            engine=f"PostgreSQL {server}",
            path=shown_store(url),
            bytes=size,
            version=(await version_of(connection, shown_store(url)))[0],
            newest_version=len(MIGRATIONS),
            connections=connections,
        )
        return await _with_changes(connection, known, now) if 0 < known.version <= len(MIGRATIONS) else known


async def _with_changes(connection: Connection, known: StoreInfo, now: int) -> StoreInfo:
    rows, at, action, actor = next(iter(await connection.fetch(_NEWEST_CHANGE)), (0, None, "", ""))
    [(used_at,)] = await connection.fetch("SELECT max(last_used_at) FROM api_key")
    return replace(
        known,
        keys=dict(await connection.fetch(_STANDINGS, (now, now))),
        audit_rows=rows,
        changed_at=at,
        change=action,
        changed_by=actor,
        used_at=used_at,
    )


# Whether a store is sound: `sidecar store check`. PostgreSQL itself ensures that digests are unique and of the right
# length.

_CHECK_SECONDS: Final = 600.0
_BATCH: Final = 2_000
_WRONG: Final = {
    """SELECT count(*) FROM api_key
        WHERE algorithm !~ '^(sha256|(hmac-sha256|sha256-pepper-first|sha256-pepper-last):.{8})$'""": (
        "{keys} with a digest of an algorithm that this program does not know"
    ),
    "SELECT count(*) FROM api_key WHERE NOT EXISTS (SELECT FROM audit WHERE key_id = api_key.id)": (
        "{keys} without a row in the audit: the sidecar did not store them"
    ),
    """SELECT count(DISTINCT key_id) FROM audit
        WHERE NOT EXISTS (SELECT FROM api_key WHERE id = audit.key_id)""": (
        "{keys} in the audit that the store does not have: the sidecar did not remove them"
    ),
}
"""A query that counts keys, and how to describe them if there are any."""


async def check(url: str, *, progress: Callable[[int], None] = lambda rows: None) -> Checked:
    """Check everything in the store. `progress` receives the number of audit rows so far.

    Raises StoreUnavailable if it cannot be read at all.
    """
    async with _snapshot(url) as connection:
        version, _ = await version_of(connection, shown_store(url))
        if not 0 < version <= len(MIGRATIONS):
            return Checked(problems=(_unreadable(version),), version=version)
        [(keys,)] = await connection.fetch("SELECT count(*) FROM api_key")
        audit = await _followed(connection, progress)
        problems = [problem async for problem in _problems(connection)]
        if audit.problem is not None:
            problems.append(f"the audit was tampered with: {audit.problem}")
        return Checked(problems=tuple(problems), version=version, keys=keys, audit=audit)


@asynccontextmanager
async def _snapshot(url: str) -> AsyncIterator[PostgresqlConnection]:
    """Concurrent writes appear in all of the results or in none. Raises StoreUnavailable."""
    connection = await connector(url, _CHECK_SECONDS)()
    try:
        await connection.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield connection
    finally:
        await connection.close()


def _unreadable(version: int) -> str:
    if version == 0:
        return f"the store is empty: {RESTORE_DUMP}"
    return f"schema version {version} is newer than this program's {len(MIGRATIONS)}: use a newer sidecar"


async def _problems(connection: Connection) -> AsyncIterator[str]:
    for sql, what in _WRONG.items():
        [(wrong,)] = await connection.fetch(sql)
        if wrong:
            yield what.format(keys=counted(wrong, "key"))
    if await connection.fetch("SELECT 1 FROM quota_state WHERE quota = ? LIMIT 1", (COPYING,)):
        yield UNFINISHED
    if not await connection.fetch("SELECT 1 FROM api_key LIMIT 1"):
        return
    for table in OF_KEYS:
        strange = f"key_id <> '' AND NOT EXISTS (SELECT FROM api_key WHERE id = {table}.key_id)"
        [(rows,)] = await connection.fetch(f"SELECT count(*) FROM {table} WHERE {strange}")  # noqa: S608 - names of our own
        if rows:
            yield f"{counted(rows, 'row')} of {table} about keys that the store does not have"


async def _followed(connection: Connection, progress: Callable[[int], None]) -> AuditState:
    walk = Walk()
    ends = await connection.fetch("SELECT id, hash, (SELECT coalesce(max(id), 0) FROM audit) FROM audit_head")
    if len(ends) != 1:
        return AuditState(rows=0, head=str(walk.head), problem="the head of the audit was removed")
    [(number, digest, last_id)] = ends
    sql = f"SELECT {', '.join(CHAINED)}, hash FROM audit WHERE id > ? AND id <= ? ORDER BY id LIMIT {_BATCH}"  # noqa: S608 - names of our own
    while rows := await connection.fetch(sql, (walk.head.id, number)):
        if (problem := next(filter(None, map(walk.step, rows)), None)) is not None:
            return AuditState(rows=walk.rows, head=str(walk.head), problem=problem)
        progress(walk.rows)
    problem = walk.end(Head(id=number, hash=digest), last_id)
    return AuditState(rows=walk.rows, head=str(walk.head), problem=problem)
