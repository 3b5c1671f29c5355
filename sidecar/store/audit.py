"""The audit trail as rows: written with each change, shown, and verified."""

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

from sidecar.core.model import ApiKey
from sidecar.keys.audit import CHAINED, Head, Walk, head_from, linked
from sidecar.keys.ports import Actor, AuditFilter, AuditRow, AuditState, StoreUnavailable
from sidecar.keys.records import audited
from sidecar.store.connection import Connection, Database

_FIELDS: Final = ", ".join(CHAINED)
_BATCH: Final = 2_000

Change = tuple[ApiKey | None, ApiKey]
"""A key before (None for a new one) and after."""


async def write_audit(connection: Connection, action: str, changes: Sequence[Change], *, at: int, actor: Actor) -> None:
    """Write one row for each change, in the transaction of the change."""
    if not changes:
        return
    entries = [
        (at, actor.name, actor.source, action, new.id, new.tenant, old and audited(old), audited(new))
        for old, new in changes
    ]
    await append(connection, list(linked(await head_of(connection), entries)))


async def head_of(connection: Connection) -> Head:
    """The end of the trail."""
    [(number, digest)] = await connection.fetch("SELECT id, hash FROM audit_head")
    return Head(id=number, hash=digest)


async def append(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Write rows, at least one, that are linked to the end of the trail."""
    await connection.insert(f"INSERT INTO audit ({_FIELDS}, hash)", rows)
    await connection.execute("UPDATE audit_head SET id = ?, hash = ?", (rows[-1][0], rows[-1][-1]))


class StoredAudit:
    """The changes of keys, chained so that a changed or removed row is found. Every method raises StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def rows(self, wanted: AuditFilter) -> Sequence[AuditRow]:
        """The rows that fit, the newest first."""
        filters = {
            "key_id = ?": wanted.key_id,
            "tenant = ?": wanted.tenant,
            "actor = ?": wanted.actor,
            "action = ?": wanted.action,
            "at >= ?": wanted.since,
            "at < ?": wanted.until,
            "id < ?": wanted.before_id,
        }
        conditions = {sql: value for sql, value in filters.items() if value is not None}
        ids = wanted.key_ids
        among = [] if ids is None else [f"key_id IN ({', '.join('?' * len(ids))})"]
        terms = [*conditions, *among]
        where = f" WHERE {' AND '.join(terms)}" if terms else ""
        sql = f"SELECT {_FIELDS} FROM audit{where} ORDER BY id DESC LIMIT ?"  # noqa: S608 - conditions of our own
        values = (*conditions.values(), *(ids or ()), wanted.limit)
        return [_row(row) for row in await self._database.read("audit", sql, values)]

    async def verify(
        self, noted: str | None = None, *, progress: Callable[[int], None] = lambda rows: None
    ) -> AuditState:
        """Check every row. `noted` is the head of an earlier check, which must still be part of the chain.

        `progress` is called from time to time, with the number of rows so far. Raises ValueError where `noted` is not a
        head.
        """
        walk = Walk(head_from(noted) if noted else None)
        ends = "SELECT id, hash, (SELECT coalesce(max(id), 0) FROM audit) FROM audit_head"
        found = await self._database.read("verify_audit", ends)
        if len(found) != 1:
            return AuditState(rows=0, head=str(walk.head), problem="the head of the audit was removed")
        [(number, digest, last_id)] = found
        sql = f"SELECT {_FIELDS}, hash FROM audit WHERE id > ? AND id <= ? ORDER BY id LIMIT {_BATCH}"  # noqa: S608 - no input
        problem = None
        while problem is None:
            rows = await self._database.read("verify_audit", sql, (walk.head.id, number))
            if not rows:
                problem = walk.end(Head(id=number, hash=digest), last_id)
                break
            problem = next(filter(None, map(walk.step, rows)), None)
            progress(walk.rows)
        return AuditState(rows=walk.rows, head=str(walk.head), problem=problem)


def _row(row: Sequence[Any]) -> AuditRow:
    values = dict(zip(CHAINED, row, strict=True))
    try:
        for name in ("before", "after"):
            values[name] = values[name] and json.loads(values[name])
    except ValueError as error:
        raise StoreUnavailable(
            f"row {values['id']} of the audit is damaged: restore the store from a backup"
        ) from error
    return AuditRow(**values)
