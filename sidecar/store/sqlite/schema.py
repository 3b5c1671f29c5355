"""The schema of the SQLite store, its migrations, and what makes a bulk import cheap.

Migrations only go forward; each is one transaction.
"""

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from functools import cache
from typing import Final

from sidecar.keys.ports import RESTORE, StoreUnavailable
from sidecar.store.audit import CHAINED, Head, linked
from sidecar.store.connection import Connection

# From the first schema to the second: pages and search over a million keys, a chained audit, usage by day.


_NO_USE = (
    "id, name, prefix, digest, algorithm, tenant, environment, scopes, plan, quotas, metadata, status, created_at, "
    "created_by, expires_at, disabled_at, revoked_at, retires_at, replaces"
)
_SECOND_BUMP = "UPDATE generation SET value = random();"


_MARK: Final = "char(57344)"


def _text_of(row: str, *, dates: Callable[[str, str], str]) -> str:
    """The search words of a row: those of its name and tenant, and one for each filter.

    A filter's word begins with a private-use character, which no name contains, so that no search finds it.
    dates: makes the words for whether the row has a date, from a letter and a column.
    """
    facets = (
        *(
            f"{_MARK} || '{letter}' || {value}"
            for letter, value in (
                ("t", f"hex(coalesce({row}.tenant, ''))"),
                ("e", f"hex(coalesce({row}.environment, ''))"),
                ("s", f"{row}.status"),
            )
        ),
        dates("x", f"{row}.expires_at"),
        dates("r", f"{row}.retires_at"),
    )
    words = " || ' ' || ".join((f"{row}.name", f"coalesce({row}.tenant, '')", *facets))
    return f"{row}.serial, {words}"


def _either_word(letter: str, column: str) -> str:
    """`x1` or `x0`."""
    return f"{_MARK} || '{letter}' || ({column} IS NOT NULL)"


def _word_or_none(letter: str, column: str) -> str:
    """`x1` or nothing: nobody searches for keys without such a date, and each word costs four entries."""
    return f"iif({column} IS NULL, '', {_MARK} || '{letter}1')"


_ADD_TEXT = "INSERT INTO key_text (rowid, words)"
_DROP_TEXT = "INSERT INTO key_text (key_text, rowid, words) SELECT 'delete',"

# Rebuilt, not altered: pages and search need `serial`, and only a declared column survives a VACUUM.
_KEYS = (
    """CREATE TABLE api_key_2 (
        serial INTEGER PRIMARY KEY,
        id TEXT UNIQUE NOT NULL,
        name TEXT NOT NULL,
        prefix TEXT NOT NULL,
        digest BLOB NOT NULL CHECK (length(digest) = 32),
        algorithm TEXT NOT NULL,
        tenant TEXT,
        environment TEXT,
        scopes TEXT NOT NULL,
        plan TEXT,
        quotas TEXT NOT NULL,
        metadata TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('active', 'disabled', 'revoked')),
        created_at INTEGER NOT NULL,
        created_by TEXT NOT NULL,
        expires_at INTEGER,
        disabled_at INTEGER,
        revoked_at INTEGER,
        replaced_at INTEGER,
        retires_at INTEGER,
        replaces TEXT,
        last_used_at INTEGER,
        last_used_address TEXT,
        last_used_agent TEXT
    )""",
    f"""INSERT INTO api_key_2 ({_NO_USE}, last_used_at)
        SELECT {_NO_USE}, last_used_at FROM api_key ORDER BY created_at, id""",  # noqa: S608 - column names of our own
    "DROP TABLE api_key",
    "ALTER TABLE api_key_2 RENAME TO api_key",
    "CREATE UNIQUE INDEX api_key_digest ON api_key (digest)",
    "CREATE INDEX api_key_prefix ON api_key (prefix)",
    "CREATE INDEX api_key_tenant ON api_key (tenant)",
    "CREATE INDEX api_key_environment ON api_key (environment)",
    "CREATE INDEX api_key_status ON api_key (status)",
    "CREATE INDEX api_key_standing ON api_key (status, environment, expires_at)",
    "CREATE INDEX api_key_algorithm ON api_key (algorithm) WHERE status <> 'revoked'",
    "CREATE INDEX api_key_replaces ON api_key (replaces) WHERE replaces IS NOT NULL",
    "CREATE INDEX api_key_age ON api_key (created_at) WHERE status = 'active' AND retires_at IS NULL",
    """CREATE INDEX api_key_expiry ON api_key (expires_at, tenant, environment)
        WHERE status = 'active' AND expires_at IS NOT NULL""",
    """CREATE INDEX api_key_retirement ON api_key (retires_at, expires_at, tenant, environment)
        WHERE status = 'active' AND retires_at IS NOT NULL""",
    f"CREATE TRIGGER api_key_added AFTER INSERT ON api_key BEGIN {_SECOND_BUMP} END",
    f"CREATE TRIGGER api_key_removed AFTER DELETE ON api_key BEGIN {_SECOND_BUMP} END",
    f"CREATE TRIGGER api_key_changed AFTER UPDATE OF {_NO_USE}, replaced_at ON api_key BEGIN {_SECOND_BUMP} END",
)


def _text_triggers(dates: Callable[[str, str], str]) -> tuple[str, ...]:
    old, new = _text_of("old", dates=dates), _text_of("new", dates=dates)
    return (
        f"""CREATE TRIGGER key_text_added AFTER INSERT ON api_key BEGIN
        {_ADD_TEXT} SELECT {new}; END""",
        f"""CREATE TRIGGER key_text_removed AFTER DELETE ON api_key BEGIN
        {_DROP_TEXT} {old}; END""",
        f"""CREATE TRIGGER key_text_changed
        AFTER UPDATE OF name, tenant, environment, status, expires_at, retires_at ON api_key BEGIN
        {_DROP_TEXT} {old};
        {_ADD_TEXT} SELECT {new}; END""",
    )


_SEARCH = (
    """CREATE VIRTUAL TABLE key_text USING fts5 (
        words, content = '', columnsize = 0, detail = none, prefix = '1 2 3 4 5 6 7 8',
        tokenize = 'unicode61 remove_diacritics 2'
    )""",
    f"{_ADD_TEXT} SELECT {_text_of('api_key', dates=_either_word)} FROM api_key",  # noqa: S608 - text of our own
    *_text_triggers(_either_word),
)

_AUDIT = (
    "ALTER TABLE audit ADD COLUMN source TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE audit ADD COLUMN tenant TEXT",
    "ALTER TABLE audit ADD COLUMN hash BLOB",
    "UPDATE audit SET tenant = json_extract(coalesce(after, before), '$.tenant')",
    "CREATE TABLE audit_head (one INTEGER PRIMARY KEY CHECK (one = 1), id INTEGER NOT NULL, hash BLOB NOT NULL)",
    "INSERT INTO audit_head VALUES (1, 0, zeroblob(32))",
    "CREATE INDEX audit_tenant ON audit (tenant)",
    "CREATE INDEX audit_actor ON audit (actor)",
    "CREATE INDEX audit_action ON audit (action)",
    "CREATE INDEX audit_at ON audit (at)",
)

_REST = (
    """CREATE TABLE idempotency (
        token_name TEXT NOT NULL,
        idempotency_key TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        key_id TEXT NOT NULL,
        at INTEGER NOT NULL,
        PRIMARY KEY (token_name, idempotency_key)
    ) WITHOUT ROWID""",
    "CREATE INDEX idempotency_at ON idempotency (at)",
    """CREATE TABLE usage_day (
        key_id TEXT NOT NULL,
        day INTEGER NOT NULL,
        route TEXT NOT NULL,
        status_class INTEGER NOT NULL,
        count INTEGER NOT NULL,
        PRIMARY KEY (key_id, day, route, status_class)
    ) WITHOUT ROWID""",
    # Sums over all keys are stored next to the keys, with an empty id.
    """INSERT INTO usage (key_id, hour, route, status_class, count)
        SELECT '', hour, route, status_class, sum(count) FROM usage GROUP BY hour, route, status_class""",
    "CREATE INDEX usage_hour ON usage (hour)",
    "CREATE INDEX usage_day_day ON usage_day (day)",
    """CREATE TABLE key_network (
        key_id TEXT NOT NULL,
        network TEXT NOT NULL,
        seen_at INTEGER NOT NULL,
        PRIMARY KEY (key_id, network)
    ) WITHOUT ROWID""",
    "CREATE INDEX key_network_seen ON key_network (seen_at)",
    """CREATE TABLE unusual (
        id INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        kind TEXT NOT NULL,
        key_id TEXT,
        tenant TEXT,
        address TEXT NOT NULL,
        detail TEXT NOT NULL
    )""",
    "CREATE INDEX unusual_at ON unusual (at)",
    "CREATE INDEX unusual_tenant ON unusual (tenant)",
)

SECOND: tuple[str, ...] = (*_KEYS, *_SEARCH, *_AUDIT, *_REST)

# From the second schema to the third: usage by reason, and the keys with limits of their own.


def _with_reason(table: str, unit: str) -> tuple[str, ...]:
    """Rebuild a table of counts, because a primary key cannot be altered. Older counts have no reason."""
    counted = f"key_id, {unit}, route, status_class"
    return (
        f"""CREATE TABLE {table}_3 (
            key_id TEXT NOT NULL,
            {unit} INTEGER NOT NULL,
            route TEXT NOT NULL,
            status_class INTEGER NOT NULL,
            count INTEGER NOT NULL,
            reason TEXT NOT NULL,
            PRIMARY KEY ({counted}, reason)
        ) WITHOUT ROWID""",
        f"INSERT INTO {table}_3 SELECT {counted}, count, '' FROM {table}",  # noqa: S608 - names of our own
        f"DROP TABLE {table}",
        f"ALTER TABLE {table}_3 RENAME TO {table}",
        f"CREATE INDEX {table}_{unit} ON {table} ({unit})",
    )


THIRD: tuple[str, ...] = (
    *_with_reason("usage", "hour"),
    *_with_reason("usage_day", "day"),
    "CREATE INDEX api_key_own_limits ON api_key (id) WHERE quotas <> '{}'",
)

_CHAINED_AT_ONCE: Final = 10_000


def _chain_audit(connection: sqlite3.Connection) -> None:
    """Chain the rows of an audit without hashes, unchanged, and number them without gaps."""
    head, done = Head(), 0
    sql = f"SELECT {', '.join(CHAINED)} FROM audit WHERE id > ? ORDER BY id LIMIT {_CHAINED_AT_ONCE}"  # noqa: S608 - no input
    while rows := connection.execute(sql, (done,)).fetchall():
        done = rows[-1][0]
        for old, new in zip(rows, linked(head, (row[1:] for row in rows)), strict=True):
            connection.execute("UPDATE audit SET id = ?, hash = ? WHERE id = ?", (new[0], new[-1], old[0]))
            head = Head(id=new[0], hash=new[-1])
    connection.execute("UPDATE audit_head SET id = ?, hash = ?", (head.id, head.hash))


# The generation is a random number: a counter could return to an old value after a backup is restored in place.
_BUMP = "BEGIN UPDATE generation SET value = random(); END"

_FIRST = (
    """CREATE TABLE api_key (
        id TEXT PRIMARY KEY NOT NULL,
        name TEXT NOT NULL,
        prefix TEXT NOT NULL,
        digest BLOB NOT NULL CHECK (length(digest) = 32),
        algorithm TEXT NOT NULL,
        tenant TEXT,
        environment TEXT,
        scopes TEXT NOT NULL,
        plan TEXT,
        quotas TEXT NOT NULL,
        metadata TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('active', 'disabled', 'revoked')),
        created_at INTEGER NOT NULL,
        created_by TEXT NOT NULL,
        expires_at INTEGER,
        disabled_at INTEGER,
        revoked_at INTEGER,
        retires_at INTEGER,
        replaces TEXT,
        last_used_at INTEGER
    )""",
    "CREATE UNIQUE INDEX api_key_digest ON api_key (digest)",
    "CREATE INDEX api_key_prefix ON api_key (prefix)",
    "CREATE INDEX api_key_tenant ON api_key (tenant, id)",
    "CREATE INDEX api_key_environment ON api_key (environment, id)",
    "CREATE INDEX api_key_status ON api_key (status, id)",
    "CREATE INDEX api_key_standing ON api_key (status, environment, expires_at)",
    "CREATE INDEX api_key_algorithm ON api_key (algorithm) WHERE status <> 'revoked'",
    """CREATE TABLE usage (
        key_id TEXT NOT NULL,
        hour INTEGER NOT NULL,
        route TEXT NOT NULL,
        status_class INTEGER NOT NULL,
        count INTEGER NOT NULL,
        PRIMARY KEY (key_id, hour, route, status_class)
    ) WITHOUT ROWID""",
    """CREATE TABLE audit (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        at INTEGER NOT NULL,
        actor TEXT NOT NULL,
        action TEXT NOT NULL,
        key_id TEXT NOT NULL,
        before TEXT,
        after TEXT
    )""",
    "CREATE INDEX audit_key ON audit (key_id, id)",
    """CREATE TABLE quota_state (
        quota TEXT NOT NULL,
        subject TEXT NOT NULL,
        state TEXT NOT NULL,
        expires_at INTEGER NOT NULL,
        PRIMARY KEY (quota, subject)
    ) WITHOUT ROWID""",
    "CREATE INDEX quota_state_expiry ON quota_state (expires_at)",
    "CREATE TABLE generation (value INTEGER NOT NULL)",
    "INSERT INTO generation VALUES (random())",
    f"CREATE TRIGGER api_key_added AFTER INSERT ON api_key {_BUMP}",
    f"CREATE TRIGGER api_key_removed AFTER DELETE ON api_key {_BUMP}",
    f"CREATE TRIGGER api_key_changed AFTER UPDATE OF {_NO_USE} ON api_key {_BUMP}",
)

# From the second to the third: keys in orders other than by age. Every statement that sorts names its index.
THE_LAST: Final = 2**63 - 1
SORTED_BY: Final = {
    "name": ("api_key_by_name", "name COLLATE NOCASE"),
    "tenant": ("api_key_by_tenant", "coalesce(tenant, '')"),
    "used": ("api_key_by_use", "coalesce(last_used_at, 0)"),
    "unused": ("api_key_by_use", "coalesce(last_used_at, 0)"),
    "ends": ("api_key_by_end", f"min(coalesce(expires_at, {THE_LAST}), coalesce(retires_at, {THE_LAST}))"),
}
"""Index and expression by order."""

FOURTH: Final = tuple(f"CREATE INDEX {index} ON api_key ({by})" for index, by in dict(SORTED_BY.values()).items())

# From the fourth to the fifth: which keys changed, so that processes only reread these.

KEPT_CHANGES: Final = 10_000
"""This many changes are kept. A process that missed more assumes that every key changed."""
_NOTE_CHANGE: Final = f"""BEGIN
    UPDATE generation SET value = random();
    INSERT INTO key_change (token, key_id) VALUES (random(), old.id);
    DELETE FROM key_change WHERE serial <= last_insert_rowid() - {KEPT_CHANGES};
    END"""  # noqa: S608 - a number of our own

FIFTH: Final = (
    # The token distinguishes changes with the same number, which may exist after a backup is restored in place.
    "CREATE TABLE key_change (serial INTEGER PRIMARY KEY, token INTEGER NOT NULL, key_id TEXT NOT NULL)",
    # Never empty, so that there is always a change to start from.
    "INSERT INTO key_change VALUES (1, random(), '')",
    "DROP TRIGGER api_key_changed",
    "DROP TRIGGER api_key_removed",
    f"CREATE TRIGGER api_key_removed AFTER DELETE ON api_key {_NOTE_CHANGE}",
    f"CREATE TRIGGER api_key_changed AFTER UPDATE OF {_NO_USE}, replaced_at ON api_key {_NOTE_CHANGE}",
)

# From the fifth to the sixth: a key without an end has no word for that. Older keys keep theirs, which nobody reads.
SIXTH: Final = (
    *(f"DROP TRIGGER key_text_{event}" for event in ("added", "removed", "changed")),
    *_text_triggers(_word_or_none),
)

Step = str | Callable[[sqlite3.Connection], None]

MIGRATIONS: tuple[tuple[Step, ...], ...] = (_FIRST, (*SECOND, _chain_audit), THIRD, FOURTH, FIFTH, SIXTH)
"""Steps of each migration; the n-th leads to schema version n."""


def version_of(connection: sqlite3.Connection, path: str) -> int:
    """The schema version; 0 for an empty file. Raises StoreUnavailable for the database of another program."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return 0
    if "schema_version" not in tables or "api_key" not in tables:
        raise StoreUnavailable(f"the SQLite database {path} is not a key store: name another file")
    versions = [int(version) for (version,) in connection.execute("SELECT version FROM schema_version")]
    if len(versions) != 1:
        raise StoreUnavailable(f"the schema version of the key store {path} is damaged: {RESTORE}")
    return versions[0]


OBJECTS: Final = "SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite!_%' ESCAPE '!'"


@cache
def schema_of(version: int) -> frozenset[tuple[str, str]]:
    """Type and name of everything that a store of this version has."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for number in range(version):
            _apply(connection, number)
        return frozenset(connection.execute(OBJECTS))


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Upgrade the schema to the newest version. `connection` is in autocommit mode; `path` is for messages.

    A process killed at any step leaves the last complete version, and the next call continues from it.
    Raises StoreUnavailable for a schema newer than this program.
    """
    while (version := version_of(connection, path)) < len(MIGRATIONS):
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Another process may have migrated while this one waited for the lock.
            if version_of(connection, path) == version:
                _apply(connection, version)
            connection.execute("COMMIT")
        except BaseException:
            connection.rollback()
            raise
    if version > len(MIGRATIONS):
        raise StoreUnavailable(
            f"the key store {path} has schema version {version}, newer than this program's {len(MIGRATIONS)}: "
            "use a newer sidecar"
        )


def _apply(connection: sqlite3.Connection, version: int) -> None:
    if version == 0:
        connection.execute("CREATE TABLE schema_version (version INTEGER NOT NULL)")
        connection.execute("INSERT INTO schema_version VALUES (0)")
    for step in MIGRATIONS[version]:
        if isinstance(step, str):
            connection.execute(step)
        else:
            step(connection)
    connection.execute("UPDATE schema_version SET version = ?", (version + 1,))


# What makes the import of many keys cheap.


_CACHE_KIB: Final = 256 * 1024


@asynccontextmanager
async def in_bulk(connection: Connection) -> AsyncIterator[None]:
    """As InBulk, inside the connection's transaction: B-trees and temporary data stay in memory meanwhile, unless the
    connection already had temporary tables.

    Triggers and indexes stay: a schema change would make statements of other processes fail.
    """
    await connection.execute("PRAGMA temp_store = MEMORY")
    [(cached,)] = await connection.fetch("PRAGMA cache_size")
    await connection.execute(f"PRAGMA cache_size = {-_CACHE_KIB}")
    try:
        yield
    finally:
        await connection.execute(f"PRAGMA cache_size = {cached}")
