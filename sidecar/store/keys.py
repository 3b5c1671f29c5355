"""Keys as rows: found by requests; listed, changed and counted by management."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from sidecar.core.model import ApiKey
from sidecar.keys.lifecycle import NewHash
from sidecar.keys.ports import (
    IDEMPOTENCY_SECONDS,
    Actor,
    AlreadyProcessed,
    Edit,
    IdempotencyKey,
    IdempotencyKeyReused,
    KeyConflict,
    KeyDate,
    KeyFilter,
    Replacement,
    StoreUnavailable,
    UnknownKey,
)
from sidecar.keys.records import COLUMNS, key_of, row_of
from sidecar.store.audit import Change, write_audit
from sidecar.store.connection import Connection, Database, DuplicateRow

# Requests that may be carried out only once are remembered with the key that they made.


async def check_once(connection: Connection, once: IdempotencyKey | None, at: int) -> None:
    """Refuse a request whose idempotency key was used within IDEMPOTENCY_SECONDS before `at`.

    Raises AlreadyProcessed for the same request, IdempotencyKeyReused for another one.
    """
    if once is None:
        return
    await connection.execute("DELETE FROM idempotency WHERE at <= ?", (at - IDEMPOTENCY_SECONDS * 1_000_000,))
    found = await connection.fetch(
        "SELECT fingerprint, key_id FROM idempotency WHERE token_name = ? AND idempotency_key = ?",
        (once.token, once.key),
    )
    for fingerprint, key_id in found:
        if fingerprint != once.fingerprint:
            raise IdempotencyKeyReused("this idempotency key was used before for another request: use a new one")
        raise AlreadyProcessed(key_id)


async def remember_once(connection: Connection, once: IdempotencyKey | None, key_id: str, at: int) -> None:
    """Remember the request in the transaction that carries it out."""
    if once is not None:
        await connection.execute(
            "INSERT INTO idempotency (token_name, idempotency_key, fingerprint, key_id, at) VALUES (?, ?, ?, ?, ?)",
            (once.token, once.key, once.fingerprint, key_id, at),
        )


_FIELDS: Final = ", ".join(COLUMNS)
SELECT_KEY: Final = f"SELECT {_FIELDS} FROM api_key"  # noqa: S608 - column names of our own
INSERT_KEY: Final = f"INSERT INTO api_key ({_FIELDS}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - the same
UPDATE_KEY: Final = f"UPDATE api_key SET {', '.join(f'{name} = ?' for name in COLUMNS)} WHERE id = ?"  # noqa: S608 - the same
# No statement may be allowed to fail: PostgreSQL then aborts the whole transaction.
_REHASH: Final = """UPDATE api_key SET digest = ?, algorithm = ?
    WHERE id = ? AND NOT EXISTS (SELECT 1 FROM api_key WHERE digest = ? AND id <> ?) RETURNING id"""
_SHOWN_TWINS: Final = 5

PageStatements = Callable[[KeyFilter, int], Iterable[tuple[str, Any]]]
"""Statements and their values, for a filter and the time in microseconds.

Together, their rows (`serial`, then COLUMNS) contain the page. They differ by engine, as full-text search does.
"""

CountStatement = Callable[[KeyFilter, int, int], tuple[str, Any]]
"""A statement that counts the keys of a filter at a time (microseconds), up to a maximum."""
Changed = tuple[ApiKey, ApiKey]
"""A key before and after."""


def find_statement(digests: int) -> str:
    """The lookup of a request, for this number of candidate digests."""
    return f"{SELECT_KEY} WHERE digest IN ({', '.join('?' * digests)})"


_DIGEST: Final = COLUMNS.index("digest")
_AT_ONCE: Final = 16
"""Digests in one statement.

More would save little, and all requests that wait for it continue in the same turn of the loop.
"""
_MOST_WAITING: Final = 4_096


class Lookups:
    """Finds keys for requests. Lookups that arrive during a query wait, and share the next one.

    So clients with unknown keys cost little, and other requests do not wait long behind them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: deque[tuple[Mapping[bytes, str], asyncio.Future[ApiKey | None]]] = deque()
        self._asking: asyncio.Task[None] | None = None

    async def find(self, digests: Mapping[bytes, str]) -> ApiKey | None:
        """As KeyReader.find."""
        if len(self._waiting) >= _MOST_WAITING:
            raise StoreUnavailable(f"{_MOST_WAITING:,} keys wait to be looked up: try again")
        found: asyncio.Future[ApiKey | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((digests, found))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        return await found

    async def _ask(self) -> None:
        try:
            while self._waiting:
                some = [self._waiting.popleft()]
                count = len(some[0][0])
                while self._waiting and (count := count + len(self._waiting[0][0])) <= _AT_ONCE:
                    some.append(self._waiting.popleft())
                try:
                    rows = await self._rows([digest for digests, _ in some for digest in digests])
                except StoreUnavailable as error:
                    # Lookups that arrived in the meantime were waiting, too.
                    self._fail([*some, *self._waiting], error)
                    self._waiting.clear()
                else:
                    for digests, found in some:
                        _settle(found, digests, rows)
        finally:
            self._asking = None
            self._fail(self._waiting, StoreUnavailable("the key store was closed"))

    async def _rows(self, digests: Sequence[bytes]) -> Mapping[bytes, Sequence[Any]]:
        # Few lengths, so that the statements stay prepared: the last digest is repeated.
        length = 1 << (len(digests) - 1).bit_length()
        values = (*digests, *[digests[-1]] * (length - len(digests)))
        rows = await self._database.lookup("find", find_statement(length), values)
        return {row[_DIGEST]: row for row in rows}

    @staticmethod
    def _fail(
        waiting: Iterable[tuple[Mapping[bytes, str], asyncio.Future[ApiKey | None]]], error: StoreUnavailable
    ) -> None:
        for _, found in waiting:
            if not found.done():
                found.set_exception(StoreUnavailable(str(error)))


def _settle(
    found: asyncio.Future[ApiKey | None], digests: Mapping[bytes, str], rows: Mapping[bytes, Sequence[Any]]
) -> None:
    if found.done():
        return
    try:
        keys = map(key_of, [rows[digest] for digest in digests if digest in rows])
        found.set_result(next((key for key in keys if digests[key.digest] == key.algorithm), None))
    except StoreUnavailable as error:  # A damaged row only fails its own lookups.
        found.set_exception(error)


class StoredKeys:
    """KeyReader, KeyRegistry, and pages of keys."""

    def __init__(self, database: Database, *, pages: PageStatements, count: CountStatement) -> None:
        self._database, self._pages, self._count = database, pages, count
        self.generation, self.read_generation = database.generation, database.read_generation
        self.changes_since = database.changes_since
        self.find = Lookups(database).find

    async def add(self, keys: Sequence[ApiKey], *, actor: Actor, once: IdempotencyKey | None = None) -> None:
        """As KeyRegistry.add."""
        at = max(key.created_at for key in keys)
        async with self._database.transaction("add") as connection:
            await check_once(connection, once, at)
            await _insert(connection, keys)
            await remember_once(connection, once, keys[-1].id, at)
            await write_audit(connection, "issue", [(None, key) for key in keys], at=at, actor=actor)

    async def get(self, name: str) -> ApiKey | None:
        """As KeyRegistry.get."""
        if not name.isascii():
            return None
        rows = await self._database.read("get", f"{SELECT_KEY} WHERE id = ?", (name,))
        if not rows:
            rows = await self._database.read("get", f"{SELECT_KEY} WHERE prefix = ? LIMIT {_SHOWN_TWINS}", (name,))
        keys = [key_of(row) for row in rows]
        if len(keys) > 1:
            raise KeyConflict(f"several keys begin with {name!r}: use an id ({', '.join(key.id for key in keys)}…)")
        return keys[0] if keys else None

    async def list(self, wanted: KeyFilter) -> Sequence[ApiKey]:
        """The matching keys, in the order of the filter. Raises StoreUnavailable."""
        return [key_of(row) for row in await self.rows(wanted)]

    async def rows(self, wanted: KeyFilter) -> Sequence[Sequence[Any]]:
        """The keys of `list`, as rows of COLUMNS. Raises StoreUnavailable."""
        found: dict[int, Sequence[Any]] = {}
        for sql, values in self._pages(wanted, self._database.now()):
            rows = await self._database.read("list", sql, values)
            found.update((row[0], row[1:]) for row in rows)
        # Several statements are merged by age; any other order comes from a single statement.
        order = sorted(found, reverse=True) if wanted.sort == "created" else [*found]
        return [found[serial] for serial in order[: wanted.limit]]

    async def count(self, wanted: KeyFilter, *, most: int) -> int:
        """How many keys match, counted up to `most`. Raises StoreUnavailable."""
        [(count,)] = await self._database.read("list", *self._count(wanted, self._database.now(), most))
        return int(count)

    async def among(self, key_ids: Sequence[str]) -> Sequence[ApiKey]:
        """The keys with these ids, at most a few hundred. Raises StoreUnavailable."""
        marks = ", ".join("?" * len(key_ids))
        rows = await self._database.read("get", f"{SELECT_KEY} WHERE id IN ({marks})", key_ids) if key_ids else ()
        return [key_of(row) for row in rows]

    async def with_own_limits(self, *, limit: int) -> Sequence[ApiKey]:
        """Keys with limits of their own, beyond those of their plan. Raises StoreUnavailable."""
        rows = await self._database.read("list", f"{SELECT_KEY} WHERE quotas <> '{{}}' LIMIT ?", (limit,))
        return [key_of(row) for row in rows]

    async def successor(self, key_id: str) -> ApiKey | None:
        """As KeyRegistry.successor."""
        sql = f"{SELECT_KEY} WHERE replaces = ? ORDER BY serial DESC LIMIT 1"
        return next(map(key_of, await self._database.read("list", sql, (key_id,))), None)

    async def change(self, key_id: str, edit: Edit, *, action: str, at: int, actor: Actor) -> ApiKey:
        """As KeyRegistry.change."""
        async with self._database.transaction("change") as connection:
            before = await _stored(connection, key_id)
            after = edit(before)
            if after != before:
                await connection.execute(UPDATE_KEY, (*row_of(after), key_id))
                await write_audit(connection, action, [(before, after)], at=at, actor=actor)
        return after

    async def change_all(
        self, key_ids: Sequence[str], edit: Edit, *, action: str, at: int, actor: Actor
    ) -> Sequence[Changed]:
        """Change all of these keys or none, in one transaction with their audit rows. Returns each, before and after.

        Raises UnknownKey, StoreUnavailable, and what `edit` raises. The time grows with the number of keys.
        """
        async with self._database.transaction("change_all") as connection:
            both = [(before, edit(before)) for before in [await _stored(connection, key_id) for key_id in key_ids]]
            changes = [(before, after) for before, after in both if before != after]
            for _, after in changes:
                await connection.execute(UPDATE_KEY, (*row_of(after), after.id))
            await write_audit(connection, action, changes, at=at, actor=actor)
        return both

    async def replace(
        self, key_id: str, edit: Replacement, *, action: str, at: int, actor: Actor, once: IdempotencyKey | None = None
    ) -> tuple[ApiKey, ApiKey]:
        """As KeyRegistry.replace."""
        async with self._database.transaction("replace") as connection:
            await check_once(connection, once, at)
            before = await _stored(connection, key_id)
            old, new = edit(before)
            await connection.execute(UPDATE_KEY, (*row_of(old), key_id))
            await _insert(connection, [new])
            await remember_once(connection, once, new.id, at)
            await write_audit(connection, action, [(before, old), (None, new)], at=at, actor=actor)
        return old, new

    async def rehash(self, hashes: Sequence[NewHash], at: int, actor: Actor) -> None:
        """Replace digests in one transaction, with an audit row for each.

        Skips a key whose digest is no longer the old one, or whose new digest belongs to another key. Raises
        StoreUnavailable.
        """
        async with self._database.transaction("rehash") as connection:
            changes = [change for wanted in hashes if (change := await _rehashed(connection, wanted))]
            await write_audit(connection, "rehash", changes, at=at, actor=actor)


async def _stored(connection: Connection, key_id: str) -> ApiKey:
    rows = await connection.fetch(f"{SELECT_KEY} WHERE id = ?", (key_id,))
    if not rows:
        raise UnknownKey(f"no key has the id {key_id!r}")
    return key_of(rows[0])


async def _insert(connection: Connection, keys: Sequence[ApiKey]) -> None:
    try:
        await connection.execute_many(INSERT_KEY, [row_of(key) for key in keys])
    except DuplicateRow as error:
        which = f"a key with the id {keys[0].id!r}" if len(keys) == 1 else "one of these keys, its id"
        raise KeyConflict(f"{which} or the same digest is stored already") from error


async def _rehashed(connection: Connection, wanted: NewHash) -> Change | None:
    """The key before and after, or None if it is skipped."""
    rows = await connection.fetch(f"{SELECT_KEY} WHERE id = ? AND digest = ?", (wanted.key_id, wanted.old))
    values = (wanted.digest, wanted.algorithm, wanted.key_id, wanted.digest, wanted.key_id)
    if not rows or not await connection.fetch(_REHASH, values):
        return None
    before = key_of(rows[0])
    return before, replace(before, digest=wanted.digest, algorithm=wanted.algorithm)


# How many keys there are, and which have a date in a period.


# The same conditions as in the partial indexes: without them no engine could use these indexes.
_DATES: Final[Mapping[KeyDate, tuple[str, str, str]]] = {
    "created": ("api_key_age", "created_at", "status = 'active' AND retires_at IS NULL"),
    "expires": ("api_key_expiry", "expires_at", "status = 'active' AND expires_at IS NOT NULL"),
    "retires": ("api_key_retirement", "retires_at", "status = 'active' AND retires_at IS NOT NULL"),
}


class StoredStatistics:
    """KeyStatistics."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def counts(self) -> Mapping[tuple[str, str], int]:
        """As KeyStatistics.counts."""
        # In the order of an index that covers it, so that nothing is sorted and no key is read.
        sql = f"""SELECT status, environment, count(*), count(*) FILTER (WHERE status = 'active' AND expires_at <= ?)
            FROM {self._database.indexed("api_key", "api_key_standing")} GROUP BY status, environment"""  # noqa: S608 - no input
        counts: dict[tuple[str, str], int] = {}
        for status, environment, count, expired in await self._database.read("counts", sql, (self._database.now(),)):
            for effective_status, number in ((status, count - expired), ("expired", expired)):
                if number:
                    counts[effective_status, environment or ""] = number
        return counts

    async def algorithms(self) -> Mapping[str, int]:
        """As KeyStatistics.algorithms."""
        sql = "SELECT algorithm, count(*) FROM api_key WHERE status <> 'revoked' GROUP BY algorithm"
        return dict(await self._database.read("algorithms", sql))

    async def keys_between(
        self, date: KeyDate, *, since: int, until: int, tenant: str | None, limit: int
    ) -> Sequence[ApiKey]:
        """As KeyStatistics.keys_between."""
        _, column, _ = _DATES[date]
        conditions, values = f"{column} BETWEEN ? AND ?", (since, until)
        if tenant is None:
            return await self._dated("turning", date, conditions, (*values, limit))
        return await self._dated("turning", date, f"{conditions} AND tenant = ?", (*values, tenant, limit))

    async def unused(self, *, before: int, now: int, limit: int) -> Sequence[ApiKey]:
        """As KeyStatistics.unused."""
        conditions = (
            "retires_at > ? AND replaced_at <= ? AND (last_used_at IS NULL OR last_used_at <= ?) "
            "AND (expires_at IS NULL OR expires_at > ?)"
        )
        return await self._dated("unused", "retires", conditions, (now, before, before, now, limit))

    async def _dated(self, operation: str, date: KeyDate, conditions: str, values: Sequence[Any]) -> Sequence[ApiKey]:
        """Active keys with this date, in its order. The last item of `values` is the limit."""
        index, column, has_date = _DATES[date]
        table = self._database.indexed("api_key", index)
        sql = f"SELECT {_FIELDS} FROM {table} WHERE {has_date} AND {conditions} ORDER BY {column} LIMIT ?"  # noqa: S608 - no input
        return [key_of(row) for row in await self._database.read(operation, sql, values)]
