"""What a request's lookup costs with 1,000 and with 1,000,000 stored keys; run by hand, it takes about a minute.

    .venv/bin/python -m tests.bench.lookup [FOLDER]

FOLDER (a temporary one by default) needs about 1 GB. Prints microseconds for each kind of lookup with both stores,
and their ratio, which should stay near 1 for what the cache answers and below 2 for what SQLite does.
"""

import asyncio
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from sidecar.core.model import ApiKey, KeyStatus
from sidecar.keys.cache import MISS, KeyCache
from sidecar.keys.records import COLUMNS, row_of
from sidecar.runtime.tasks import SystemClock
from sidecar.store.store import SqliteStore
from tests.unit.keys.making import digest_of, ignore, set_status

_SIZES = (1_000, 1_000_000)
_LOOKUPS = 5_000
_PEEKS = 200_000


async def main(folder: str) -> None:
    measured = [await _measure(str(Path(folder) / f"{size}.db"), size) for size in _SIZES]
    print(f"{'microseconds for':24}" + "".join(f"{size:>14,}" for size in _SIZES) + f"{'ratio':>10}")
    for kind in measured[0]:
        few, many = (costs[kind] for costs in measured)
        print(f"{kind:24}{few:14.2f}{many:14.2f}{many / few:10.2f}")


async def _measure(path: str, size: int) -> dict[str, float]:
    store = await SqliteStore.open(path, create=True, clock=SystemClock(), timings=ignore)
    _fill(path, size)
    known = [_text(number) for number in random.Random(7).choices(range(size), k=_LOOKUPS)]  # noqa: S311 - a sample
    costs = {
        "find, stored": await _find(store, known),
        "find, unknown": await _find(store, [f"stranger {number}" for number in range(_LOOKUPS)]),
        "generation": _each(_PEEKS, store.keys.generation),
    }
    cache = KeyCache(store.keys, size=1_000)
    digest = digest_of(known[0])
    assert await cache.find(digest, lambda: {digest: "sha256"})
    assert cache.peek(digest) is not MISS
    costs["cache hit in all"] = _each(_PEEKS, lambda: cache.peek(digest))
    await _change_one(store, size)
    started = time.perf_counter()
    await store.statistics.counts()
    print(f"{size:,} keys: counting them took {time.perf_counter() - started:.3f} s")
    await store.close()
    return costs


async def _change_one(store: SqliteStore, size: int) -> None:
    """Print how many of 1,000 keys in memory are looked up again after one of them was changed."""
    cache = KeyCache(store.keys, size=1_000)
    digests = [digest_of(_text(number)) for number in range(1_000)]
    for changed in (False, True):
        before = cache.misses
        if changed:
            await set_status(store.keys, f"key_{7:020}", KeyStatus.DISABLED)
        for digest in digests:
            await cache.find(digest, lambda digest=digest: {digest: "sha256"})  # type: ignore[misc]
    print(f"{size:,} keys: after a change of one of 1,000 keys in memory, {cache.misses - before} looked up again")


async def _find(store: SqliteStore, texts: list[str]) -> float:
    started = time.perf_counter()
    for text in texts:
        await store.keys.find({digest_of(text): "sha256"})
    return (time.perf_counter() - started) / len(texts) * 1e6


def _each(times: int, call: Any) -> float:
    started = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - started) / times * 1e6


def _text(number: int) -> str:
    return f"secret number {number}"


def _fill(path: str, size: int) -> None:
    insert = f"INSERT INTO api_key ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - no input
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany(insert, _rows(size))


def _rows(size: int) -> Iterator[tuple[Any, ...]]:
    for number in range(size):
        yield row_of(
            ApiKey(
                id=f"key_{number:020}",
                name=f"Key {number}",
                prefix=f"hv_live_{number % 9973:04}",
                digest=digest_of(_text(number)),
                algorithm="sha256",
                tenant=f"tenant-{number % 1000}",
                environment="live",
                scopes=("streams:read", "streams:write"),
                metadata={"user_id": str(number)},
                created_at=1_800_000_000_000_000,
                created_by="bench",
            )
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else temporary))
