"""The audit trail as rows in a hash chain: written with each change, shown, and verified.

The hash of each row covers every column of it and the hash of the row before.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import msgspec

from sidecar.core.model import ApiKey
from sidecar.keys.ports import RESTORE, Actor, AuditFilter, AuditRow, AuditState, StoreUnavailable
from sidecar.keys.records import audited
from sidecar.store.connection import Connection, Database

CHAINED: Final = ("id", "at", "actor", "source", "action", "key_id", "tenant", "before", "after")
"""The columns that a hash covers, in this order."""
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))
_DELETE: Final = b"\x7f"
"""The only ASCII character that JSONEncoder escapes and msgspec does not."""


COPYING: Final = "(copy)"
"""The `quota` of rows in `quota_state` that mark the target of an unfinished copy; see tables.py."""
UNFINISHED: Final = "it is a copy that was not finished: run `sidecar store copy` again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The last row of a chain; `id` is 0 if it has no rows."""

    id: int = 0
    hash: bytes = bytes(32)

    def __str__(self) -> str:
        return f"{self.id}:{self.hash.hex()}"


def head_from(text: str) -> Head:
    """Parse the output of `str(Head)`. Raises ValueError for any other text."""
    number, colon, digest = text.partition(":")
    if not (colon and number.isascii() and number.isdigit() and len(number) < 19 and len(digest) == 64):
        raise ValueError(f"{text!r} is not a head of an audit: it must be a number, a colon and 64 digits of a hash")
    try:
        return Head(id=int(number), hash=bytes.fromhex(digest))
    except ValueError:
        raise ValueError(
            f"{text!r} is not a head of an audit: its hash has other characters than 0-9 and a-f"
        ) from None


def link(previous: bytes, row: Sequence[Any]) -> bytes:
    """The hash of a row of CHAINED, after a row with the hash `previous`."""
    return sha256(previous + _json(row)).digest()


def _json(row: Sequence[Any]) -> bytes:
    """The encoder's output, in a fifth of the time if nothing needs escaping: an import computes a million links."""
    try:
        text = msgspec.json.encode(row)
    except (TypeError, ValueError, OverflowError):  # A lone surrogate, or a type that no column has.
        return _ENCODER.encode(row).encode()
    return text if text.isascii() and _DELETE not in text else _ENCODER.encode(row).encode()


def linked(head: Head, rows: Iterable[Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
    """Add id and hash to rows of CHAINED that lack their id."""
    digest = head.hash
    for number, row in enumerate(rows, head.id + 1):
        digest = link(digest, (number, *row))
        yield (number, *row, digest)


class Walk:
    """Follows a chain from its first row, and reports the first problem."""

    def __init__(self, noted: Head | None = None) -> None:
        self.head = Head()
        self.rows = 0
        self._earlier = noted

    def step(self, row: Sequence[Any]) -> str | None:
        """Check the next row, CHAINED and its hash. Returns the problem, if there is one."""
        number, stored = row[0], row[-1]
        # Ids have no gaps: the transaction that writes a row assigns its id.
        if number != self.head.id + 1:
            return _missing(self.head.id + 1, number - 1)
        if stored != link(self.head.hash, row[:-1]):
            return f"row {number} was changed, or the row before it was"
        self.head = Head(id=number, hash=stored)
        self.rows += 1
        if self._earlier is not None and self._earlier.id == number and self._earlier.hash != stored:
            return f"row {number} is not the one that was noted: the audit was rewritten"
        return None

    def end(self, recorded: Head, last_id: int) -> str | None:
        """Check the end of the chain. `recorded` is the stored head, `last_id` that of the last row."""
        if self.head.id < recorded.id:
            return _missing(self.head.id + 1, recorded.id)
        if last_id > recorded.id or self.head != recorded:
            return f"the rows after {recorded.id} were not written by the sidecar"
        if self._earlier is not None and self.head.id < self._earlier.id:
            return _missing(self.head.id + 1, self._earlier.id)
        return None


def _missing(first: int, last: int) -> str:
    return f"row {first} was removed" if first >= last else f"rows {first} to {last} were removed"


_FIELDS: Final = ", ".join(CHAINED)
_BATCH: Final = 2_000

Change = tuple[ApiKey | None, ApiKey]
"""A key before (None for a new one) and after."""


_HEAD: Final = "SELECT id, hash, EXISTS (SELECT 1 FROM quota_state WHERE quota = ?) FROM audit_head"


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
    """The end of the trail, to which a change will be added. Raises StoreUnavailable in an unfinished copy.

    Its next rows come from the source store: a change made here would be lost, or would keep the copy from finishing.
    """
    [(number, digest, copying)] = await connection.fetch(_HEAD, (COPYING,))
    if copying:
        raise StoreUnavailable(f"the key store cannot be changed: {UNFINISHED}", cause=UNFINISHED)
    return Head(id=number, hash=digest)


async def append(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Write rows (at least one) that are already linked to the end of the trail."""
    await connection.insert(f"INSERT INTO audit ({_FIELDS}, hash)", rows)
    await connection.execute("UPDATE audit_head SET id = ?, hash = ?", (rows[-1][0], rows[-1][-1]))


class StoredAudit:
    """Changes of keys, in a chain that reveals a changed or removed row. Every method raises StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def rows(self, wanted: AuditFilter) -> Sequence[AuditRow]:
        """The matching rows, newest first."""
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

        `progress` is called from time to time with the number of rows so far. Raises ValueError if `noted` is not a
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
        raise StoreUnavailable(f"row {values['id']} of the audit is damaged: {RESTORE}") from error
    return AuditRow(**values)
