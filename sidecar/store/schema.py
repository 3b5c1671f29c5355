"""The schema of the SQLite store, and how an older one becomes it. Only forward; each migration is one transaction."""

import sqlite3
from collections.abc import Callable

from sidecar.keys.audit import chain_unchained
from sidecar.keys.migration_two import SECOND
from sidecar.keys.ports import StoreUnavailable

_NO_USE = (
    "id, name, prefix, digest, algorithm, tenant, environment, scopes, plan, quotas, metadata, status, created_at, "
    "created_by, expires_at, disabled_at, revoked_at, retires_at, replaces"
)
# The generation is a random number: a counter could come back to an old value after a backup is restored in place.
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

Step = str | Callable[[sqlite3.Connection], None]

MIGRATIONS: tuple[tuple[Step, ...], ...] = (_FIRST, (*SECOND, chain_unchained))
"""Steps of each migration; the n-th makes schema version n."""


def version_of(connection: sqlite3.Connection, path: str) -> int:
    """The schema version; 0 for an empty file. Raises StoreUnavailable for a database of something else."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return 0
    if "schema_version" not in tables or "api_key" not in tables:
        raise StoreUnavailable(f"the SQLite database {path} is not a key store: name another file")
    versions = [int(version) for (version,) in connection.execute("SELECT version FROM schema_version")]
    if len(versions) != 1:
        raise StoreUnavailable(f"the schema version of the key store {path} is damaged: restore it from a backup")
    return versions[0]


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Bring the schema to the newest version. `connection` is in autocommit mode; `path` is for messages.

    Whoever is killed at any step leaves the last whole version, from which the next call goes on.
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
