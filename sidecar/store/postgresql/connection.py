"""PostgreSQL's connections: for requests, for management, for writes, and one that listens for changes of keys."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any, Final

import asyncpg

from sidecar.config.store_url import password_of, shown_store
from sidecar.core.units import Clock
from sidecar.keys.ports import StoreUnavailable
from sidecar.store.connection import DuplicateRow, Steps, answers_within
from sidecar.store.postgresql.generation import KeyWatch, NotWatched, the_row
from sidecar.store.postgresql.migrations import prepare
from sidecar.store.postgresql.passwords import in_memory, passfile_of, password_of_environ
from sidecar.store.postgresql.replica import Replica
from sidecar.store.postgresql.schema import SCHEMA
from sidecar.store.postgresql.statements import (
    LostConnection,
    arguments,
    reported,
    storable,
    translated,
)
from sidecar.store.postgresql.tls import context_of

CONNECT_SECONDS: Final = 2.0
FIND_SECONDS: Final = 1.0
"""A request waits at most this long, including the wait for a connection."""
READ_SECONDS: Final = 5.0
WRITE_LOCK_SECONDS: Final = 5.0
"""How long a change waits for other changes."""
WRITE_SECONDS: Final = 15.0
"""The longest time for a statement of a change: a part of an import."""
IDLE_SECONDS: Final = 60.0
"""How long a change may be idle before the server aborts it and frees its locks: its process may be unreachable."""

LOOKUP_CONNECTIONS, READ_CONNECTIONS, WRITE_CONNECTIONS = 1, 2, 2
CONNECTIONS: Final = LOOKUP_CONNECTIONS + READ_CONNECTIONS + WRITE_CONNECTIONS + 1
"""Most connections of a process. Requests share one, because waiting lookups are combined into one query."""

_CONNECTIONS_USED: Final = """SELECT current_setting('max_connections')::int
    - current_setting('superuser_reserved_connections')::int, count(*)
    FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"""
_SESSION_MODE: Final = "put PgBouncer in session mode (pool_mode = session), or name PostgreSQL itself"
_FEW: Final = 16
"""Up to this many rows, COPY does not pay."""

_log = logging.getLogger(__name__)

# Changes of keys wait for each other, because each extends the same chain of audit rows. Updates of counts also wait
# for each other: two processes that update the same rows in different orders would deadlock. Numbers of locks, for this
# schema only.
_KEYS, _COUNTS, _QUOTAS = 7_301_001, 7_301_002, 7_301_003
_LOCKS: Final = {
    # A change writes all columns of the key that it read: no last use may be written in between.
    "touch": f"pg_advisory_xact_lock_shared({_KEYS}), pg_advisory_xact_lock({_COUNTS})",
    **dict.fromkeys(("add_usage", "add_unusual", "roll_up", "prune"), f"pg_advisory_xact_lock({_COUNTS})"),
    **dict.fromkeys(
        ("save_quota_states", "trim_quota_states", "forget_quota_states", "count_sidecars", "retry_write"),
        f"pg_advisory_xact_lock({_QUOTAS})",
    ),
}
CHANGE_LOCK: Final = f"pg_advisory_xact_lock({_KEYS})"
# The triggers store, for the transaction, the number that its notifications carry. This notification comes last.
_LAST_NOTICE: Final = """SELECT value, pg_notify('sidecar_keys',
        value || ' done ' || (extract(epoch FROM clock_timestamp()) * 1e6)::bigint) FROM
    (SELECT split_part(coalesce(current_setting('sidecar.changed', true), ''), ' ', 1) AS value) AS noted
    WHERE value <> ''"""


class PostgresqlConnection:
    """A connection, used by one task at a time. `name`: of the store, in messages."""

    def __init__(self, raw: Any, name: str) -> None:
        self.raw, self._name = raw, name

    async def fetch(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        text, sizes = translated(sql)
        with reported(self._name):
            return [*map(tuple, await self.raw.fetch(text, *arguments(sizes, values)))]

    async def execute(self, sql: str, values: Sequence[Any] = ()) -> None:
        await self.fetch(sql, values)

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        if not rows:
            return
        text, sizes = translated(sql)
        with reported(self._name):
            await self.raw.executemany(text, [arguments(sizes, row) for row in rows])

    async def insert(self, into: str, rows: Sequence[Sequence[Any]]) -> None:
        if not rows:
            return
        # An error ends a transaction, and after it an import looks up which of the rows existed before.
        await self.run("SAVEPOINT inserted")
        try:
            if len(rows) < _FEW:
                await self.execute_many(f"{into} VALUES ({', '.join('?' * len(rows[0]))})", rows)
            else:
                await self._copy(into, rows)
        except DuplicateRow:
            await self.run("ROLLBACK TO SAVEPOINT inserted")
            raise
        await self.run("RELEASE SAVEPOINT inserted")

    async def _copy(self, into: str, rows: Sequence[Sequence[Any]]) -> None:
        table, _, columns = into.removeprefix("INSERT INTO ").removesuffix(")").partition(" (")
        with reported(self._name):
            await self.raw.copy_records_to_table(
                table, schema_name=SCHEMA, columns=columns.split(", "), records=map(storable, rows)
            )

    async def run(self, sql: str, *, seconds: float | None = None) -> None:
        """Run our own statements, which have no values."""
        with reported(self._name):
            await self.raw.execute(sql, timeout=seconds)

    async def listen(self, channel: str, on_notification: Callable[[str], None], on_lost: Callable[[], None]) -> None:
        """Call `on_notification` with each notification's text, and `on_lost` at the connection's end."""
        with reported(self._name):
            self.raw.add_termination_listener(lambda _: on_lost())
            await self.raw.add_listener(channel, lambda _, pid, channel, text: on_notification(text))

    def process(self) -> int:
        """The server's process id, as the server gave it when the connection was made."""
        return int(self.raw.get_server_pid())

    def usable(self) -> bool:
        return not self.raw.is_closed()

    def terminate(self) -> None:
        self.raw.terminate()

    async def close(self) -> None:
        with suppress(StoreUnavailable), reported(self._name):
            await self.raw.close(timeout=CONNECT_SECONDS)


Connect = Callable[[], Awaitable[PostgresqlConnection]]


async def _beginning(connection: PostgresqlConnection, begin: str) -> PostgresqlConnection:
    try:
        if begin:
            await connection.run(begin, seconds=CONNECT_SECONDS)
    except BaseException:
        # It may still be waiting for a response, and would refuse everything else until then.
        connection.terminate()
        raise
    return connection


class Pool:
    """Connections for one purpose, opened when needed and reopened when lost."""

    def __init__(self, connect: Connect, size: int) -> None:
        self._connect = connect
        self._free: asyncio.LifoQueue[PostgresqlConnection | None] = asyncio.LifoQueue()
        for _ in range(size):
            self._free.put_nowait(None)
        self._made: set[PostgresqlConnection] = set()

    @asynccontextmanager
    async def use(self, begin: str = "") -> AsyncIterator[PostgresqlConnection]:
        """A connection on which `begin` has run. One that may be in the middle of a statement is not reused."""
        connection = await self._free.get()
        try:
            connection = await self._begun(connection, begin)
            yield connection
        except asyncio.CancelledError:
            if connection is not None:
                connection.terminate()
            raise
        finally:
            if connection is not None and not connection.usable():
                self._made.discard(connection)
                connection = None
            self._free.put_nowait(connection)

    async def _begun(self, connection: PostgresqlConnection | None, begin: str) -> PostgresqlConnection:
        if connection is not None and connection.usable():
            with suppress(LostConnection):
                return await _beginning(connection, begin)
        if connection is not None:
            self._made.discard(connection)
        made = await _beginning(await self._connect(), begin)
        self._made.add(made)
        return made

    async def close(self) -> None:
        await asyncio.gather(*(connection.close() for connection in self._made))


# A lookup is planned once, not for each list of digests. A plan made while there are few keys, when a sequential scan
# is fastest, must also work when there are many.
_PLANNED_ONCE: Final = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off;"


def connector(url: str, seconds: float, more: str = "") -> Connect:
    """Makes connections whose statements end within `seconds`. more: settings, as statements.

    They override settings of the role or the database that would break an assumption: a change that waited for the lock
    must then see what the change before it wrote.
    """
    name, has_password = shown_store(url), bool(password_of(url))
    settings = f"""SET search_path = {SCHEMA}, pg_temp; SET jit = off;
        SET statement_timeout = {int(seconds * 1000)}; SET lock_timeout = {int(WRITE_LOCK_SECONDS * 1000)};
        SET idle_in_transaction_session_timeout = {int(IDLE_SECONDS * 1000)}; SET idle_session_timeout = 0;
        SET default_transaction_isolation = 'read committed';
        {more}
        SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"""

    async def connect() -> PostgresqlConnection:
        with reported(name):
            password = None if has_password else await asyncio.to_thread(password_of_environ, os.environ)
            known = has_password or password is not None
            with in_memory(None if known else await asyncio.to_thread(passfile_of, url, os.environ)) as passfile:
                raw = await asyncpg.connect(
                    url,
                    password=password,
                    passfile=passfile,
                    ssl=await asyncio.to_thread(context_of, url, os.environ),
                    timeout=CONNECT_SECONDS,
                    # The server ends a statement; this is for a server that is not there any more.
                    command_timeout=seconds + FIND_SECONDS,
                    server_settings={"application_name": "sidecar"},
                )
        connection = PostgresqlConnection(raw, name)
        try:
            await connection.run(settings)
        except BaseException:
            connection.terminate()
            raise
        return connection

    return connect


class PostgresqlDatabase(Steps):
    """A Database on a server. `timings` receives each operation and its seconds."""

    def __init__(
        self,
        url: str,
        *,
        replica: str = "",
        watched: bool,
        clock: Clock,
        timings: Callable[[str, float], None],
        lag: Callable[[float], None],
    ) -> None:
        """Use `open`."""
        super().__init__(shown_store(url), timings)
        self._clock = clock
        self._lookups = Pool(connector(url, FIND_SECONDS, _PLANNED_ONCE), LOOKUP_CONNECTIONS)
        self._reads = Pool(connector(url, READ_SECONDS), READ_CONNECTIONS)
        self._writes = Pool(connector(url, WRITE_SECONDS), WRITE_CONNECTIONS)
        self._at_replica = Pool(connector(replica, FIND_SECONDS, _PLANNED_ONCE), LOOKUP_CONNECTIONS)
        self.replica: Replica | None = None
        watching: KeyWatch | NotWatched = NotWatched(self._read_value)
        if watched:
            watching = keys = KeyWatch(connector(url, FIND_SECONDS), self.name, clock=clock, lag=lag)
            if replica:
                fetch = partial(self._read, self._at_replica)
                self.replica = Replica(fetch, shown_store(replica), number=lambda: keys.number)
        self.watch = watching
        self.generation, self.read_generation = watching.current, watching.read
        self.changes_since = watching.changes_since

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        replica: str = "",
        create: bool,
        watched: bool,
        clock: Clock,
        timings: Callable[[str, float], None],
        lag: Callable[[float], None],
    ) -> "PostgresqlDatabase":
        """As open_store of store.py. Raises StoreUnavailable."""
        database = cls(url, replica=replica, watched=watched, clock=clock, timings=timings, lag=lag)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(database.close)
            preparing = await connector(url, WRITE_SECONDS)()
            try:
                await _refuse_mixed_sessions(preparing, connector(url, READ_SECONDS), database.name)
                await prepare(preparing, database.name, create=create)
                if watched:
                    await _warn_of_few_connections(preparing)
            finally:
                await preparing.close()
            await database.watch.start()
            if database.replica is not None:
                await database.replica.start()
            stack.pop_all()
        return database

    async def close(self) -> None:
        self.is_open = False
        if self.replica is not None:
            await self.replica.close()
        # At the same time, because each waits for a server that does not answer.
        pools = (self._lookups, self._reads, self._writes, self._at_replica)
        await asyncio.gather(self.watch.close(), *(pool.close() for pool in pools))

    async def may_issue(self) -> bool:
        [(may,)] = await self.read("get", "SELECT has_table_privilege('api_key', 'INSERT')")
        return bool(may)

    def now(self) -> int:
        return self._clock.micros()

    def indexed(self, table: str, index: str) -> str:
        # PostgreSQL has statistics instead of hints.
        return table

    async def lookup(self, operation: str, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        with self.operation(operation):
            found = None if self.replica is None else await self.replica.find(sql, values)
            return await self._within(FIND_SECONDS, self._lookups, sql, values) if found is None else found

    async def read(self, operation: str, sql: str, values: Any = ()) -> list[Any]:
        with self.operation(operation):
            return await self._within(READ_SECONDS, self._reads, sql, values)

    @asynccontextmanager
    async def transaction(self, operation: str) -> AsyncIterator[PostgresqlConnection]:
        locks = _LOCKS.get(operation, CHANGE_LOCK)
        value = None
        with self.operation(operation), self.write_noted():
            async with self._writes.use("BEGIN") as connection:
                try:
                    await connection.run(f"SELECT {locks}")
                    yield connection
                    if locks is CHANGE_LOCK:
                        value = next(iter(await connection.fetch(_LAST_NOTICE)), None)
                    await _commit(connection)
                except BaseException:
                    await _roll_back(connection)
                    raise
        if value is not None:
            # An acknowledged change applies to the next request.
            await self.watch.reached(int(value[0]))

    async def retry_write(self) -> None:
        """As Database. Fails if the database is read-only, as a standby is."""
        if self.write_problem:
            with suppress(StoreUnavailable):
                async with self.transaction("retry_write") as connection:
                    await connection.execute("DELETE FROM quota_state WHERE quota = ''")

    async def _within(self, seconds: float, pool: Pool, sql: str, values: Sequence[Any]) -> list[Any]:
        reading = asyncio.ensure_future(self._read(pool, sql, values))
        try:
            if await answers_within(seconds, reading):
                return reading.result()
            silent = f"did not answer within {seconds:g} s"
            raise StoreUnavailable(f"the key store {self.name} {silent}", cause=silent)
        finally:
            reading.cancel()

    async def _read(self, pool: Pool, sql: str, values: Sequence[Any]) -> list[Any]:
        with suppress(LostConnection):
            async with pool.use() as connection:
                return await connection.fetch(sql, values)
        # A restarted server has closed the connection, which only shows when it is used.
        async with pool.use() as connection:
            return await connection.fetch(sql, values)

    async def _read_value(self) -> int:
        with self.operation("generation"):
            rows = await self._within(FIND_SECONDS, self._lookups, "SELECT value FROM generation", ())
        return int(the_row(rows, self.name)[0])


async def _refuse_mixed_sessions(one: PostgresqlConnection, connect: Connect, name: str) -> None:
    """Raises StoreUnavailable if a pooler shares sessions between connections: LISTEN would receive nothing.

    The process id reveals a pooler: only PostgreSQL itself reports the server's real one.
    """
    [(process,)] = await one.fetch("SELECT pg_backend_pid()")
    if process == one.process():
        return
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            apart = await _are_apart(one, connect, str(process))
    except TimeoutError:
        raise StoreUnavailable(
            f"the key store {name} is behind a pooler that has no second connection: {_SESSION_MODE}, with "
            f"{CONNECTIONS} connections for each sidecar (default_pool_size)"
        ) from None
    if not apart:
        raise StoreUnavailable(
            f"the key store {name} is behind a pooler that mixes sessions, which never tells of changes of keys: "
            f"{_SESSION_MODE}"
        )


async def _are_apart(one: PostgresqlConnection, connect: Connect, mark: str) -> bool:
    """Whether another connection has its own session."""
    await one.fetch("SELECT set_config('sidecar.session', ?, false)", (mark,))
    other = await connect()
    try:
        await other.run("BEGIN")
        seen = [await each.fetch("SELECT current_setting('sidecar.session', true)") for each in (other, one)]
        await other.run("ROLLBACK")
    finally:
        other.terminate()
    return seen[0] != [(mark,)] and seen[1] == [(mark,)]


async def _warn_of_few_connections(connection: PostgresqlConnection) -> None:
    [(most, used)] = await connection.fetch(_CONNECTIONS_USED)
    if used + CONNECTIONS > most:
        _log.warning(
            "sidecar: store: %d of the database's %d connections are in use, and this sidecar may need %d: raise "
            "max_connections, or use fewer sidecars",
            *(used, most, CONNECTIONS),
        )


async def _commit(connection: PostgresqlConnection) -> None:
    try:
        await connection.run("COMMIT")
    except LostConnection as error:
        doubt = "the change may have been written: check before you repeat it"
        raise LostConnection(f"{error}; {doubt}", cause=f"{error.cause}; {doubt}") from error


async def _roll_back(connection: PostgresqlConnection) -> None:
    """Roll back, or close a connection where that fails, such as one whose statement was abandoned."""
    try:
        if connection.usable():
            await connection.run("ROLLBACK")
    except StoreUnavailable:
        connection.terminate()
