"""How long pages of keys take with a million of them; run by hand, it takes some minutes.

    .venv/bin/python -m tests.bench.key_pages [FOLDER]

FOLDER (a temporary one by default) needs about 1.5 GB; a store that an earlier run left in it is used again. Prints the
median and the slowest of the pages of each kind in milliseconds, first and last pages alike. The aim: under 100 ms.
"""

import asyncio
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from sidecar.core.model import KeyStatus
from sidecar.keys.ports import AuditFilter, KeyFilter
from sidecar.keys.records import row_of
from sidecar.runtime.tasks import SystemClock
from sidecar.store.keys import INSERT_KEY
from sidecar.store.store import SqliteStore, Store
from tests.unit.keys.making import NOW_US, a_key, digest_of, ignore

_KEYS = 1_000_000
PAGE = 50
_TIMES = 7
_TEAMS = ("billing", "search", "mobile", "nightly build", "reporting")

KINDS: dict[str, KeyFilter] = {
    "all": KeyFilter(),
    "after the 999,900th": KeyFilter(after=f"key_{99:020}"),
    "tenant of 1,000 keys": KeyFilter(tenant="tenant-8"),
    "tenant of 500,000 keys": KeyFilter(tenant="big"),
    "environment": KeyFilter(environment="test"),
    "active": KeyFilter(effective_status="active"),
    "revoked (10)": KeyFilter(effective_status="revoked"),
    "disabled (50,000)": KeyFilter(effective_status="disabled"),
    "expired (100,000, the oldest)": KeyFilter(effective_status="expired"),
    "retired (1,000)": KeyFilter(effective_status="retired"),
    "expired in a tenant": KeyFilter(effective_status="expired", tenant="tenant-8"),
    "big tenant, revoked (none)": KeyFilter(tenant="big", effective_status="revoked"),
    "big tenant, environment (none)": KeyFilter(tenant="big", environment="test"),
    "tenant, environment, active": KeyFilter(tenant="tenant-8", environment="live", effective_status="active"),
    "search: one id": KeyFilter(search=f"key_{123_456:020}"),
    "search: a stored prefix": KeyFilter(search="hv_live_0077"),
    "search: every prefix": KeyFilter(search="hv_live_"),
    "search: a word of all": KeyFilter(search="key"),
    "search: one letter": KeyFilter(search="k"),
    "search: a word begun, of 200,000": KeyFilter(search="night"),
    "search: a number": KeyFilter(search="123456"),
    "search: a number begun": KeyFilter(search="12345"),
    "search: tenants, whole": KeyFilter(search="tenant"),
    "search: tenants begun": KeyFilter(search="tenan"),
    "search: two words": KeyFilter(search="billing tenant-8"),
    "search: a word of nobody": KeyFilter(search="zzzz"),
    "search in a tenant": KeyFilter(search="billing", tenant="tenant-8"),
    "search, revoked": KeyFilter(search="key", effective_status="revoked"),
    "search, expired": KeyFilter(search="billing", effective_status="expired"),
}


async def main(folder: str) -> None:
    path = str(Path(folder) / "million.db")
    store = await SqliteStore.open(path, create=True, clock=SystemClock(), timings=ignore)
    if not await store.keys.list(KeyFilter(limit=1)):
        started = time.perf_counter()
        _fill(path)
        seconds = time.perf_counter() - started
        print(f"{_KEYS:,} keys stored in {seconds:.0f} s, {_KEYS / seconds:,.0f} a second, past the audit")
    print(f"{'milliseconds for a page of ' + str(PAGE):40}{'keys':>8}{'median':>10}{'slowest':>10}")
    for kind, wanted in KINDS.items():
        page, times = await timed(store, wanted)
        print(f"{kind:40}{len(page):8}{statistics.median(times):10.1f}{max(times):10.1f}")
    started = time.perf_counter()
    await store.audit.rows(AuditFilter(limit=PAGE))
    print(f"audit page: {(time.perf_counter() - started) * 1000:.1f} ms")
    await store.close()


async def timed(store: Store, wanted: KeyFilter) -> tuple[Any, list[float]]:
    times = []
    for _ in range(_TIMES):
        started = time.perf_counter()
        page = await store.keys.list(replace(wanted, limit=PAGE))
        times.append((time.perf_counter() - started) * 1000)
    return page, times


def _fill(path: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.executemany(INSERT_KEY, rows_of_a_million())


def rows_of_a_million() -> Iterator[tuple[Any, ...]]:
    template = a_key(scopes=("streams:read",), metadata={"user_id": "7"})
    for number in range(_KEYS):
        yield row_of(
            replace(
                template,
                id=f"key_{number:020}",
                name=f"Key {number} {_TEAMS[number % len(_TEAMS)]}",
                prefix=f"hv_live_{number % 9973:04}",
                digest=digest_of(str(number)),
                tenant="big" if number % 2 else f"tenant-{number % 1000}",
                environment="live" if number % 2 else "test" if number % 4 else "live",
                status=_status(number),
                created_at=NOW_US + number,
                expires_at=1 if number < _KEYS // 10 else None,
                retires_at=1 if number % 1000 == 500 else None,
            )
        )


def _status(number: int) -> KeyStatus:
    if number % (_KEYS // 10) == 2:
        return KeyStatus.REVOKED
    return KeyStatus.DISABLED if number % 20 == 4 else KeyStatus.ACTIVE


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else temporary))
