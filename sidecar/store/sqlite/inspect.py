"""Reports on a SQLite store of any version, without changing anything: neither its schema nor its journal.

All functions block.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

from sidecar.core.units import counted
from sidecar.keys.ports import RESTORE, AuditState, StoreUnavailable
from sidecar.store.audit import CHAINED, COPYING, UNFINISHED, Head, Walk
from sidecar.store.sqlite.connection import connect, translated
from sidecar.store.sqlite.files import COMPANIONS, holders, is_there, refuse_strays
from sidecar.store.sqlite.schema import MIGRATIONS, OBJECTS, schema_of, version_of

_LOCK_SECONDS: Final = 1.0
_COUNTS: Final = """SELECT count(*), coalesce(sum(expires_at IS NULL), 0), coalesce(sum(created_at < :oldest), 0)
    FROM api_key WHERE status = 'active'
    AND coalesce(expires_at, :now + 1) > :now AND coalesce(retires_at, :now + 1) > :now"""
_NEWEST: Final = "SELECT max(max(created_at), coalesce(max(last_used_at), 0)) FROM api_key"
_LAST_CHANGE: Final = "SELECT id, at FROM audit ORDER BY id DESC LIMIT 1"
_ALGORITHMS: Final = "SELECT algorithm, count(*) FROM api_key WHERE status <> 'revoked' GROUP BY algorithm"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreReport:
    """The schema, the journal, and facts about the keys, unless the schema is newer than the program's."""

    version: int
    """0: empty."""
    newest_version: int
    """The program's own."""
    journal: str
    newest_at: int = 0
    """The latest time that was written, in microseconds; 0 for none."""
    audit_rows: int = 0
    active: int = 0
    """Keys that are valid now."""
    without_expiry: int = 0
    too_old: int = 0
    """Active keys that are older than asked for."""
    algorithms: Mapping[str, int]
    """Keys that are not revoked, by the algorithm of their digest."""


def inspect(path: str, *, now: int, max_age_seconds: float | None) -> StoreReport:
    """now: microseconds. Blocks. Raises StoreUnavailable."""
    oldest = 0 if max_age_seconds is None else now - int(max_age_seconds * 1_000_000)
    with opened_to_read(path) as connection:
        version = version_of(connection, path)
        [(journal,)] = connection.execute("PRAGMA journal_mode")
        known = StoreReport(version=version, newest_version=len(MIGRATIONS), journal=journal, algorithms={})
        return _with_keys(connection, known, now, oldest) if 0 < version <= len(MIGRATIONS) else known


@contextmanager
def opened_to_read(path: str) -> Iterator[sqlite3.Connection]:
    """A connection that changes nothing. Raises StoreUnavailable, also if there is no store."""
    if not is_there(path):
        raise StoreUnavailable(f"there is no key store at {path}")
    refuse_strays(path)
    with translated(path), closing(connect(path, timeout=_LOCK_SECONDS, mode="ro")) as connection:
        yield connection


def lock_seconds(path: str) -> float:
    """How long it took to get the write lock, which is released again. Blocks. Raises StoreUnavailable."""
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


# What operators ask about a store: `sidecar store info`.


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreInfo:
    """What a store contains, and which processes have it open."""

    engine: str
    path: str
    bytes: int
    """Of the database and its log."""
    version: int
    """Of the schema; 0: empty."""
    newest_version: int
    """This program's own version, the newest that it reads; it migrates older ones."""
    keys: Mapping[str, int] = field(default_factory=dict)
    """By status, as it is now."""
    audit_rows: int = 0
    changed_at: int | None = None
    """The newest change of a key, in microseconds; None for none."""
    change: str = ""
    changed_by: str = ""
    used_at: int | None = None
    """The last use of any key."""
    holders: Mapping[int, str] = field(default_factory=dict)
    """The processes that have it open: id to program name. Those in other containers are unknown."""
    connections: int | None = None
    """Of sidecars and commands, to a server; None for a file."""


_STANDINGS: Final = """SELECT CASE WHEN status <> 'active' THEN status WHEN expires_at <= :now THEN 'expired'
    WHEN retires_at <= :now THEN 'retired' ELSE 'active' END, count(*) FROM api_key GROUP BY 1 ORDER BY 1"""
_NEWEST_CHANGE: Final = "SELECT id, at, action, actor FROM audit ORDER BY id DESC LIMIT 1"


def info(path: str, *, now: int) -> StoreInfo:
    """now: microseconds. Raises StoreUnavailable."""
    with opened_to_read(path) as connection:
        known = StoreInfo(
            engine=f"SQLite {sqlite3.sqlite_version}",
            path=path,
            bytes=sum(_size_of(path + suffix) for suffix in ("", *COMPANIONS[:1])),
            version=version_of(connection, path),
            newest_version=len(MIGRATIONS),
            holders=holders(path),
        )
        if not 0 < known.version <= len(MIGRATIONS):
            return known
        rows, at, action, actor = next(connection.execute(_NEWEST_CHANGE), (0, None, "", ""))
        [(used_at,)] = connection.execute("SELECT max(last_used_at) FROM api_key")
        return replace(
            known,
            keys=dict(connection.execute(_STANDINGS, {"now": now}).fetchall()),
            audit_rows=rows,
            changed_at=at,
            change=action,
            changed_by=actor,
            used_at=used_at,
        )


def _size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


# Whether a store is sound: `sidecar store check`, and every backup.


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The result. `problems` is empty if the store is sound."""

    problems: tuple[str, ...]
    version: int
    keys: int = 0
    audit: AuditState | None = None
    """None if the chain could not be followed."""


_MOST_DAMAGES: Final = 10
_NULL: Final = "NULL value in "
_CHAIN: Final = "SELECT id, hash, (SELECT coalesce(max(id), 0) FROM audit) FROM audit_head"
_CHAINED_SINCE: Final = 2
"""The first schema whose audit is a chain, and whose keys are in a search index."""
_TOLD_EVERY: Final = 1_000

_WRONG: Final = {
    "SELECT count(*) FROM api_key WHERE typeof(digest) <> 'blob' OR length(digest) <> 32": (
        "{keys} with a digest that is not 32 bytes"
    ),
    """SELECT count(*) FROM api_key WHERE algorithm <> 'sha256' AND algorithm NOT GLOB 'hmac-sha256:????????'
        AND algorithm NOT GLOB 'sha256-pepper-first:????????' AND algorithm NOT GLOB 'sha256-pepper-last:????????'""": (
        "{keys} with a digest of an algorithm that this program does not know"
    ),
    "SELECT count(*) FROM api_key WHERE NOT (json_valid(scopes) AND json_valid(quotas) AND json_valid(metadata))": (
        "{keys} with damaged scopes, quotas or metadata"
    ),
    "SELECT count(*) FROM api_key WHERE id NOT IN (SELECT key_id FROM audit)": (
        "{keys} without a row in the audit: the sidecar did not store them"
    ),
    "SELECT count(*) FROM (SELECT DISTINCT key_id FROM audit) WHERE key_id NOT IN (SELECT id FROM api_key)": (
        "{keys} in the audit that the store does not have: the sidecar did not remove them"
    ),
}
"""A query that counts keys, and how to describe them if there are any."""
OF_KEYS: Final = ("usage", "usage_day", "key_network", "unusual", "idempotency")
"""Tables whose rows name a key, or no key."""
_STATUSES: Final = ("active", "disabled", "revoked")
_WORD_OF_STATUS: Final = "\ue000s"
"""The words of the search index for a key with a status; see schema.py."""


def check(path: str, *, progress: Callable[[int], None] = lambda rows: None) -> Checked:
    """Check everything in the store. `progress` receives the number of audit rows so far.

    Raises StoreUnavailable if it cannot be read at all.
    """
    with opened_to_read(path) as connection:
        connection.execute("BEGIN")  # Concurrent writes appear in all of the results or in none.
        damage = list(islice(_damages(connection), _MOST_DAMAGES))
        if damage:
            return Checked(problems=(*damage, f"the file is damaged: {RESTORE}"), version=0)
        version = version_of(connection, path)
        if version == 0 or version > len(MIGRATIONS):
            return Checked(problems=(_unreadable(version),), version=version)
        [(keys,)] = connection.execute("SELECT count(*) FROM api_key")
        audit = _followed(connection, progress) if version >= _CHAINED_SINCE else None
        problems = (*_problems(connection, version), *_tampered(audit))
        return Checked(problems=problems, version=version, keys=keys, audit=audit)


def _damages(connection: sqlite3.Connection) -> Iterator[str]:
    """What SQLite finds wrong with its pages, indexes and constraints.

    Version 3.40 wrongly reports NULL in columns after the primary key of a table without rowid, so such a column is
    checked again. (All findings are requested, so that these do not crowd out real ones.)
    """
    at_fault: dict[str, bool] = {}
    for (found,) in connection.execute(f"PRAGMA integrity_check({2**31 - 1})"):
        column = found.removeprefix(_NULL)
        if column != found:
            if column not in at_fault:
                at_fault[column] = _has_null(connection, *column.split("."))
            if not at_fault[column]:
                continue
        if found != "ok":
            yield found


def _has_null(connection: sqlite3.Connection, table: str, column: str) -> bool:
    sql = f'SELECT 1 FROM "{table}" WHERE typeof("{column}") = \'null\' LIMIT 1'  # noqa: S608 - names of the schema
    return bool(connection.execute(sql).fetchall())


def _unreadable(version: int) -> str:
    if version == 0:
        return f"the store is empty: {RESTORE}"
    return f"schema version {version} is newer than this program's {len(MIGRATIONS)}: use a newer sidecar"


def _tampered(audit: AuditState | None) -> Iterator[str]:
    if audit is not None and audit.problem is not None:
        yield f"the audit was tampered with: {audit.problem}"


def _problems(connection: sqlite3.Connection, version: int) -> Iterator[str]:
    for kind, name in sorted(schema_of(version) - _objects(connection)):
        yield f"the {kind} {name} is missing: {RESTORE}"
    for sql, what in _WRONG.items():
        [(wrong,)] = connection.execute(sql)
        if wrong:
            yield what.format(keys=counted(wrong, "key"))
    if connection.execute("SELECT 1 FROM quota_state WHERE quota = ? LIMIT 1", (COPYING,)).fetchall():
        yield UNFINISHED
    if version >= _CHAINED_SINCE:
        yield from _orphans(connection)
        yield from _lost_words(connection)


def _objects(connection: sqlite3.Connection) -> set[tuple[str, str]]:
    return {(kind, name) for kind, name in connection.execute(OBJECTS)}


def _orphans(connection: sqlite3.Connection) -> Iterator[str]:
    """Rows of keys that the store does not have. A store without keys may hold the use of keys stored elsewhere."""
    if not connection.execute("SELECT 1 FROM api_key LIMIT 1").fetchall():
        return
    for table in OF_KEYS:
        sql = f"SELECT count(*) FROM {table} WHERE key_id <> '' AND key_id NOT IN (SELECT id FROM api_key)"  # noqa: S608 - names of our own
        [(rows,)] = connection.execute(sql)
        if rows:
            yield f"{counted(rows, 'row')} of {table} about keys that the store does not have"


def _lost_words(connection: sqlite3.Connection) -> Iterator[str]:
    """Keys that the search index lacks, or has with other words."""
    for status in _STATUSES:
        [(stored,)] = connection.execute("SELECT count(*) FROM api_key WHERE status = ?", (status,))
        word = f'"{_WORD_OF_STATUS}{status}"'
        [(found,)] = connection.execute("SELECT count(*) FROM key_text WHERE key_text MATCH ?", (word,))
        if stored != found:
            yield f"the search index has {counted(found, f'{status} key')} of {stored}: {RESTORE}"


def _followed(connection: sqlite3.Connection, progress: Callable[[int], None]) -> AuditState:
    walk = Walk()
    ends = connection.execute(_CHAIN).fetchall()
    if len(ends) != 1:
        return AuditState(rows=0, head=str(walk.head), problem="the head of the audit was removed")
    [(number, digest, last_id)] = ends
    sql = f"SELECT {', '.join(CHAINED)}, hash FROM audit WHERE id <= ? ORDER BY id"  # noqa: S608 - names of our own
    for row in connection.execute(sql, (number,)):
        if (problem := walk.step(row)) is not None:
            return AuditState(rows=walk.rows, head=str(walk.head), problem=problem)
        if walk.rows % _TOLD_EVERY == 0:
            progress(walk.rows)
    problem = walk.end(Head(id=number, hash=digest), last_id)
    return AuditState(rows=walk.rows, head=str(walk.head), problem=problem)
