"""Composition root: the only place that names concrete stores and limiters, and the owner of clock and randomness."""

import logging
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from sidecar import __version__
from sidecar.config.build.config import Config
from sidecar.config.fields import Address
from sidecar.config.load import Environment
from sidecar.config.reload import is_mounted_alone
from sidecar.core.apikey import Hasher, peppers_from
from sidecar.core.units import counted
from sidecar.core.upstream_request import RequestIds
from sidecar.forward_auth.server import DecisionServer
from sidecar.gate.compile import key_prefixes
from sidecar.gate.gate import Gate, KeyFinder
from sidecar.keys.lifecycle import MissingPepper, Rehashing, check_peppers
from sidecar.keys.ports import StoreUnavailable
from sidecar.limiter.memory import MemoryLimiter
from sidecar.limiter.port import Limiter
from sidecar.ops.server import ops_app
from sidecar.runtime.control import Sharing, control_socket
from sidecar.runtime.descriptors import Descriptors, descriptors
from sidecar.runtime.key_file import KeyFileWatch, watch_of
from sidecar.runtime.limiters import Limiters, limiters_of
from sidecar.runtime.maintenance import OLD_KEYS_SECONDS, RETIRE_SECONDS, OldKeys, Retirement, Upkeep, UsageKeeper
from sidecar.runtime.serving import Reloader, Serving, StartError, serve_app, taken_port
from sidecar.runtime.stores import open_served
from sidecar.runtime.tasks import Background, Drainer, SystemClock
from sidecar.runtime.telemetry import Observing
from sidecar.store.connection import RETRY_SECONDS
from sidecar.store.store import Store
from sidecar.telemetry.metrics import Metrics, Reloads, StoreMetrics, UsageMetrics
from sidecar.telemetry.observer import Exchanges
from sidecar.usage.anomalies import AnomalyDetector
from sidecar.usage.recorder import Usage

REHASH_SECONDS = 2.0
"""How often keys in use that have an older kind of hash get the newest kind."""
STREAM_CHECK_SECONDS = 3.0
PROBE_SECONDS = 5
"""How often the keys of streams and tunnels older than this are checked: these end within 10 seconds."""

CLOCK: Final = SystemClock()
REMEMBERS: Final = "SIDECAR_KNOWN_REQUESTS"
"""Variable of the environment, for tests: with `off`, no request is known by its bytes."""

_log = logging.getLogger(__name__)


def make_gate(
    config: Config, keys: KeyFinder, limiter: Limiter, hasher: Hasher, *, failures: Limiter | None = None
) -> Gate:
    """The gate with the real clock and real randomness."""
    new_id = RequestIds(secrets.token_bytes)
    return Gate(config, keys, limiter, hasher=hasher, clock=CLOCK, new_request_id=new_id, failures=failures)


def _hasher_of(config: Config) -> Hasher:
    """Raises StartError."""
    try:
        return Hasher(peppers_from(Environment(os.environ)), config.keys.imported)
    except ValueError as error:
        raise StartError(str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """A running sidecar; see `running`."""

    listeners: Mapping[str, Sequence[Address]]
    """The bound addresses of each, by its name."""
    _parts: "Parts"
    _reloader: Reloader | None

    def reload(self) -> None:
        """Read the configuration again, soon."""
        if self._reloader is not None:
            self._reloader.ask()

    async def summary(self) -> str:
        """`0.1.0 with 12 active keys, 7 routes, configuration 3f2a91c0bd12`: what runs."""
        config = self._parts.serving.config
        try:
            counts = await self._parts.store.statistics.counts()
            keys = counted(sum(count for (status, _), count in counts.items() if status == "active"), "active key")
        except StoreUnavailable:
            keys = "a store that cannot be read now"
        return f"{__version__} with {keys}, {counted(len(config.routes), 'route')}, configuration {config.sha256[:12]}"

    def draining(self, *, at_once: bool = False) -> str:
        """What `drain` is about to do, in words."""
        rules = self._parts.serving.config.drain
        delay = self._parts.drainer.delay_left(rules)
        told = "" if at_once else f"not ready from now on, new connections for {delay:.3g} s, "
        return f"{told}requests that have begun for up to {rules.timeout:g} s"

    async def drain(self, *, at_once: bool = False) -> None:
        """Shut down in order: tell balancers first (unless `at_once`), then finish the requests that have begun."""
        await self._parts.drain(at_once=at_once)

    def hurry(self) -> None:
        """Cut off what draining still waits for."""
        self._parts.drainer.hurry()


@asynccontextmanager
async def running(
    config: Config, *, read_again: Callable[[], Config] | None = None, log_dropped: Callable[[], int] = int
) -> AsyncIterator[App]:
    """A sidecar, from its start to its end. Raises StartError at the start, and then leaves nothing open.

    read_again: reads the configuration again, or raises ConfigError; None if it is never reloaded.
    log_dropped: how many lines of the log on stderr were dropped.
    What is entered last is left first: listeners, then the loops that write, then the store.
    """
    async with AsyncExitStack() as stack:
        parts = await _parts_of(config, stack)
        parts.metrics.watch(log_dropped=log_dropped)
        _watch_store(parts)
        clients = await _listen(parts)
        listeners = {"data": clients}
        reloads = None if read_again is None else Reloads(config.sha256, at=CLOCK.seconds())
        forward_auth = await _listen_for_forward_auth(parts)
        if forward_auth is not None:
            listeners["decision"] = forward_auth.addresses
        if config.admin is not None:
            listeners["admin"] = await _listen_for_admin(parts, config.admin.listen, clients=clients, reloads=reloads)
        reloader = None if read_again is None or reloads is None else _watch(parts, forward_auth, read_again, reloads)
        await stack.enter_async_context(control_socket(config.drain.socket, parts.drainer))
        if config.ops is not None:
            listeners["ops"] = await _listen_for_ops(parts, config.ops, reloads)
        yield App(listeners=listeners, _parts=parts, _reloader=reloader)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What runs behind the listeners. All of it ends with `stack`."""

    config: Config
    """As it was at the start; `serving` has the one in force."""
    stack: AsyncExitStack
    metrics: Metrics
    background: Background
    descriptors: Descriptors
    limiters: Limiters
    store: Store
    key_file: KeyFileWatch | None
    sharing: Sharing
    keeper: UsageKeeper
    retirement: Retirement
    old_keys: OldKeys
    observing: Observing
    exchanges: Exchanges
    serving: Serving
    drainer: Drainer = field(default_factory=Drainer)

    async def drain(self, *, at_once: bool = False) -> None:
        await self.drainer.drain(self.serving.config.drain, at_once=at_once)


async def _parts_of(config: Config, stack: AsyncExitStack) -> Parts:
    metrics, usage, memory = Metrics(), Usage(clock=CLOCK), MemoryLimiter(max_entries=config.limiter.entries)
    background, hasher = Background(stack, metrics.background_failed), _hasher_of(config)
    background.count_failed_callbacks()
    store, sharing = await open_served(config, hasher, memory, stack=stack, metrics=metrics, clock=CLOCK)
    rehashing = _start_rehashing(store, hasher, background, stack)
    keeper = await _keep_usage(config, store, usage, metrics)
    upkeep = Upkeep(store.statistics, store.quotas, memory, sharing, usage=keeper, metrics=metrics, clock=CLOCK)
    stack.push_async_callback(upkeep.finish)
    await upkeep.start(background)
    retirement, old_keys = await _watch_ages(config, store, keeper, background)
    observing = Observing(config, metrics=metrics, background=background, stack=stack, clock=CLOCK)
    files = descriptors(config)
    limiters = await limiters_of(config.limiter, memory, metrics=metrics, background=background, clock=CLOCK)
    serving = Serving(
        config,
        rehashing,
        make_gate=lambda config, keys: make_gate(config, keys, limiters.quotas, _hasher_of(config), failures=memory),
        metrics=metrics,
        descriptors=files,
        remembers=os.environ.get(REMEMBERS) != "off",
    )
    stack.callback(serving.close)
    return Parts(
        config=config,
        stack=stack,
        metrics=metrics,
        background=background,
        descriptors=files,
        limiters=limiters,
        store=store,
        key_file=watch_of(store, background, metrics, clock=CLOCK),
        sharing=sharing,
        keeper=keeper,
        retirement=retirement,
        old_keys=old_keys,
        observing=observing,
        exchanges=observing.exchanges(usage),
        serving=serving,
    )


def _watch_store(parts: Parts) -> None:
    database, grace, sharing = parts.store.database, parts.serving.grace, parts.sharing
    parts.background.run(grace.watch)
    parts.background.repeat(database.retry_write, RETRY_SECONDS)
    parts.metrics.also(
        StoreMetrics(
            lambda: database.write_problem,
            grace=lambda: (grace.active, grace.lookups),
            processes=lambda: sharing.processes,
        )
    )


def _start_rehashing(store: Store, hasher: Hasher, background: Background, stack: AsyncExitStack) -> Rehashing:
    rehashing = Rehashing(store.keys, hasher.newest, clock=CLOCK)
    stack.push_async_callback(rehashing.finish, store.keys.rehash)
    background.repeat(partial(rehashing.flush, store.keys.rehash), REHASH_SECONDS)
    return rehashing


async def _keep_usage(config: Config, store: Store, usage: Usage, metrics: Metrics) -> UsageKeeper:
    write = partial(logging.getLogger("sidecar.unusual").warning, "%s")
    detector = AnomalyDetector(config.usage.unusual, clock=CLOCK, write=write)
    keeper = UsageKeeper(
        store.usage,
        store.anomalies,
        usage,
        detector=detector,
        settings=config.usage,
        clock=CLOCK,
        prefixes=key_prefixes(config),
    )
    metrics.also(UsageMetrics(detector.events.counts, dropped=lambda: keeper.dropped))
    with suppress(StoreUnavailable):
        await keeper.restore()
    return keeper


async def _watch_ages(
    config: Config, store: Store, keeper: UsageKeeper, background: Background
) -> tuple[Retirement, OldKeys]:
    retirement = Retirement(store.keys, store.statistics, keeper, settings=config.keys, clock=CLOCK)
    background.repeat(retirement.round, RETIRE_SECONDS)
    old_keys = OldKeys(store.anomalies, keeper.events, settings=config.keys, clock=CLOCK)
    with suppress(StoreUnavailable):
        await old_keys.round()
    background.repeat(old_keys.round, OLD_KEYS_SECONDS)
    return retirement, old_keys


async def _listen(parts: Parts) -> Sequence[Address]:
    data = parts.serving.data_server(parts.exchanges, CLOCK)
    with taken_port("listen"):
        await data.start(*parts.config.listen)
    parts.stack.push_async_callback(partial(parts.drain, at_once=True))
    parts.drainer.add(data)
    check = partial(data.revalidate_streams, older_than_seconds=STREAM_CHECK_SECONDS)
    parts.background.repeat(check, STREAM_CHECK_SECONDS)
    parts.background.repeat(parts.serving.check, PROBE_SECONDS)
    return data.addresses


async def _listen_for_forward_auth(parts: Parts) -> DecisionServer | None:
    if parts.config.decision is None:
        return None
    server = DecisionServer(parts.serving.decisions(), observer=parts.exchanges, clock=CLOCK)
    with taken_port("decision"):
        await server.start(*parts.config.decision.listen)
    parts.drainer.add(server)
    return server


async def _listen_for_admin(
    parts: Parts, addresses: Sequence[Address], *, clients: Sequence[Address], reloads: Reloads | None
) -> Sequence[Address]:
    """clients: the addresses of the data listener."""
    # Its libraries are for those who use it.
    from sidecar.runtime.admin import Process, administration

    started = CLOCK.seconds()
    process = Process(
        config=lambda: parts.serving.config,
        store=parts.store,
        hasher_of=_hasher_of,
        limiter=parts.limiters.quotas,
        fullest=parts.limiters.fullest,
        make_gate=lambda config, keys, limiter: make_gate(config, keys, limiter, _hasher_of(config)),
        counts_by_reason=parts.metrics.refusals,
        refusals=parts.observing.refusals,
        problems=partial(_problems, parts),
        remarks=partial(_remarks, parts, reloads),
        config_since=lambda: started if reloads is None else reloads.at,
        clients=lambda: clients,
        clock=CLOCK,
    )
    limits = parts.descriptors.operators()
    return await serve_app(administration(process), addresses, "admin", limits=limits, stack=parts.stack)


def _watch(
    parts: Parts, forward_auth: DecisionServer | None, read_again: Callable[[], Config], reloads: Reloads
) -> Reloader:
    config, serving = parts.config, parts.serving
    parts.metrics.also(reloads)
    reconfigure = _reconfigure_of(parts, forward_auth)
    reloader = Reloader(read_again, reconfigure, lambda: serving.config, reloads=reloads, clock=CLOCK)
    parts.background.run(reloader.run)
    if config.reload.watch and is_mounted_alone(config.path):
        _log.warning(
            "sidecar: config: %s is mounted by itself (subPath): changes are not seen. Mount its folder instead",
            config.path,
        )
    return reloader


def _reconfigure_of(parts: Parts, forward_auth: DecisionServer | None) -> Callable[[Config], Awaitable[Sequence[str]]]:
    """Applies a new configuration to every part, in this order; gives the options that wait for a restart.

    Only the first two can refuse it (StartError), and then nothing has changed. Nothing is awaited after them, so that
    no request sees a part of a configuration.
    """
    serving, keeper = parts.serving, parts.keeper
    followers: tuple[Callable[[Config], None], ...] = (
        lambda config: forward_auth.reconfigure(serving.decisions()) if forward_auth is not None else None,
        lambda config: keeper.reconfigure(config.usage, prefixes=key_prefixes(config)),
        lambda config: parts.retirement.reconfigure(config.keys),
        lambda config: parts.old_keys.reconfigure(config.keys),
        lambda config: parts.key_file.reconfigure(config, _hasher_of) if parts.key_file is not None else None,
        parts.observing.reconfigure,
    )

    async def reconfigure(wanted: Config) -> Sequence[str]:
        with suppress(StoreUnavailable):  # The new configuration may be the remedy.
            await _check_peppers(parts.store, wanted)
        kept = await serving.reconfigure(wanted)
        for follow in followers:
            follow(serving.config)
        return kept

    return reconfigure


async def _check_peppers(store: Store, config: Config) -> None:
    """Raises StartError if keys that work now would stop working."""
    try:
        await check_peppers(store.statistics, _hasher_of(config))
    except MissingPepper as error:
        raise StartError(str(error)) from error


async def _listen_for_ops(parts: Parts, addresses: Sequence[Address], reloads: Reloads | None) -> Sequence[Address]:
    app = ops_app(
        alive=parts.serving.answers,
        ready=partial(_problems, parts),
        exposition=parts.metrics.exposition,
        checks=("data", "store", "config"),
        remarks=partial(_remarks, parts, reloads),
    )
    return await serve_app(app, addresses, "ops", limits=parts.descriptors.operators(), stack=parts.stack)


def _remarks(parts: Parts, reloads: Reloads | None) -> Sequence[str]:
    files = (watch.remarks() for watch in (reloads, parts.key_file) if watch is not None)
    own = (*parts.serving.grace.remarks(), *parts.limiters.remarks(), *parts.sharing.remarks())
    return [*(line for lines in files for line in lines), *own, *_unwritten(parts.store)]


def _unwritten(store: Store) -> Sequence[str]:
    """No reason to be unready: requests are decided on all the same."""
    problem = store.database.write_problem
    return [f"store: the last change was not written: {problem}"] if problem else []


async def _problems(parts: Parts) -> Sequence[str]:
    """What keeps the sidecar from being ready: it must be able to look up a key that is not cached, and not drain.

    While keys that were seen go on without the store, it stays ready, so that not every replica is taken out at once.
    """
    if parts.drainer.not_ready:
        return [f"drain: {parts.drainer.not_ready}"]
    if not await parts.serving.answers():
        return ["data: the data listener does not answer"]
    try:
        await parts.store.keys.read_generation()
    except StoreUnavailable as error:
        return [] if parts.serving.grace.covers(error) else [f"store: {error}"]
    try:
        await parts.store.keys.find({b"": "none"})
    except StoreUnavailable as error:
        return [f"store: {error}"]
    return []
