"""A store, composed of parts over one database; a caller uses the part that it needs."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from sidecar.config.store_url import is_sqlite, sqlite_path
from sidecar.core.units import Clock
from sidecar.keys.ports import StoreUnavailable
from sidecar.store.audit import StoredAudit
from sidecar.store.connection import Database
from sidecar.store.imports import InBulk, KeyImports
from sidecar.store.keys import CountStatement, PageStatements, StoredKeys, StoredStatistics
from sidecar.store.records import StoredRecords
from sidecar.store.sqlite.connection import SqliteDatabase
from sidecar.store.sqlite.listing import count_statement, page_statements
from sidecar.store.sqlite.schema import in_bulk
from sidecar.store.tables import StoredTables
from sidecar.store.usage import StoredAnomalies, StoredQuotas, StoredUsage

NO_LIBRARY: Final = (
    "PostgreSQL needs a library that is not installed: install the extra `postgres` (where the sidecar was installed "
    "from a checkout: pip install '.[postgres]')"
)


class Store:
    """The parts, the same for every engine.

    pages, count: statements that list and count keys. bulk: what the engine does around the insertion of many keys.
    close: closes the database. follows: whether lookups go to a replica; None without one. remarks: lines about it for
    readiness.
    """

    def __init__(
        self,
        database: Database,
        *,
        pages: PageStatements,
        count: CountStatement,
        bulk: InBulk,
        close: Callable[[], Awaitable[None]],
        follows: Callable[[], bool] | None = None,
        remarks: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self.keys = StoredKeys(database, pages=pages, count=count)
        """Finds, lists and changes keys."""
        self.statistics = StoredStatistics(database)
        """Counts keys, and finds those with a date in a span of time."""
        self.imports = KeyImports(database, bulk=bulk)
        """Adds many keys in one transaction."""
        self.records = StoredRecords(database)
        """Makes the keys match a file."""
        self.audit = StoredAudit(database)
        """Shows and verifies the changes of keys."""
        self.usage = StoredUsage(database)
        """Counts uses by hour and by day, and keeps the last use of each key."""
        self.anomalies = StoredAnomalies(database)
        """Keeps unusual events."""
        self.quotas = StoredQuotas(database)
        """Keeps quota states across restarts."""
        self.database, self.follows, self.remarks = database, follows, remarks
        self.tables = StoredTables(database)
        """Reads and writes whole tables, for a move to another store."""
        self._close = close

    async def close(self) -> None:
        """Close the database; every part then raises StoreUnavailable."""
        await self._close()


class SqliteStore(Store):
    """A store in one SQLite file: WAL, synchronous=FULL, used by many processes."""

    def __init__(self, database: SqliteDatabase) -> None:
        super().__init__(database, pages=page_statements, count=count_statement, bulk=in_bulk, close=database.close)

    @classmethod
    async def open(
        cls, path: str, *, create: bool, clock: Clock, timings: Callable[[str, float], None]
    ) -> "SqliteStore":
        """Open the file. `timings` receives each operation and its seconds.

        Without `create`, a missing or empty file is StoreUnavailable, and no file is made.
        """
        return cls(await SqliteDatabase.open(path, create=create, clock=clock, timings=timings))


async def open_store(
    url: str,
    *,
    create: bool,
    watched: bool = False,
    clock: Clock,
    timings: Callable[[str, float], None],
    lag: Callable[[float], None] = lambda seconds: None,
    replica: str = "",
) -> Store:
    """Open the store of a parsed URL. `timings` receives each operation and its seconds.

    create: make an empty store if there is none; otherwise a missing store is StoreUnavailable.
    watched: follow changes of keys by other processes, as serving requests needs; otherwise the store is asked each
    time. lag: receives for each change how many seconds after its commit it was known here, if the store announces
    changes. replica: a parsed URL of a standby of PostgreSQL, where lookups go if `watched`; empty for none.
    """
    if is_sqlite(url):
        return await SqliteStore.open(sqlite_path(url), create=create, clock=clock, timings=timings)
    try:
        # Imported here, because only users of PostgreSQL need its library.
        from sidecar.store.postgresql import connection, listing, schema
    except ImportError as error:
        raise StoreUnavailable(NO_LIBRARY) from error
    database = await connection.PostgresqlDatabase.open(
        url, replica=replica, create=create, watched=watched, clock=clock, timings=timings, lag=lag
    )
    found = database.replica
    return Store(
        database,
        pages=listing.page_statements,
        count=listing.count_statement,
        bulk=schema.in_bulk,
        close=database.close,
        follows=None if found is None else lambda: found.in_step,
        remarks=tuple if found is None else found.remarks,
    )
