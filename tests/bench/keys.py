"""Keys of the benchmark: well-formed, always the same, and stored in bulk."""

import asyncio
import random
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from sidecar.core.apikey import KeyFormat
from sidecar.core.model import ApiKey, KeyStatus
from sidecar.keys.records import COLUMNS, row_of
from sidecar.runtime.tasks import SystemClock
from sidecar.store.store import SqliteStore

Kind = Literal["good", "none", "mistyped", "unknown", "revoked"]
"""`unknown` is well-formed but nobody's."""
PREFIX = "hv_live_"
_CREATED = 1_700_000_000_000_000
SCOPES = ("items:read", "items:write")
_TEMPLATE = ApiKey(
    id="",
    name="",
    prefix="",
    digest=bytes(32),
    algorithm="sha256",
    tenant="tenant-1",
    environment="live",
    scopes=SCOPES,
    created_at=_CREATED,
    created_by="bench",
)
_REVOKED = replace(_TEMPLATE, status=KeyStatus.REVOKED, revoked_at=_CREATED + 1)
_INSERT = f"INSERT INTO api_key ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - no input


def make_keys(count: int, *, seed: int = 1) -> list[str]:
    """`count` well-formed keys; the first ones are the same for every count."""
    shape, source = KeyFormat(), random.Random(seed)  # noqa: S311 - nothing is protected by them
    return [shape.make(PREFIX, source.randrange) for _ in range(count)]


@cache
def keys_of(kind: Kind, count: int) -> Sequence[str]:
    """`count` keys of a kind; `none` is one empty text."""
    match kind:
        case "none":
            return [""]
        case "good":
            return make_keys(count)
        case "mistyped":
            return [_mistyped(key) for key in make_keys(count)]
        case "unknown":
            return make_keys(count, seed=2)
        case "revoked":
            return make_keys(count, seed=3)


def _mistyped(key: str) -> str:
    """With its last character changed, so that the checksum fails."""
    # To a digit: nginx's `map` takes no notice of case, and would let `a` through for `A`.
    return key[:-1] + ("0" if key[-1] != "0" else "1")


def write_keys(path: Path, keys: Sequence[str]) -> Path:
    """One key a line, for the plain proxy."""
    path.write_text("\n".join(keys) + "\n")
    return path


def fill_store(path: Path, keys: Sequence[str], *, revoked: Sequence[str] = ()) -> None:
    """A new SQLite store of `keys`, filled past the triggers and indexes, which are put back in the end.

    revoked: keys that are stored, too, and were revoked.
    """
    asyncio.run(_create(path))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        put_back = connection.execute(
            "SELECT type, name, sql FROM sqlite_master "
            "WHERE tbl_name = 'api_key' AND type IN ('index', 'trigger') AND sql IS NOT NULL"
        ).fetchall()
        connection.execute("BEGIN")
        for kind, name, _ in put_back:
            connection.execute(f"DROP {kind} {name}")
        connection.executemany(_INSERT, _rows(_TEMPLATE, keys, first=0))
        connection.executemany(_INSERT, _rows(_REVOKED, revoked, first=len(keys)))
        for _, _, sql in put_back:
            connection.execute(sql)
        connection.execute("UPDATE generation SET value = random()")
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


async def _create(path: Path) -> None:
    store = await SqliteStore.open(str(path), create=True, clock=SystemClock(), timings=lambda *_: None)
    await store.close()


def _rows(template: ApiKey, keys: Sequence[str], *, first: int) -> Iterator[tuple[Any, ...]]:
    row = list(row_of(template))
    places = [COLUMNS.index(name) for name in ("id", "name", "prefix", "digest")]
    for number, key in enumerate(keys, first):
        values = (f"key_{number:020}", f"Key {number}", key[:12], sha256(key.encode()).digest())
        for place, value in zip(places, values, strict=True):
            row[place] = value
        yield tuple(row)
