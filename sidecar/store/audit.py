"""The audit trail as rows: written with each change, shown, and verified."""

import json
from collections.abc import Sequence
from typing import Any, Final

from sidecar.core.model import ApiKey
from sidecar.keys.audit import CHAINED, Head, Walk, head_from, linked
from sidecar.keys.ports import Actor, AuditFilter, AuditRow, AuditState, StoreUnavailable
from sidecar.keys.records import audited
from sidecar.store.connection import Connection, StorePart

_FIELDS: Final = ", ".join(CHAINED)
_BATCH: Final = 2_000

Change = tuple[ApiKey | None, ApiKey]
"""A key before (None for a new one) and after."""


async def write_audit(line: Connection, action: str, changes: Sequence[Change], *, at: int, actor: Actor) -> None:
    """A row for each change, in the transaction that makes it."""
    if not changes:
        return
    entries = [
        (at, actor.name, actor.source, action, new.id, new.tenant, old and audited(old), audited(new))
        for old, new in changes
    ]
    await append(line, list(linked(await head_of(line), entries)))


async def head_of(line: Connection) -> Head:
    """The end of the trail."""
    [(number, digest)] = await line.rows("SELECT id, hash FROM audit_head")
    return Head(id=number, hash=digest)


async def append(line: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Write rows, at least one, that are linked to the end of the trail."""
    await line.insert(f"INSERT INTO audit ({_FIELDS}, hash)", rows)
    await line.rows("UPDATE audit_head SET id = ?, hash = ?", (rows[-1][0], rows[-1][-1]))


class SqliteAudit(StorePart):
    """AuditTrail."""

    async def audit(self, wanted: AuditFilter) -> Sequence[AuditRow]:
        asked = {
            "key_id = ?": wanted.key_id,
            "tenant = ?": wanted.tenant,
            "actor = ?": wanted.actor,
            "action = ?": wanted.action,
            "at >= ?": wanted.since,
            "at < ?": wanted.until,
            "id < ?": wanted.before_id,
        }
        conditions = {sql: value for sql, value in asked.items() if value is not None}
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        sql = f"SELECT {_FIELDS} FROM audit{where} ORDER BY id DESC LIMIT ?"  # noqa: S608 - conditions of our own
        return [_row(row) for row in await self._lines.read("audit", sql, (*conditions.values(), wanted.limit))]

    async def verify_audit(self, noted: str | None = None) -> AuditState:
        walk = Walk(head_from(noted) if noted else None)
        ends = "SELECT id, hash, (SELECT coalesce(max(id), 0) FROM audit) FROM audit_head"
        found = await self._lines.read("verify_audit", ends)
        if len(found) != 1:
            return AuditState(rows=0, head=str(walk.head), problem="the head of the audit was removed")
        [(number, digest, last_id)] = found
        sql = f"SELECT {_FIELDS}, hash FROM audit WHERE id > ? AND id <= ? ORDER BY id LIMIT {_BATCH}"  # noqa: S608 - no input
        problem = None
        while problem is None:
            rows = await self._lines.read("verify_audit", sql, (walk.head.id, number))
            if not rows:
                problem = walk.end(Head(id=number, hash=digest), last_id)
                break
            problem = next(filter(None, map(walk.step, rows)), None)
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
