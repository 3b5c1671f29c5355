"""Adds many new keys in one transaction."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final

from sidecar.keys.ports import Actor, KeyConflict
from sidecar.keys.records import NEW_COLUMNS, Batch, NewRow
from sidecar.keys.transfer.importer import Intake
from sidecar.store.audit import Head, append, head_of, linked
from sidecar.store.connection import Connection, Database, DuplicateRow

_INSERT_NEW: Final = f"INSERT INTO api_key ({', '.join(NEW_COLUMNS)})"
_AUDITED_AT_ONCE: Final = 3_000
_LAST_SERIAL: Final = "SELECT coalesce(max(serial), 0) FROM api_key"

InBulk = Callable[[Connection], AbstractAsyncContextManager[None]]
"""What an engine does around the insertion of many keys, so that it costs less."""
_Fetch = Callable[[str, Sequence[Any]], Awaitable[list[Any]]]


class KeyImports:
    """Both methods raise StoreUnavailable."""

    def __init__(self, database: Database, *, bulk: InBulk) -> None:
        self._database, self._bulk = database, bulk

    @asynccontextmanager
    async def intake(self, *, at: int, actor: Actor) -> AsyncIterator[Intake]:
        """One transaction for all keys, which begins with `Intake.begin`."""
        async with AsyncExitStack() as stack:

            async def begin() -> tuple[Connection, int, Head]:
                connection = await stack.enter_async_context(self._database.transaction("import"))
                [(last,)] = await connection.fetch(_LAST_SERIAL)
                await stack.enter_async_context(self._bulk(connection))
                return connection, last, await head_of(connection)

            fetch = partial(self._database.read, "import_dry")
            [(last,)] = await fetch(_LAST_SERIAL)
            yield _TransactionIntake(fetch, last, begin, who=(at, actor.name, actor.source))

    @asynccontextmanager
    async def dry_intake(self) -> AsyncIterator[Intake]:
        """For a dry run: nothing is written."""
        fetch = partial(self._database.read, "import_dry")
        [(last,)] = await fetch(_LAST_SERIAL)
        yield _DryIntake(fetch, last)


class _DryIntake:
    """`before` is the last serial of the keys that were there."""

    def __init__(self, fetch: _Fetch, before: int) -> None:
        self._fetch, self._before = fetch, before

    async def begin(self) -> None:
        pass

    async def stored(self, rows: Sequence[NewRow]) -> Mapping[bytes | str, str]:
        found: dict[bytes | str, str] = {}
        for column, values in (("digest", [row.digest for row in rows]), ("id", [row.id for row in rows])):
            among = f"{column} IN ({', '.join('?' * len(values))}) AND serial <= ?"
            sql = f"SELECT {column}, id FROM api_key WHERE {among}"  # noqa: S608 - no input
            found.update(await self._fetch(sql, (*values, self._before)))
        return found

    def batch(self, rows: Sequence[NewRow]) -> Batch:
        return Batch(rows=rows)

    async def add(self, batch: Batch) -> None:
        if await self.stored(batch.rows):
            raise _conflict()


class _TransactionIntake(_DryIntake):
    """begin: begins the transaction; gives the last serial that is there, and the head of the audit."""

    def __init__(
        self,
        fetch: _Fetch,
        before: int,
        begin: Callable[[], Awaitable[tuple[Connection, int, Head]]],
        *,
        who: tuple[int, str, str],
    ) -> None:
        super().__init__(fetch, before)
        self._begin, self._who = begin, who

    async def begin(self) -> None:
        self._connection, self._before, self._head = await self._begin()
        self._fetch = self._connection.fetch

    def batch(self, rows: Sequence[NewRow]) -> Batch:
        entries = [(*self._who, "import", row.id, row.tenant, None, row.after) for row in rows]
        audit_rows = list(linked(self._head, entries))
        if audit_rows:
            self._head = Head(id=audit_rows[-1][0], hash=audit_rows[-1][-1])
        return Batch(rows=rows, audit_rows=audit_rows)

    async def add(self, batch: Batch) -> None:
        try:
            await self._connection.insert(_INSERT_NEW, [row.values for row in batch.rows])
        except DuplicateRow as error:
            raise _conflict() from error
        # No trigger and no index in an order of chance: here, few statements for all would cost more.
        for start in range(0, len(batch.audit_rows), _AUDITED_AT_ONCE):
            await append(self._connection, batch.audit_rows[start : start + _AUDITED_AT_ONCE])


def _conflict() -> KeyConflict:
    return KeyConflict("one of these keys is stored already")
