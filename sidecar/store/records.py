"""Makes the keys of a store match the records of a file, in one transaction with its audit rows."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final

from sidecar.core.model import ApiKey, KeyStatus
from sidecar.keys.ports import Actor
from sidecar.keys.records import COLUMNS, key_of, row_of
from sidecar.keys.transfer.records import Changed, Difference, Record, difference, mirrored
from sidecar.keys.transitions import with_status
from sidecar.store.audit import Change, write_audit
from sidecar.store.connection import Connection, Database
from sidecar.store.keys import INSERT_KEY, SELECT_KEY, UPDATE_KEY

_AT_ONCE: Final = 500
"""Most values in one statement."""
_PAGE: Final = 2_000
_ALL: Final = f"SELECT serial, {SELECT_KEY.removeprefix('SELECT ')}"
_INTO: Final = INSERT_KEY.partition(" VALUES")[0]
_ID: Final = COLUMNS.index("id")
_AUDITED_AT_ONCE: Final = 200
"""Changes hashed into the chain in one turn of the loop."""

Fetch = Callable[[str, Sequence[Any]], Awaitable[list[Any]]]


class StoredRecords:
    """Every method raises StoreUnavailable. Times in microseconds; surplus:

    whether keys without a record are included.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def difference(self, records: Sequence[Record], *, at: int, surplus: bool) -> Difference:
        """What `apply` would do."""
        return await _difference(partial(self._database.read, "apply"), records, at=at, surplus=surplus)

    async def apply(
        self,
        records: Sequence[Record],
        *,
        at: int,
        actor: Actor,
        surplus: bool,
        allowed: Callable[[Difference], None],
    ) -> Difference:
        """Add and change keys, and revoke the surplus.

        `allowed` receives the difference first; an exception from it aborts.
        """
        async with self._database.transaction("apply") as connection:
            found = await _difference(connection.fetch, records, at=at, surplus=surplus)
            allowed(found)
            revoked = [(key, with_status(key, KeyStatus.REVOKED, at)) for key in found.surplus]
            for _, after in (*found.changed, *revoked):
                await connection.execute(UPDATE_KEY, (*row_of(after), after.id))
            await connection.insert(_INTO, [row_of(key) for key in found.added])
            await _write_audit(connection, found, revoked, at=at, actor=actor)
        return found

    async def mirror(self, records: Sequence[Record], *, at: int, actor: Actor | None) -> Difference:
        """Make the records the only keys: other keys are removed, not revoked.

        actor: None writes no audit rows.
        """
        async with self._database.transaction("apply") as connection:
            rows = [row async for page in _pages(connection.fetch) for row in page]
            # In a thread, because a large file takes longer than a request can wait.
            plan = await asyncio.to_thread(_Plan, records, rows, at)
            # Keys may have swapped their hashes: those with a new hash are deleted first, then inserted again.
            await connection.execute_many("DELETE FROM api_key WHERE id = ?", plan.gone)
            await connection.execute_many(UPDATE_KEY, plan.updated)
            await connection.insert(_INTO, plan.inserted)
            if actor is not None:
                await _write_audit(connection, plan.found, plan.revoked, at=at, actor=actor)
        return plan.found


class _Plan:
    """The rows to write so that the keys mirror the records."""

    def __init__(self, records: Sequence[Record], rows: Sequence[Sequence[Any]], at: int) -> None:
        self.found = mirrored(records, [key_of(row) for row in rows], at=at)
        added, changed, surplus = self.found.added, self.found.changed, self.found.surplus
        moved = [pair for pair in changed if pair[0].digest != pair[1].digest]
        self.gone = [(key.id,) for key in (*surplus, *(before for before, _ in moved))]
        self.updated = [(*row_of(after), after.id) for before, after in changed if before.digest == after.digest]
        self.inserted = [row_of(key) for key in (*added, *(after for _, after in moved))]
        self.revoked = [(key, with_status(key, KeyStatus.REVOKED, at)) for key in surplus]


async def _difference(fetch: Fetch, records: Sequence[Record], *, at: int, surplus: bool) -> Difference:
    stored = {key.id: key async for key in _matching(fetch, records)}
    if surplus:
        others = [key_of(row) async for page in _pages(fetch) for row in page if row[_ID] not in stored]
        stored |= {key.id: key for key in others if key.status is not KeyStatus.REVOKED}
    return difference(records, stored.values(), at=at, surplus=surplus)


async def _matching(fetch: Fetch, records: Sequence[Record]) -> AsyncIterator[ApiKey]:
    """The stored keys with the id or the hash of a record."""
    for column in ("id", "digest"):
        rest = (getattr(record.key, column) for record in records)
        while some := list(islice(rest, _AT_ONCE)):
            for row in await fetch(f"{SELECT_KEY} WHERE {column} IN ({', '.join('?' * len(some))})", some):
                yield key_of(row)


async def _pages(fetch: Fetch) -> AsyncIterator[list[Sequence[Any]]]:
    """All stored keys, as rows of COLUMNS."""
    last = 0
    while rows := await fetch(f"{_ALL} WHERE serial > ? ORDER BY serial LIMIT {_PAGE}", (last,)):
        last = rows[-1][0]
        yield [row[1:] for row in rows]


async def _write_audit(
    connection: Connection, found: Difference, revoked: Sequence[Changed], *, at: int, actor: Actor
) -> None:
    by_action: dict[str, list[Change]] = {"import": [(None, key) for key in found.added]}
    for before, after in found.changed:
        by_action.setdefault(action_of(before, after), []).append((before, after))
    by_action.setdefault("revoke", []).extend(revoked)
    for action, changes in by_action.items():
        for start in range(0, len(changes), _AUDITED_AT_ONCE):
            await write_audit(connection, action, changes[start : start + _AUDITED_AT_ONCE], at=at, actor=actor)


def action_of(before: ApiKey, after: ApiKey) -> str:
    """The change's name in the audit: `disable` or `enable` if nothing else changed."""
    for status, action in ((KeyStatus.DISABLED, "disable"), (KeyStatus.ACTIVE, "enable")):
        if after.status is status is not before.status and after == with_status(before, status, after.disabled_at or 0):
            return action
    return "change"
