"""Keys as rows: found by requests, listed and changed by management."""

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sidecar.core.model import ApiKey
from sidecar.keys.ports import Actor, Edit, KeyConflict, KeyFilter, Once, Replacement, UnknownKey
from sidecar.keys.records import COLUMNS, key_of, row_of
from sidecar.keys.sqlite_once import check_once, remember_once
from sidecar.store.audit import write_audit
from sidecar.store.connection import FIND_SECONDS, Line, StorePart
from sidecar.store.listing import page_statements

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

    async def add(self, keys: Sequence[ApiKey], *, actor: Actor, once: Once | None = None) -> None:
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
        self, key_id: str, edit: Replacement, *, action: str, at: int, actor: Actor, once: Once | None = None
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


async def _stored(line: Line, key_id: str) -> ApiKey:
    rows = await line.rows(f"{SELECT_KEY} WHERE id = ?", (key_id,))
    if not rows:
        raise UnknownKey(f"no key has the id {key_id!r}")
    return key_of(rows[0])


async def _insert(line: Line, keys: Sequence[ApiKey]) -> None:
    try:
        await line.many(INSERT_KEY, [row_of(key) for key in keys])
    except sqlite3.IntegrityError as error:
        which = f"a key with the id {keys[0].id!r}" if len(keys) == 1 else "one of these keys, its id"
        raise KeyConflict(f"{which} or the same digest is stored already") from error
