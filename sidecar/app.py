"""Composition root: the only place that names concrete stores and limiters, and the owner of clock and randomness."""

import logging
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from sidecar import __version__
from sidecar.config.build.config import Config
from sidecar.config.build.modes import in_one_line, observing
from sidecar.config.fields import Address
from sidecar.config.load import Environment
from sidecar.config.reload import is_mounted_alone, share_of
from sidecar.core.apikey import Hasher, peppers_from
from sidecar.core.units import counted
from sidecar.core.upstream_request import RequestIds
from sidecar.forward_auth.server import DecisionServer
from sidecar.gate.compile import key_prefixes
from sidecar.gate.gate import Gate
from sidecar.http.accepting import Bind, bound
from sidecar.keys.cache import KeyFinder
from sidecar.keys.lifecycle import MissingPepper, Rehashing, check_peppers
from sidecar.keys.ports import StoreUnavailable
from sidecar.limiter.memory import MemoryLimiter
from sidecar.limiter.port import Limiter
from sidecar.ops.server import ops_app
from sidecar.runtime.control import control_socket
from sidecar.runtime.descriptors import Descriptors, descriptors
from sidecar.runtime.engines import limiters_of, open_served
from sidecar.runtime.key_file import watch_of
from sidecar.runtime.maintenance import OLD_KEYS_SECONDS, RETIRE_SECONDS, OldKeys, Retirement, Upkeep, UsageKeeper
from sidecar.runtime.parts import Keeping, Parts, duties_of, problems, reconfigure_workers, remarks, with_workers
from sidecar.runtime.serving import Reloader, Serving, StartError, serve_app, taken_port
from sidecar.runtime.tasks import Background, SystemClock
from sidecar.runtime.telemetry import Observing
from sidecar.runtime.workers import PUSH_SECONDS, Begin, Common, Control, Worker, Workers
from sidecar.store.connection import RETRY_SECONDS
from sidecar.store.store import Store
from sidecar.telemetry.metrics import Metrics, StoreMetrics, UsageMetrics
from sidecar.telemetry.reloads import Reloads
from sidecar.usage.anomalies import AnomalyDetector
from sidecar.usage.recorder import Usage

REHASH_SECONDS = 2.0
"""How often keys in use with an outdated hash are rehashed."""
STREAM_CHECK_SECONDS = 3.0
PROBE_SECONDS = 5
"""How often the keys of streams and tunnels older than this are checked: these end within 10 seconds."""

CLOCK: Final = SystemClock()
REMEMBERS: Final = "SIDECAR_KNOWN_REQUESTS"
"""Environment variable for tests: with `off`, no request takes the shorter path."""

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
    _parts: Parts
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
        observed = observing(config)
        mode = f", only observing {in_one_line(observed)}" if observed else ""
        routes = counted(len(config.routes), "route")
        return f"{__version__} with {keys}, {routes}, configuration {config.sha256[:12]}{mode}"

    @property
    def workers(self) -> Workers | None:
        """None if this process serves the data listener itself."""
        return self._parts.workers

    def draining(self, *, at_once: bool = False) -> str:
        """What `drain` is about to do, in words."""
        rules = self._parts.serving.config.drain
        delay = self._parts.drainer.delay_left(rules)
        notice = "" if at_once else f"not ready from now on, new connections for {delay:.3g} s, "
        return f"{notice}requests that have begun for up to {rules.timeout:g} s"

    async def drain(self, *, at_once: bool = False) -> None:
        """Shut down in order: notify load balancers first (unless `at_once`), then finish the requests in progress."""
        await self._parts.drain(at_once=at_once)

    def hurry(self) -> None:
        """Cut off what draining still waits for."""
        self._parts.drainer.hurry()


@asynccontextmanager
async def running(
    config: Config,
    *,
    read_again: Callable[[], Config] | None = None,
    log_dropped: Callable[[], int] = int,
    control: Control | None = None,
) -> AsyncIterator[App]:
    """A sidecar, from its start to its end. Raises StartError at the start, leaving nothing open.

    read_again: reads the configuration again, or raises ConfigError; None if it is never reloaded.
    log_dropped: how many lines of the log on stderr were dropped.
    control: for a process that leaves the data listener to workers.
    What is entered last is left first: listeners, then the loops that write, then the store.
    """
    async with AsyncExitStack() as stack:
        parts = await _parts_of(config, stack, control)
        parts.metrics.watch(log_dropped=log_dropped)
        _watch_store(parts)
        clients = await _listen(parts) if control is None else control.common.addresses
        listeners = {"data": clients}
        reloads = None if read_again is None else Reloads(config.sha256, at=CLOCK.seconds())
        forward_auth = await _listen_for_forward_auth(parts)
        if forward_auth is not None:
            listeners["decision"] = forward_auth.addresses
        if config.admin is not None:
            listeners["admin"] = await _listen_for_admin(parts, config.admin.listen, clients=clients, reloads=reloads)
        reloader = None if read_again is None or reloads is None else _watch(parts, forward_auth, read_again, reloads)
        await stack.enter_async_context(control_socket(config.drain.socket, parts.drainer))
        if control is not None and control.before is not None and control.before.drains:
            parts.drainer.announce()
        if config.ops is not None:
            listeners["ops"] = await _listen_for_ops(parts, config.ops, reloads)
        yield App(listeners=listeners, _parts=parts, _reloader=reloader)


def _gate_of(limiter: Limiter, failures: Limiter, config: Config, keys: KeyFinder) -> Gate:
    return make_gate(config, keys, limiter, _hasher_of(config), failures=failures)


def _serving(
    config: Config,
    keys: Rehashing,
    gate_of: Callable[[Config, KeyFinder], Gate],
    *,
    metrics: Metrics,
    files: Descriptors,
    stack: AsyncExitStack,
) -> Serving:
    remembers = os.environ.get(REMEMBERS) != "off"
    serving = Serving(config, keys, make_gate=gate_of, metrics=metrics, descriptors=files, remembers=remembers)
    stack.callback(serving.close)
    return serving


async def _parts_of(
    config: Config, stack: AsyncExitStack, control: Control | None = None, worker: Common | None = None
) -> Parts:
    """worker: for a worker, which leaves tasks that run once to the control process."""
    common = worker if control is None else control.common
    metrics, usage = Metrics(), Usage(clock=CLOCK)
    memory = MemoryLimiter(max_entries=config.limiter.entries) if common is None else common.limiter
    background, hasher = Background(stack, metrics.background_failed), _hasher_of(config)
    background.count_failed_callbacks()
    store, sharing = await open_served(
        config, hasher, None if worker else memory, stack=stack, metrics=metrics, clock=CLOCK
    )
    rehashing = _start_rehashing(store, hasher, background, stack)
    keeping = None
    if worker is None:
        upkeep = partial(Upkeep, store.statistics, store.quotas, memory, sharing, metrics=metrics, clock=CLOCK)
        keeping = await _keep(config, store, usage, upkeep, metrics=metrics, background=background, stack=stack)
    log_lock = None if common is None else common.log_lock
    observing = Observing(config, metrics=metrics, background=background, stack=stack, clock=CLOCK, log_lock=log_lock)
    files = descriptors(config)
    limiters = await limiters_of(config.limiter, memory, metrics=metrics, background=background)
    gate_of = partial(_gate_of, limiters.quotas, memory)
    serving = _serving(config, rehashing, gate_of, metrics=metrics, files=files, stack=stack)
    parts = Parts(
        config=config,
        stack=stack,
        metrics=metrics,
        background=background,
        descriptors=files,
        limiters=limiters,
        store=store,
        key_file=watch_of(store, background, metrics, clock=CLOCK),
        sharing=sharing,
        usage=usage,
        keeping=keeping,
        observing=observing,
        exchanges=observing.exchanges(usage),
        serving=serving,
    )
    return parts if control is None else with_workers(parts, control)


@asynccontextmanager
async def working(
    worker: Worker, begin: Begin, common: Common, *, log_dropped: Callable[[], int] = int
) -> AsyncIterator[App]:
    """A worker, from its start to its end: it serves the data listener. Raises StartError at the start."""
    async with AsyncExitStack() as stack:
        parts = await _parts_of(share_of(begin.config, common.workers), stack, worker=common)
        parts.metrics.watch(log_dropped=log_dropped)
        _watch_store(parts)
        parts.metrics.also(UsageMetrics({}, dropped=lambda: parts.usage.dropped))
        stack.push_async_callback(worker.push)
        parts.background.repeat(worker.push, PUSH_SECONDS)
        addresses = await _listen(parts, lambda *_: (list(common.sockets), tuple(common.addresses)))
        if begin.drains:
            parts.drainer.announce()
        worker.serve(duties_of(parts, common))
        yield App(listeners={"data": addresses}, _parts=parts, _reloader=None)


def _watch_store(parts: Parts) -> None:
    database, grace, sharing = parts.store.database, parts.serving.grace, parts.sharing
    parts.background.run(grace.watch)
    parts.background.repeat(database.retry_write, RETRY_SECONDS)
    parts.metrics.also(
        StoreMetrics(
            lambda: database.write_problem,
            grace=lambda: (grace.active, grace.lookups),
            # Workers are one sidecar.
            processes=lambda: 0 if parts.keeping is None else sharing.processes,
        )
    )


def _start_rehashing(store: Store, hasher: Hasher, background: Background, stack: AsyncExitStack) -> Rehashing:
    rehashing = Rehashing(store.keys, hasher.newest, clock=CLOCK)
    stack.push_async_callback(rehashing.finish, store.keys.rehash)
    background.repeat(partial(rehashing.flush, store.keys.rehash), REHASH_SECONDS)
    return rehashing


async def _keep(
    config: Config,
    store: Store,
    usage: Usage,
    make_upkeep: Callable[..., Upkeep],
    *,
    metrics: Metrics,
    background: Background,
    stack: AsyncExitStack,
) -> Keeping:
    keeper = await _keep_usage(config, store, usage, metrics)
    upkeep = make_upkeep(usage=keeper)
    stack.push_async_callback(upkeep.finish)
    await upkeep.start(background)
    retirement, old_keys = await _watch_ages(config, store, keeper, background)
    return Keeping(keeper=keeper, retirement=retirement, old_keys=old_keys)


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


async def _listen(parts: Parts, bind: Bind = bound) -> Sequence[Address]:
    data = parts.serving.data_server(parts.exchanges, CLOCK)
    with taken_port("listen"):
        await data.start(*parts.config.listen, bind=bind)
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
    # Imported here, because only users of the admin listener need its libraries.
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
        counts_by_route=parts.metrics.by_route,
        observed_by_route=parts.metrics.observed_by_route,
        refusals=parts.observing.refusals,
        problems=partial(problems, parts),
        remarks=partial(remarks, parts, reloads),
        config_since=lambda: started if reloads is None else reloads.at,
        reloads=reloads,
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
    """Applies a new configuration to every part, in this order. Returns the options that need a restart.

    Only the first two can refuse it (StartError), and then nothing has changed. Nothing is awaited after them, so that
    no request sees a part of a configuration.
    """
    serving, keeping, workers = parts.serving, parts.keeping, parts.workers
    followers: tuple[Callable[[Config], None], ...] = (
        lambda config: forward_auth.reconfigure(serving.decisions()) if forward_auth is not None else None,
        lambda config: keeping.reconfigure(config) if keeping is not None else None,
        lambda config: parts.key_file.reconfigure(config, _hasher_of) if parts.key_file is not None else None,
        parts.observing.reconfigure,
    )

    async def reconfigure(wanted: Config) -> Sequence[str]:
        with suppress(StoreUnavailable):  # The new configuration may be the remedy.
            await _check_peppers(parts.store, wanted)
        kept = await serving.reconfigure(wanted)
        for follow in followers:
            follow(serving.config)
        if workers is not None:
            await reconfigure_workers(parts, workers)
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
        alive=parts.alive,
        ready=partial(problems, parts),
        exposition=parts.metrics.exposition,
        checks=("data", "store", "config"),
        remarks=partial(remarks, parts, reloads),
        **({} if parts.workers is None else {"refresh": parts.workers.collect}),
    )
    return await serve_app(app, addresses, "ops", limits=parts.descriptors.operators(), stack=parts.stack)
