"""The key store, inspected without a change and timed through its own parts."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from statistics import median
from time import perf_counter
from typing import Final

from sidecar.config.build.config import Config
from sidecar.config.fields import sqlite_path
from sidecar.core.apikey import PLAIN
from sidecar.doctor.facts import Latency, StoreSeen, Unknown
from sidecar.keys.ports import AuditState, StoreUnavailable
from sidecar.store.sqlite.inspect import StoreReport, inspect, lock_seconds
from sidecar.store.store import Store

TRIES: Final = 20
QUICK_ROWS: Final = 100_000
"""An audit with more rows is verified only on demand."""
_UNKNOWN: Final = {bytes(32): PLAIN}


Opener = Callable[[str], AbstractAsyncContextManager[Store]]


async def store_seen(config: Config, now: float, open_store: Opener, *, deep: bool) -> StoreSeen | Unknown:
    """now: Unix seconds; open_store: from the store's URL; deep: verify the audit, however long it is."""
    if not config.store.startswith("sqlite:"):
        return Unknown(reason="only a SQLite store can be looked into")
    path = sqlite_path(config.store)
    age = config.keys.max_age_seconds
    try:
        found = await asyncio.to_thread(inspect, path, now=int(now * 1_000_000), max_age_seconds=age)
    except StoreUnavailable as error:
        return Unknown(reason=str(error))
    if found.version != found.newest_version or found.journal != "wal":
        # Opening it would bring it up to date under a sidecar that may be running on it.
        unopened = Unknown(reason="the store is not as this program makes it")
        return StoreSeen(look=found, latencies=unopened, audit=unopened)
    return await _opened(config.store, path, found, open_store, deep=deep)


async def _opened(url: str, path: str, found: StoreReport, open_store: Opener, *, deep: bool) -> StoreSeen:
    audit: AuditState | Unknown = Unknown(reason="the store cannot be used")
    try:
        async with open_store(url) as store:
            audit = await _audit(store, found.audit_rows, deep=deep)
            return StoreSeen(look=found, latencies=await _latencies(store, path), audit=audit)
    except StoreUnavailable as error:
        return StoreSeen(look=found, latencies=(), audit=audit, trouble=str(error))


async def _latencies(store: Store, path: str) -> tuple[Latency, ...]:
    async def generation() -> float:
        started = perf_counter()
        store.keys.generation()
        return perf_counter() - started

    async def find() -> float:
        started = perf_counter()
        await store.keys.find(_UNKNOWN)
        return perf_counter() - started

    async def lock() -> float:
        return await asyncio.to_thread(lock_seconds, path)

    return (
        await _timed("change seen", generation),
        await _timed("key looked up", find),
        await _timed("right to write", lock),
    )


async def _timed(operation: str, once: Callable[[], Awaitable[float]]) -> Latency:
    taken = [await once() for _ in range(TRIES)]
    return Latency(operation=operation, median=median(taken), slowest=max(taken))


async def _audit(store: Store, rows: int, *, deep: bool) -> AuditState | Unknown:
    if rows > QUICK_ROWS and not deep:
        return Unknown(reason=f"{rows:,} rows take a while: give --deep")
    return await store.audit.verify()
