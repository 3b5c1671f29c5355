"""The key store in one SQLite file: WAL, synchronous=FULL, many processes."""

from collections.abc import Callable

from sidecar.store.audit import SqliteAudit
from sidecar.store.bulk_import import SqliteImport
from sidecar.store.connection import Connections, GenerationWatch
from sidecar.store.keys import SqliteCensus, SqliteKeys, SqliteQuotas
from sidecar.store.usage import SqliteLastUse, SqliteUsage


class SqliteStore(SqliteKeys, SqliteCensus, SqliteAudit, SqliteQuotas, SqliteLastUse, SqliteUsage, SqliteImport):
    """Every port of this room: each base is one part of them."""

    def __init__(self, lines: Connections) -> None:
        """Use `open`."""
        super().__init__(lines)
        self._watch = GenerationWatch(lines.path)
        self.generation = self._watch.current

    @classmethod
    async def open(
        cls, path: str, *, create: bool, clock: Callable[[], float], timings: Callable[[str, float], None]
    ) -> "SqliteStore":
        """`clock` in Unix seconds; `timings` is told each operation and its seconds.

        Without `create`, a missing or empty file is StoreUnavailable, and nothing is made.
        """
        lines = await Connections.open(path, create=create, clock=clock, timings=timings)
        try:
            return cls(lines)
        except BaseException:
            await lines.close()
            raise

    async def close(self) -> None:
        self._watch.close()
        await self._lines.close()
