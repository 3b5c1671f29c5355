"""A report on a store in PostgreSQL that changes nothing, whatever its schema version."""

import time
from dataclasses import replace
from typing import Final

from sidecar.config.store_url import shown_store
from sidecar.store.connection import Connection
from sidecar.store.postgresql.connection import CHANGE_LOCK, READ_SECONDS, connector
from sidecar.store.postgresql.schema import MIGRATIONS, version_of
from sidecar.store.sqlite.inspect import StoreReport

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
    """How long it takes to get the right to change keys, which is given back. Raises StoreUnavailable."""
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
