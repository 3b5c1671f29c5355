"""Composition root: the only place that names concrete stores and limiters, and the owner of clock and randomness."""

import asyncio
import logging
import os
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from sidecar.config.addresses import sqlite_path
from sidecar.config.model import Address, Config
from sidecar.core.apikey import Hasher, peppers_from
from sidecar.core.forwarding import TrustedProxies
from sidecar.exchange import Exchanges
from sidecar.gate import Gate, KeyFinder
from sidecar.keys.cache import KeyCache
from sidecar.keys.lifecycle import MissingPepper, check_peppers
from sidecar.keys.sqlite import SqliteStore
from sidecar.keys.store import QuotaRow, StoreUnavailable
from sidecar.keys.usage import LastUsed
from sidecar.limiter.base import Limiter
from sidecar.limiter.memory import MemoryLimiter
from sidecar.observe.accesslog import AccessLog, descriptor_writer
from sidecar.observe.metrics import Metrics
from sidecar.ops.server import ops_app
from sidecar.proxy.server import DataServer
from sidecar.proxy.tls import ListenerCertificates, describe
from sidecar.proxy.upstream import Upstream

_log = logging.getLogger(__name__)

FLUSH_SECONDS = 2.0
"""How often last-used times are written."""
QUOTA_SECONDS = 5.0
"""How often quota states are written; a crash forgets at most what was taken since."""
COUNT_SECONDS = 60.0
"""How often keys are counted for the metric."""
STANDING_SECONDS = 3.0
"""How often the keys of streams and tunnels older than this are looked at again: they end within 10 seconds."""
STOP_SECONDS = 20.0
"""How long requests in flight may take to end."""


class StartError(Exception):
    """The configuration cannot be carried out. The message says what to do."""


def make_gate(config: Config, keys: KeyFinder, limiter: Limiter, hasher: Hasher) -> Gate:
    """The gate with the real clock and real randomness."""
    return Gate(config, keys, limiter, hasher=hasher, clock=time.time, new_request_id=lambda: secrets.token_hex(16))


def _hasher_from_environ() -> Hasher:
    """Raises StartError."""
    try:
        return Hasher(peppers_from(os.environ))
    except ValueError as error:
        raise StartError(str(error)) from error


class App:
    """A running sidecar: `async with App(config) as app`. Entering raises StartError, and leaves nothing open."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stack = AsyncExitStack()
        self._metrics = Metrics()
        self._limiter = MemoryLimiter()
        self._last_used = LastUsed(clock=time.time)
        self._saved_quotas: frozenset[QuotaRow] = frozenset()
        self.listeners: list[tuple[str, Address]] = []
        """Name and bound address of each."""

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        """What is entered last is left first: listeners, then the loops that write, then the store."""
        hasher = _hasher_from_environ()
        store = self._store = await self._open_store(hasher)
        cache = KeyCache(store, size=self._config.keys.cache_size)
        self._metrics.foresee(routes=(route.name for route in self._config.routes), quotas=self._config.quotas)
        self._metrics.watch(key_cache=lambda: _cache_results(cache))
        self._stack.push_async_callback(self._save)
        self._repeat(self._flush_last_used, FLUSH_SECONDS)
        self._repeat(self._save_quotas, QUOTA_SECONDS)
        await self._count_keys()
        self._repeat(self._count_keys, COUNT_SECONDS)
        exchanges = Exchanges(self._metrics, self._start_access_log(), self._last_used, time.time)
        await self._listen(make_gate(self._config, cache, self._limiter, hasher), exchanges)

    async def _open_store(self, hasher: Hasher) -> SqliteStore:
        try:
            store = await SqliteStore.open(
                sqlite_path(self._config.store), create=False, clock=time.time, timings=self._metrics.store_timed
            )
            self._stack.push_async_callback(store.close)
            await check_peppers(store, hasher)
            self._limiter.restore(await store.load_quota_states(), time.time())
        except (StoreUnavailable, MissingPepper) as error:
            raise StartError(str(error)) from error
        return store

    def _start_access_log(self) -> AccessLog | None:
        if self._config.access_log == "off":
            return None
        log = AccessLog(descriptor_writer(sys.stdout.fileno()))
        self._metrics.watch(access_log_dropped=lambda: log.dropped)
        self._stack.push_async_callback(log.flush)
        self._run(log.run())
        return log

    async def _listen(self, gate: Gate, exchanges: Exchanges) -> None:
        config = self._config
        with _unusable_certificate("upstream.tls"):
            upstream = Upstream(config.upstream, loop=asyncio.get_running_loop())
        self._stack.callback(upstream.close)
        with _unusable_certificate("tls"):
            certificates = ListenerCertificates(config.tls) if config.tls is not None else None
        data = DataServer(
            lambda: gate,
            upstream,
            observer=exchanges,
            clock=time.monotonic,
            limits=config.limits,
            tls=certificates.current if certificates is not None else None,
            trusts=TrustedProxies(config.trusted_proxies, b"").trusts,
        )
        with _taken_port(config.listen, "listen"):
            await data.start(config.listen)
        self._stack.push_async_callback(partial(data.stop, grace_seconds=STOP_SECONDS))
        self._repeat(partial(data.recheck, older_than_seconds=STANDING_SECONDS), STANDING_SECONDS)
        self.listeners.append(("data", data.address))
        if config.ops is not None:
            with _taken_port(config.ops, "ops"):
                self.listeners.append(("ops", await self._start_ops(config.ops)))

    async def _start_ops(self, address: Address) -> Address:
        app = ops_app(ready=self._ready, exposition=self._metrics.exposition, checks=("store",))
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        if address.path:
            await web.UnixSite(runner, address.path).start()
            return address
        site = web.TCPSite(runner, address.host, address.port)
        await site.start()
        return Address(host=address.host, port=runner.addresses[0][1])

    async def _ready(self) -> Sequence[str]:
        """Ready is: a key that is not in memory can be looked up."""
        try:
            self._store.generation()
            await self._store.find({b"": "none"})
        except StoreUnavailable as error:
            return [f"store: {error}"]
        return []

    async def _save(self) -> None:
        with suppress(StoreUnavailable):
            await self._last_used.flush(self._store, everything=True)
            await self._save_quotas()

    async def _flush_last_used(self) -> None:
        await self._last_used.flush(self._store)

    async def _save_quotas(self) -> None:
        """Off the loop, and only what moved: a snapshot takes microseconds a subject, and a write more."""
        now = time.time()
        self._limiter.expire(now)
        rows = await asyncio.to_thread(self._limiter.snapshot, now)
        if moved := [row for row in rows if row not in self._saved_quotas]:
            await self._store.save_quota_states(moved)
            self._saved_quotas = frozenset(rows)

    async def _count_keys(self) -> None:
        with suppress(StoreUnavailable):
            self._metrics.set_keys(await self._store.counts())

    def _repeat(self, work: Callable[[], Awaitable[None]], seconds: float) -> None:
        async def forever() -> None:
            while True:
                await asyncio.sleep(seconds)
                try:
                    await work()
                except StoreUnavailable:
                    pass  # Told by readiness, and by the requests that need the store.
                except Exception as error:  # One failed round must not be the last.
                    _log.error("a background task failed and goes on: %s", type(error).__name__)

        self._run(forever())

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)

        async def end() -> None:
            task.cancel()
            await asyncio.wait([task])

        self._stack.push_async_callback(end)


def _cache_results(cache: KeyCache) -> dict[str, int]:
    return {"hit": cache.hits, "miss": cache.misses, "negative_hit": cache.negative_hits}


@contextmanager
def _unusable_certificate(option: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StartError(f"cannot use the certificates of {option}: {describe(error)}") from error


@contextmanager
def _taken_port(address: Address, option: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StartError(f"cannot listen on {address} ({option}): {reason}") from error
