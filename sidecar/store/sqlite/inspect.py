"""A report on a SQLite store that changes nothing: neither its schema nor its journal, whatever its version."""

import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from sidecar.keys.ports import StoreUnavailable
from sidecar.store.sqlite.connection import connect, translated
from sidecar.store.sqlite.files import is_there, refuse_strays
from sidecar.store.sqlite.schema import MIGRATIONS, version_of

_LOCK_SECONDS: Final = 1.0
_COUNTS: Final = """SELECT count(*), coalesce(sum(expires_at IS NULL), 0), coalesce(sum(created_at < :oldest), 0)
    FROM api_key WHERE status = 'active'
    AND coalesce(expires_at, :now + 1) > :now AND coalesce(retires_at, :now + 1) > :now"""
_NEWEST: Final = "SELECT max(max(created_at), coalesce(max(last_used_at), 0)) FROM api_key"
_LAST_CHANGE: Final = "SELECT id, at FROM audit ORDER BY id DESC LIMIT 1"
_ALGORITHMS: Final = "SELECT algorithm, count(*) FROM api_key WHERE status <> 'revoked' GROUP BY algorithm"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreReport:
    """The schema, the journal, and what is known of the keys; nothing of these in a schema newer than the program's."""

    version: int
    """0: empty."""
    newest_version: int
    """The program's own."""
    journal: str
    newest_at: int = 0
    """The latest time that was written, in microseconds; 0 for none."""
    audit_rows: int = 0
    active: int = 0
    """Keys that are taken now."""
    without_expiry: int = 0
    too_old: int = 0
    """Of the active ones, those older than asked for."""
    algorithms: Mapping[str, int]
    """Keys that are not revoked, by the algorithm of their digest."""


def inspect(path: str, *, now: int, max_age_seconds: float | None) -> StoreReport:
    """now: microseconds. Blocks. Raises StoreUnavailable."""
    if not is_there(path):
        raise StoreUnavailable(f"there is no key store at {path}")
    refuse_strays(path)
    oldest = 0 if max_age_seconds is None else now - int(max_age_seconds * 1_000_000)
    with translated(path), closing(connect(path, timeout=_LOCK_SECONDS, mode="ro")) as connection:
        version = version_of(connection, path)
        [(journal,)] = connection.execute("PRAGMA journal_mode")
        known = StoreReport(version=version, newest_version=len(MIGRATIONS), journal=journal, algorithms={})
        return _with_keys(connection, known, now, oldest) if 0 < version <= len(MIGRATIONS) else known


def lock_seconds(path: str) -> float:
    """How long it took to get the right to write, which is given back. Blocks. Raises StoreUnavailable."""
    with translated(path), closing(connect(path, timeout=_LOCK_SECONDS)) as connection:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
        started = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        taken = time.perf_counter() - started
        connection.execute("ROLLBACK")
        return taken


def _with_keys(connection: sqlite3.Connection, known: StoreReport, now: int, oldest: int) -> StoreReport:
    [(active, without_expiry, too_old)] = connection.execute(_COUNTS, {"now": now, "oldest": oldest})
    [(newest,)] = connection.execute(_NEWEST)
    rows, changed = next(connection.execute(_LAST_CHANGE), (0, 0))
    return StoreReport(
        version=known.version,
        newest_version=known.newest_version,
        journal=known.journal,
        newest_at=max(newest or 0, changed),
        audit_rows=rows,
        active=active,
        without_expiry=without_expiry,
        too_old=too_old,
        algorithms=dict(connection.execute(_ALGORITHMS).fetchall()),
    )
