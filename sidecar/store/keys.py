"""Keys as rows: found by requests, listed and changed by management."""

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sidecar.core.model import ApiKey
from sidecar.keys.ports import (
    ONCE_SECONDS,
    Actor,
    AlreadyProcessed,
    Edit,
    IdempotencyKey,
    IdempotencyKeyReused,
    KeyConflict,
    KeyFilter,
    QuotaRow,
    Replacement,
    Turn,
    UnknownKey,
)
from sidecar.keys.records import COLUMNS, key_of, row_of
from sidecar.store.audit import write_audit
from sidecar.store.connection import FIND_SECONDS, Connection, StorePart
from sidecar.store.listing import page_statements

# Requests that are carried out once, remembered with what they made.


async def check_once(line: Connection, once: IdempotencyKey | None, at: int) -> None:
    """Raises Repeated and Misused where the request's key was seen within ONCE_SECONDS before `at`."""
    if once is None:
        return
    await line.rows("DELETE FROM idempotency WHERE at <= ?", (at - ONCE_SECONDS * 1_000_000,))
    seen = await line.rows(
        "SELECT fingerprint, key_id FROM idempotency WHERE token_name = ? AND idempotency_key = ?",
        (once.token, once.key),
    )
    for fingerprint, key_id in seen:
        if fingerprint != once.fingerprint:
            raise IdempotencyKeyReused("this idempotency key was used before for another request: use a new one")
        raise AlreadyProcessed(key_id)


async def remember_once(line: Connection, once: IdempotencyKey | None, key_id: str, at: int) -> None:
    """In the transaction that carries the request out."""
    if once is not None:
        await line.rows(
            "INSERT INTO idempotency (token_name, idempotency_key, fingerprint, key_id, at) VALUES (?, ?, ?, ?, ?)",
            (once.token, once.key, once.fingerprint, key_id, at),
        )


_FIELDS: Final = ", ".join(COLUMNS)
SELECT_KEY: Final = f"SELECT {_FIELDS} FROM api_key"  # noqa: S608 - column names of our own
INSERT_KEY: Final = f"INSERT INTO api_key ({_FIELDS}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - the same
_UPDATE: Final = f"UPDATE api_key SET {', '.join(f'{name} = ?' for name in COLUMNS)} WHERE id = ?"  # noqa: S608 - the same
_SHOWN_TWINS: Final = 5


def find_statement(digests: int) -> str:
    """The lookup of a request, for so many candidate digests."""
    return f"{SELECT_KEY} WHERE digest IN ({', '.join('?' * digests)})"


class SqliteKeys(StorePart):
    """KeyReader but its generation, and KeyRegistry but for `touch`."""

    async def find(self, digests: Mapping[bytes, str]) -> ApiKey | None:
        with self._lines.operation("find"):
            rows = await self._lines.finding.read(find_statement(len(digests)), tuple(digests), FIND_SECONDS)
        return next((key for key in map(key_of, rows) if digests[key.digest] == key.algorithm), None)

    async def add(self, keys: Sequence[ApiKey], *, actor: Actor, once: IdempotencyKey | None = None) -> None:
        at = max(key.created_at for key in keys)
        async with self._lines.transaction("add") as line:
            await check_once(line, once, at)
            await _insert(line, keys)
            await remember_once(line, once, keys[-1].id, at)
            await write_audit(line, "issue", [(None, key) for key in keys], at=at, actor=actor)

    async def get(self, name: str) -> ApiKey | None:
        if not name.isascii():
            return None
        rows = await self._lines.read("get", f"{SELECT_KEY} WHERE id = ?", (name,))
        if not rows:
            rows = await self._lines.read("get", f"{SELECT_KEY} WHERE prefix = ? LIMIT {_SHOWN_TWINS}", (name,))
        keys = [key_of(row) for row in rows]
        if len(keys) > 1:
            raise KeyConflict(f"several keys begin with {name!r}: use an id ({', '.join(key.id for key in keys)}…)")
        return keys[0] if keys else None

    async def list(self, wanted: KeyFilter) -> Sequence[ApiKey]:
        found: dict[int, Sequence[Any]] = {}
        for sql, parameters in page_statements(wanted, self._lines.now()):
            rows = await self._lines.read("list", sql, parameters)
            found.update((row[0], row[1:]) for row in rows)
        newest_first = sorted(found, reverse=True)[: wanted.limit]
        return [key_of(found[serial]) for serial in newest_first]

    async def change(self, key_id: str, edit: Edit, *, action: str, at: int, actor: Actor) -> ApiKey:
        async with self._lines.transaction("change") as line:
            before = await _stored(line, key_id)
            after = edit(before)
            if after != before:
                await line.rows(_UPDATE, (*row_of(after), key_id))
                await write_audit(line, action, [(before, after)], at=at, actor=actor)
        return after

    async def replace(
        self, key_id: str, edit: Replacement, *, action: str, at: int, actor: Actor, once: IdempotencyKey | None = None
    ) -> tuple[ApiKey, ApiKey]:
        async with self._lines.transaction("replace") as line:
            await check_once(line, once, at)
            before = await _stored(line, key_id)
            old, new = edit(before)
            await line.rows(_UPDATE, (*row_of(old), key_id))
            await _insert(line, [new])
            await remember_once(line, once, new.id, at)
            await write_audit(line, action, [(before, old), (None, new)], at=at, actor=actor)
        return old, new


async def _stored(line: Connection, key_id: str) -> ApiKey:
    rows = await line.rows(f"{SELECT_KEY} WHERE id = ?", (key_id,))
    if not rows:
        raise UnknownKey(f"no key has the id {key_id!r}")
    return key_of(rows[0])


async def _insert(line: Connection, keys: Sequence[ApiKey]) -> None:
    try:
        await line.many(INSERT_KEY, [row_of(key) for key in keys])
    except sqlite3.IntegrityError as error:
        which = f"a key with the id {keys[0].id!r}" if len(keys) == 1 else "one of these keys, its id"
        raise KeyConflict(f"{which} or the same digest is stored already") from error


# How many keys there are, and which have a moment of their life in a span of time.


# Conditions as those of the partial indexes: without them SQLite could not use these.
_TURNS: Final[Mapping[Turn, tuple[str, str, str]]] = {
    "created": ("api_key_age", "created_at", "status = 'active' AND retires_at IS NULL"),
    "expires": ("api_key_expiry", "expires_at", "status = 'active' AND expires_at IS NOT NULL"),
    "retires": ("api_key_retirement", "retires_at", "status = 'active' AND retires_at IS NOT NULL"),
}


class SqliteCensus(StorePart):
    """KeyCensus and KeyCalendar."""

    async def counts(self) -> Mapping[tuple[str, str], int]:
        # In the order of an index that holds all of it, so that nothing is sorted and no key is read.
        sql = """SELECT status, environment, count(*), total(status = 'active' AND expires_at <= ?)
            FROM api_key INDEXED BY api_key_standing GROUP BY status, environment"""
        counts: dict[tuple[str, str], int] = {}
        for status, environment, count, expired in await self._lines.read("counts", sql, (self._lines.now(),)):
            for effective_status, number in ((status, count - int(expired)), ("expired", int(expired))):
                if number:
                    counts[effective_status, environment or ""] = number
        return counts

    async def algorithms(self) -> Mapping[str, int]:
        sql = "SELECT algorithm, count(*) FROM api_key WHERE status <> 'revoked' GROUP BY algorithm"
        return dict(await self._lines.read("algorithms", sql))

    async def turning(self, turn: Turn, *, since: int, until: int, tenant: str | None, limit: int) -> Sequence[ApiKey]:
        index, column, condition = _TURNS[turn]
        sql = (
            f"{SELECT_KEY} INDEXED BY {index} WHERE {condition} AND {column} BETWEEN ?1 AND ?2 "
            f"AND (?3 IS NULL OR tenant = ?3) ORDER BY {column} LIMIT ?4"
        )
        return [key_of(row) for row in await self._lines.read("turning", sql, (since, until, tenant, limit))]

    async def unused(self, *, before: int, now: int, limit: int) -> Sequence[ApiKey]:
        index, column, condition = _TURNS["retires"]
        sql = (
            f"{SELECT_KEY} INDEXED BY {index} WHERE {condition} AND {column} > ?2 AND replaced_at <= ?1 "
            "AND (last_used_at IS NULL OR last_used_at <= ?1) AND (expires_at IS NULL OR expires_at > ?2) "
            f"ORDER BY {column} LIMIT ?3"
        )
        return [key_of(row) for row in await self._lines.read("unused", sql, (before, now, limit))]


# Quota states as rows.


class SqliteQuotas(StorePart):
    """QuotaStates."""

    async def load_quota_states(self) -> Sequence[QuotaRow]:
        sql = "SELECT quota, subject, state, expires_at FROM quota_state WHERE expires_at > ?"
        return await self._lines.read("load_quota_states", sql, (self._lines.now(),))

    async def save_quota_states(self, rows: Sequence[QuotaRow]) -> None:
        async with self._lines.transaction("save_quota_states") as line:
            await line.rows("DELETE FROM quota_state WHERE expires_at <= ?", (self._lines.now(),))
            await line.many("INSERT OR REPLACE INTO quota_state VALUES (?, ?, ?, ?)", rows)
