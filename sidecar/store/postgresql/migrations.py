"""Brings a PostgreSQL store to this program's schema, even if ten sidecars start at once."""

from typing import Final, Protocol

from sidecar.keys.ports import NoStore, StoreUnavailable
from sidecar.store.connection import Connection
from sidecar.store.postgresql.schema import MIGRATIONS, SCHEMA

_LOCK: Final = 7_301_000
"""Advisory: whoever holds it migrates."""
RUNS_FROM: Final = 1
"""The oldest schema version that this program can use without a migration, for a role that may not migrate."""


class Runner(Connection, Protocol):
    """A connection that runs our own statements."""

    async def run(self, sql: str, *, seconds: float | None = None) -> None: ...


async def version_of(connection: Connection, name: str) -> tuple[int, int]:
    """The schema version and the oldest version of the program that runs on it; (0, 0) if there is no schema.

    Raises StoreUnavailable.
    """
    [(found,)] = await connection.fetch(f"SELECT to_regclass('{SCHEMA}.schema_version') IS NOT NULL")
    if not found:
        return 0, 0
    rows = await connection.fetch(f"SELECT version, oldest_program FROM {SCHEMA}.schema_version")
    if len(rows) != 1:
        raise StoreUnavailable(f"the schema version of the key store {name} is damaged: restore it from a backup")
    return int(rows[0][0]), int(rows[0][1])


async def prepare(connection: Runner, name: str, *, create: bool) -> None:
    """Ensure a schema that this program can use. `name` is for messages.

    connection: close it afterwards, because its settings may have changed.
    Of many processes, one migrates and the others wait. Raises StoreUnavailable; without `create`, also if there is no
    schema: an empty store in place of a lost one would refuse every key.
    """
    version, oldest_program = await version_of(connection, name)
    if version == 0 and not create:
        raise NoStore(
            f"there is no key store in {name}: `sidecar keys issue` or `sidecar store make` makes it, or check the URL"
        )
    if oldest_program > len(MIGRATIONS):
        raise StoreUnavailable(
            f"the key store {name} has schema version {version}, which needs a program of schema version "
            f"{oldest_program} or later; this one's is {len(MIGRATIONS)}: use a newer sidecar"
        )
    if version < len(MIGRATIONS) and await _may_migrate(connection, name, version):
        await _migrate(connection, name)


async def _may_migrate(connection: Runner, name: str, version: int) -> bool:
    if version == 0:
        return True
    [(may,)] = await connection.fetch(f"SELECT has_schema_privilege('{SCHEMA}', 'CREATE')")
    if not may and version < RUNS_FROM:
        raise StoreUnavailable(
            f"the key store {name} has schema version {version}, and this program needs {RUNS_FROM}: run "
            "`sidecar store make` with the administration role"
        )
    return bool(may)


async def _migrate(connection: Runner, name: str) -> None:
    # A session lock, because a transaction that waited for it might still see the old tables. It waits as long as the
    # others need, and is released with the connection at the latest.
    await connection.run("SET lock_timeout = 0; SET statement_timeout = 0")
    await connection.run(f"SELECT pg_advisory_lock({_LOCK})")
    while (version := (await version_of(connection, name))[0]) < len(MIGRATIONS):
        await connection.run("BEGIN")
        try:
            await _apply(connection, version)
            await connection.run("COMMIT")
        except StoreUnavailable:
            await connection.run("ROLLBACK")
            raise


async def _apply(connection: Runner, version: int) -> None:
    if version == 0:
        await _begin(connection)
    statements, oldest_program = MIGRATIONS[version]
    for statement in statements:
        await connection.run(statement)
    reached = f"version = {version + 1}, oldest_program = {oldest_program}"
    await connection.run(f"UPDATE {SCHEMA}.schema_version SET {reached}")


async def _begin(connection: Runner) -> None:
    [(encoding,)] = await connection.fetch("SHOW server_encoding")
    if encoding != "UTF8":
        raise StoreUnavailable(f"the database is encoded in {encoding}: make one with `createdb --encoding UTF8`")
    await connection.run(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
    await connection.run(
        f"CREATE TABLE {SCHEMA}.schema_version (version INTEGER NOT NULL, oldest_program INTEGER NOT NULL)"
    )
    await connection.run(f"INSERT INTO {SCHEMA}.schema_version VALUES (0, 0)")
