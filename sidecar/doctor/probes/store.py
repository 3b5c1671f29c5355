"""Probe of the key store: a read-only report, and latencies measured through its parts."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from statistics import median
from time import perf_counter
from typing import Final

from sidecar.config.build.config import Config
from sidecar.config.fields import sqlite_path
from sidecar.core.apikey import PLAIN
from sidecar.doctor.facts import Latency, StoreFacts, Unknown
from sidecar.keys.ports import AuditState, StoreUnavailable
from sidecar.store.sqlite.inspect import StoreReport, inspect, lock_seconds
from sidecar.store.store import Store

_TRIES: Final = 20
_QUICK_ROWS: Final = 100_000
"""An audit with more rows is verified only with --deep."""
_UNKNOWN: Final = {bytes(32): PLAIN}


Opener = Callable[[str], AbstractAsyncContextManager[Store]]


async def store_facts(config: Config, now: float, open_store: Opener, *, deep: bool) -> StoreFacts | Unknown:
    """now: Unix seconds; open_store takes the store's URL; deep: verify the audit, however long it is."""
    if not config.store.startswith("sqlite:"):
        return Unknown(reason="only a SQLite store can be checked")
    path = sqlite_path(config.store)
    age = config.keys.max_age_seconds
    try:
        found = await asyncio.to_thread(inspect, path, now=int(now * 1_000_000), max_age_seconds=age)
    except StoreUnavailable as error:
        return Unknown(reason=str(error))
    if found.version != found.newest_version or found.journal != "wal":
        # Opening it would migrate it while a sidecar may be running on it.
        unopened = Unknown(reason="the store has another schema version or journal mode than this program uses")
        return StoreFacts(report=found, latencies=unopened, audit=unopened)
    return await _opened(config.store, path, found, open_store, deep=deep)


async def _opened(url: str, path: str, found: StoreReport, open_store: Opener, *, deep: bool) -> StoreFacts:
    audit: AuditState | Unknown = Unknown(reason="the store is unusable")
    try:
        async with open_store(url) as store:
            audit = await _audit(store, found.audit_rows, deep=deep)
            return StoreFacts(report=found, latencies=await _latencies(store, path), audit=audit)
    except StoreUnavailable as error:
        return StoreFacts(report=found, latencies=(), audit=audit, trouble=str(error))


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
        await _timed("change check", generation),
        await _timed("key lookup", find),
        await _timed("write lock", lock),
    )


async def _timed(operation: str, once: Callable[[], Awaitable[float]]) -> Latency:
    seconds = [await once() for _ in range(_TRIES)]
    return Latency(operation=operation, median=median(seconds), slowest=max(seconds))


async def _audit(store: Store, rows: int, *, deep: bool) -> AuditState | Unknown:
    if rows > _QUICK_ROWS and not deep:
        return Unknown(reason=f"verifying {rows:,} rows takes a while: run doctor with --deep")
    return await store.audit.verify()
