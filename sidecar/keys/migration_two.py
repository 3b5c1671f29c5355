"""From the first schema to the second: pages and search over a million keys, a chained audit, usage by day."""

_NO_USE = (
    "id, name, prefix, digest, algorithm, tenant, environment, scopes, plan, quotas, metadata, status, created_at, "
    "created_by, expires_at, disabled_at, revoked_at, retires_at, replaces"
)
_BUMP = "UPDATE generation SET value = random();"


def _text_of(row: str) -> str:
    """What of a row is searched for by word: its name and tenant, and as single words what it is filtered by.

    Those begin with a character of the private use area, which no name holds, so that no search meets them.
    """
    mark = "char(57344)"
    facets = " || ' ' || ".join(
        f"{mark} || '{letter}' || {value}"
        for letter, value in (
            ("t", f"hex(coalesce({row}.tenant, ''))"),
            ("e", f"hex(coalesce({row}.environment, ''))"),
            ("s", f"{row}.status"),
            ("x", f"({row}.expires_at IS NOT NULL)"),
            ("r", f"({row}.retires_at IS NOT NULL)"),
        )
    )
    return f"{row}.serial, {row}.name || ' ' || coalesce({row}.tenant, '') || ' ' || {facets}"


_ADD_TEXT = "INSERT INTO key_text (rowid, words)"
_DROP_TEXT = "INSERT INTO key_text (key_text, rowid, words) SELECT 'delete',"

ADD_TEXT_AFTER = f"{_ADD_TEXT} SELECT {_text_of('api_key')} FROM api_key WHERE serial > ?"  # noqa: S608 - text of our own
"""The text of all keys after a serial, at once: a quarter of what it costs one by one."""

# Rebuilt rather than altered: `serial` is what pages and search go by, and only a declared one outlives a VACUUM.
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
    f"CREATE TRIGGER api_key_added AFTER INSERT ON api_key BEGIN {_BUMP} END",
    f"CREATE TRIGGER api_key_removed AFTER DELETE ON api_key BEGIN {_BUMP} END",
    f"CREATE TRIGGER api_key_changed AFTER UPDATE OF {_NO_USE}, replaced_at ON api_key BEGIN {_BUMP} END",
)

_SEARCH = (
    """CREATE VIRTUAL TABLE key_text USING fts5 (
        words, content = '', columnsize = 0, detail = none, prefix = '1 2 3 4 5 6 7 8',
        tokenize = 'unicode61 remove_diacritics 2'
    )""",
    f"{_ADD_TEXT} SELECT {_text_of('api_key')} FROM api_key",  # noqa: S608 - text of our own
    f"""CREATE TRIGGER key_text_added AFTER INSERT ON api_key BEGIN
        {_ADD_TEXT} SELECT {_text_of("new")}; END""",
    f"""CREATE TRIGGER key_text_removed AFTER DELETE ON api_key BEGIN
        {_DROP_TEXT} {_text_of("old")}; END""",
    f"""CREATE TRIGGER key_text_changed
        AFTER UPDATE OF name, tenant, environment, status, expires_at, retires_at ON api_key BEGIN
        {_DROP_TEXT} {_text_of("old")};
        {_ADD_TEXT} SELECT {_text_of("new")}; END""",
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
    # Sums over all keys stand beside the keys, under no id.
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
