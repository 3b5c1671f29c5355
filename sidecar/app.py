"""Composition root: the only place that names concrete stores and limiters, and the owner of clock and randomness."""

import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from types import TracebackType
from typing import Self

from sidecar.config.build.config import Config
from sidecar.config.fields import Address, sqlite_path
from sidecar.config.reload import is_mounted_alone
from sidecar.core.apikey import Hasher, peppers_from
from sidecar.core.upstream_request import RequestIds
from sidecar.forward_auth.server import DecisionServer
from sidecar.gate.compile import key_prefixes
from sidecar.gate.gate import Gate, KeyFinder
from sidecar.keys.lifecycle import MissingPepper, check_peppers
from sidecar.keys.ports import StoreUnavailable
from sidecar.keys.rehash import Rehashing
from sidecar.limiter.memory import MemoryLimiter
from sidecar.limiter.port import Limiter
from sidecar.ops.server import ops_app
from sidecar.runtime.listeners import StartError, serve_app, taken_port
from sidecar.runtime.maintenance import RETIRE_SECONDS, Retirement, Upkeep, UsageKeeper
from sidecar.runtime.reload import Reloader
from sidecar.runtime.serving import Serving
from sidecar.runtime.shutdown import Drainer
from sidecar.runtime.tasks import Background
from sidecar.runtime.telemetry import Observing
from sidecar.store.store import SqliteStore
from sidecar.telemetry.metrics import Metrics, Reloads, UsageMetrics
from sidecar.telemetry.observer import Exchanges
from sidecar.usage.anomalies import AnomalyDetector
from sidecar.usage.recorder import Usage

REHASH_SECONDS = 2.0
"""How often keys in use that are hashed in an older way are hashed anew."""
STANDING_SECONDS = 3.0
"""How often the keys of streams and tunnels older than this are looked at again: they end within 10 seconds."""

_log = logging.getLogger(__name__)


def make_gate(config: Config, keys: KeyFinder, limiter: Limiter, hasher: Hasher) -> Gate:
    """The gate with the real clock and real randomness."""
    return Gate(config, keys, limiter, hasher=hasher, clock=time.time, new_request_id=RequestIds(secrets.token_bytes))


def _hasher_of(config: Config) -> Hasher:
    """Raises StartError."""
    try:
        return Hasher(peppers_from(os.environ), config.keys.imported)
    except ValueError as error:
        raise StartError(str(error)) from error


class App:
    """A running sidecar: `async with App(config) as app`. Entering raises StartError, and leaves nothing open.

    read_again: reads the configuration anew, or raises ConfigError; None for one that is read once and for all.
    """

    def __init__(self, config: Config, *, read_again: Callable[[], Config] | None = None) -> None:
        self._config, self._read_again = config, read_again
        self._stack = AsyncExitStack()
        self._metrics = Metrics()
        self._background = Background(self._stack, self._metrics.background_failed)
        self._limiter = MemoryLimiter()
        self._usage = Usage(clock=time.time)
        self._drainer = Drainer()
        self._reloads: Reloads | None = None
        self._reloader: Reloader | None = None
        self._decisions: DecisionServer | None = None
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

    def reload(self) -> None:
        """Read the configuration again, soon."""
        if self._reloader is not None:
            self._reloader.ask()

    async def drain(self, *, at_once: bool = False) -> None:
        """End in order: balancers are told first (`at_once`: they are not), then what has begun is finished."""
        await self._drainer.drain(self._serving.config.drain, at_once=at_once)

    def hurry(self) -> None:
        """Cut off what draining still waits for."""
        self._drainer.hurry()

    async def _start(self) -> None:
        """What is entered last is left first: listeners, then the loops that write, then the store."""
        hasher = _hasher_of(self._config)
        store = self._store = await self._open_store(hasher)
        rehashing = self._start_rehashing(store, hasher)
        await self._start_upkeep(store)
        exchanges = self._start_observing()
        self._serving = Serving(
            self._config,
            rehashing,
            make_gate=lambda config, keys: make_gate(config, keys, self._limiter, _hasher_of(config)),
            metrics=self._metrics,
        )
        self._stack.callback(self._serving.close)
        await self._listen(exchanges)
        await self._listen_for_decisions(exchanges)
        await self._listen_for_admin()
        self._watch_config()
        await self._listen_for_ops()

    def _start_rehashing(self, store: SqliteStore, hasher: Hasher) -> Rehashing:
        rehashing = Rehashing(store.keys, hasher.newest, clock=time.time)
        self._stack.push_async_callback(rehashing.finish, store.keys.rehash)
        self._background.repeat(partial(rehashing.flush, store.keys.rehash), REHASH_SECONDS)
        return rehashing

    async def _open_store(self, hasher: Hasher) -> SqliteStore:
        try:
            store = await SqliteStore.open(
                sqlite_path(self._config.store), create=False, clock=time.time, timings=self._metrics.store_timed
            )
            self._stack.push_async_callback(store.close)
            await check_peppers(store.statistics, hasher)
            self._limiter.restore(await store.quotas.load(), time.time())
        except (StoreUnavailable, MissingPepper) as error:
            raise StartError(str(error)) from error
        return store

    async def _start_upkeep(self, store: SqliteStore) -> None:
        self._keeper = await self._keep_usage(store)
        upkeep = Upkeep(
            store.statistics,
            store.quotas,
            self._limiter,
            usage=self._keeper,
            metrics=self._metrics,
            clock=time.time,
        )
        self._stack.push_async_callback(upkeep.finish)
        await upkeep.start(self._background)
        self._retirement = Retirement(
            store.keys, store.statistics, self._keeper, settings=self._config.keys, clock=time.time
        )
        self._background.repeat(self._retirement.round, RETIRE_SECONDS)

    async def _keep_usage(self, store: SqliteStore) -> UsageKeeper:
        settings = self._config.usage
        write = partial(logging.getLogger("sidecar.unusual").warning, "%s")
        detector = AnomalyDetector(settings.unusual, clock=time.time, write=write)
        prefixes = key_prefixes(self._config)
        keeper = UsageKeeper(
            store.usage,
            store.anomalies,
            self._usage,
            detector=detector,
            settings=settings,
            clock=time.time,
            prefixes=prefixes,
        )
        self._metrics.also(UsageMetrics(detector.events.counts, dropped=lambda: keeper.dropped))
        with suppress(StoreUnavailable):
            await keeper.restore()
        return keeper

    def _start_observing(self) -> Exchanges:
        self._observing = observing = Observing(
            self._config, metrics=self._metrics, background=self._background, stack=self._stack, clock=time.time
        )
        return Exchanges(self._metrics, observing.access_log, self._usage, clock=time.time, tracer=observing.tracer)

    async def _listen(self, exchanges: Exchanges) -> None:
        data = self._serving.data_server(exchanges, time.monotonic, time.time)
        with taken_port(self._config.listen, "listen"):
            await data.start(self._config.listen)
        self._stack.push_async_callback(partial(self.drain, at_once=True))
        self._drainer.add(data)
        self._background.repeat(partial(data.revalidate_streams, older_than_seconds=STANDING_SECONDS), STANDING_SECONDS)
        self.listeners.append(("data", data.address))

    async def _listen_for_decisions(self, exchanges: Exchanges) -> None:
        if self._config.decision is None:
            return
        address, serving = self._config.decision.listen, self._serving
        server = self._decisions = DecisionServer(
            serving.decisions(), observer=exchanges, clock=time.monotonic, wall_clock=time.time
        )
        with taken_port(address, "decision"):
            await server.start(address)
        self._drainer.add(server)
        self.listeners.append(("decision", server.address))

    async def _listen_for_admin(self) -> None:
        if self._config.admin is None:
            return
        # Its libraries are for those who use it.
        from sidecar.runtime.admin import Process, administration

        serving = self._serving
        process = Process(
            config=lambda: serving.config,
            store=self._store,
            hasher_of=_hasher_of,
            limiter=self._limiter,
            make_gate=lambda config, keys, limiter: make_gate(config, keys, limiter, _hasher_of(config)),
            refusals=self._metrics.refusals,
            clients=lambda: dict(self.listeners)["data"],
        )
        address = await serve_app(administration(process), self._config.admin.listen, "admin", stack=self._stack)
        self.listeners.append(("admin", address))

    def _watch_config(self) -> None:
        if self._read_again is None:
            return
        config, serving = self._config, self._serving
        self._reloads = reloads = Reloads(config.sha256, at=time.time())
        self._metrics.also(reloads)
        self._reloader = Reloader(
            self._read_again, self._adopt, lambda: serving.config, reloads=reloads, clock=time.time
        )
        self._background.run(self._reloader.run())
        if config.reload.watch and is_mounted_alone(config.path):
            _log.warning(
                "sidecar: config: %s is mounted by itself (subPath): changes are not seen. Mount its folder instead",
                config.path,
            )

    async def _adopt(self, config: Config) -> Sequence[str]:
        with suppress(StoreUnavailable):  # A change of the configuration may be what mends that.
            await self._check_peppers(config)
        kept = await self._serving.reconfigure(config)
        if self._decisions is not None:
            self._decisions.reconfigure(self._serving.decisions())
        self._keeper.reconfigure(self._serving.config.usage, prefixes=key_prefixes(self._serving.config))
        self._retirement.reconfigure(self._serving.config.keys)
        self._observing.reconfigure(self._serving.config)
        return kept

    async def _check_peppers(self, config: Config) -> None:
        """Raises StartError where keys that work now would not any longer."""
        try:
            await check_peppers(self._store.statistics, _hasher_of(config))
        except MissingPepper as error:
            raise StartError(str(error)) from error

    async def _listen_for_ops(self) -> None:
        if self._config.ops is None:
            return
        app = ops_app(
            ready=self._ready,
            exposition=self._metrics.exposition,
            checks=("store", "config"),
            remarks=self._remarks,
        )
        self.listeners.append(("ops", await serve_app(app, self._config.ops, "ops", stack=self._stack)))

    async def _ready(self) -> Sequence[str]:
        """Ready is: a key that is not in memory can be looked up, and there is time to."""
        if self._drainer.begun:
            return ["drain: shutting down"]
        try:
            self._store.keys.generation()
            await self._store.keys.find({b"": "none"})
        except StoreUnavailable as error:
            return [f"store: {error}"]
        return []

    def _remarks(self) -> Sequence[str]:
        return self._reloads.remarks() if self._reloads is not None else ()
