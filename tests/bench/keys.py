"""Keys of the benchmark: well-formed, always the same, and stored in bulk."""

import asyncio
import random
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

from sidecar.core.apikey import KeyFormat
from sidecar.core.model import ApiKey
from sidecar.keys.records import COLUMNS, row_of
from sidecar.runtime.clock import SystemClock
from sidecar.store.store import SqliteStore

PREFIX = "hv_live_"
SCOPES = ("items:read", "items:write")
_INSERT = f"INSERT INTO api_key ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - no input


def make_keys(count: int, *, seed: int = 1) -> list[str]:
    """`count` well-formed keys; the first ones are the same for every count."""
    shape, source = KeyFormat(), random.Random(seed)  # noqa: S311 - nothing is protected by them
    return [shape.make(PREFIX, source.randrange) for _ in range(count)]


def mistyped(keys: Iterable[str]) -> list[str]:
    """Each key with its last character changed, so that the checksum fails."""
    # To a digit: nginx's `map` takes no notice of case, and would let `a` through for `A`.
    return [key[:-1] + ("0" if key[-1] != "0" else "1") for key in keys]


def write_keys(path: Path, keys: Sequence[str]) -> Path:
    """One key a line, for the load generator."""
    path.write_text("\n".join(keys) + "\n")
    return path


def fill_store(path: Path, keys: Sequence[str]) -> None:
    """A new SQLite store of `keys`, filled past the triggers and indexes, which are put back in the end."""
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
        connection.executemany(_INSERT, _rows(keys))
        for _, _, sql in put_back:
            connection.execute(sql)
        connection.execute("UPDATE generation SET value = random()")
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


async def _create(path: Path) -> None:
    store = await SqliteStore.open(str(path), create=True, clock=SystemClock(), timings=lambda *_: None)
    await store.close()


def _rows(keys: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    template = ApiKey(
        id="",
        name="",
        prefix="",
        digest=bytes(32),
        algorithm="sha256",
        tenant="tenant-1",
        environment="live",
        scopes=SCOPES,
        created_at=1_700_000_000_000_000,
        created_by="bench",
    )
    row = list(row_of(template))
    places = [COLUMNS.index(name) for name in ("id", "name", "prefix", "digest")]
    for number, key in enumerate(keys):
        values = (f"key_{number:020}", f"Key {number}", key[:12], sha256(key.encode()).digest())
        for place, value in zip(places, values, strict=True):
            row[place] = value
        yield tuple(row)
