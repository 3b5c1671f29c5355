"""The parts behind the listeners of one process: a whole sidecar, its control process, or a worker."""

import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial

from sidecar.config.build.config import Config
from sidecar.config.build.modes import in_one_line, observing
from sidecar.config.reload import share_of
from sidecar.gate.compile import key_prefixes
from sidecar.keys.ports import StoreUnavailable
from sidecar.limiter.shared import SharedLimiter
from sidecar.runtime.control import Sharing
from sidecar.runtime.descriptors import Descriptors
from sidecar.runtime.engines import Limiters
from sidecar.runtime.key_file import KeyFileWatch
from sidecar.runtime.maintenance import OldKeys, Retirement, UsageKeeper
from sidecar.runtime.serving import Serving, StartError
from sidecar.runtime.tasks import Background, Drainer
from sidecar.runtime.telemetry import Observing
from sidecar.runtime.workers import Begin, Common, Control, Duties, Push, Workers
from sidecar.store.store import Store
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.observer import Exchanges
from sidecar.telemetry.reloads import Reloads
from sidecar.telemetry.snapshots import Snapshot, WorkerMetrics
from sidecar.usage.recorder import Usage

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """Tasks that run once for all processes."""

    keeper: UsageKeeper
    retirement: Retirement
    old_keys: OldKeys

    def reconfigure(self, config: Config) -> None:
        """Use `config` from now on."""
        self.keeper.reconfigure(config.usage, prefixes=key_prefixes(config))
        self.retirement.reconfigure(config.keys)
        self.old_keys.reconfigure(config.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts behind the listeners. All of them end with `stack`. keeping: None in a worker."""

    config: Config
    """The configuration at the start; `serving` has the current one."""
    stack: AsyncExitStack
    metrics: Metrics
    background: Background
    descriptors: Descriptors
    limiters: Limiters
    store: Store
    key_file: KeyFileWatch | None
    sharing: Sharing
    usage: Usage
    keeping: Keeping | None
    observing: Observing
    exchanges: Exchanges
    serving: Serving
    drainer: Drainer = field(default_factory=Drainer)
    workers: Workers | None = None

    async def answers(self) -> bool:
        """Whether the data path responds: that of each worker, if there are any."""
        return await (self.serving.answers() if self.workers is None else self.workers.answer(least=1))

    async def alive(self) -> bool:
        """As `answers`; also while every worker is being restarted."""
        return await (self.serving.answers() if self.workers is None else self.workers.answer(least=0))

    async def drain(self, *, at_once: bool = False) -> None:
        await self.drainer.drain(self.serving.config.drain, at_once=at_once)


def with_workers(parts: Parts, control: Control) -> Parts:
    limiter, metrics = control.common.limiter, parts.metrics

    def begin() -> Begin:
        drainer = parts.drainer
        return Begin(config=parts.serving.config, drains=bool(drainer.not_ready), ends=drainer.begun)

    def merge(push: Push) -> None:
        parts.usage.add(push.usage)
        parts.observing.refusals.merge(push.refusals)

    workers = Workers(control.ends, control.parent, begin=begin, on_push=merge)
    limiter.quotas = parts.config.quotas
    metrics.merge(workers.snapshots)
    metrics.also(WorkerMetrics(workers.__len__, lambda: workers.restarts))
    if parts.keeping is not None:
        parts.keeping.keeper.gather = workers.collect
    parts.stack.push_async_callback(partial(parts.drain, at_once=True))
    parts.drainer.add(workers)
    return replace(parts, workers=workers)


def duties_of(parts: Parts, common: Common) -> Duties:
    def push(metrics: Snapshot) -> Push:
        refusals = parts.observing.refusals.gathered()
        remarks = parts.limiters.remarks()
        return Push(metrics=metrics, usage=parts.usage.taken(), refusals=refusals, remarks=remarks)

    def keep(push: Push) -> None:
        parts.usage.add(push.usage)
        parts.observing.refusals.merge(push.refusals)

    async def reconfigure(wanted: Config) -> str:
        try:
            await parts.serving.reconfigure(share_of(wanted, common.workers))
        except StartError as error:
            return str(error)
        parts.observing.reconfigure(parts.serving.config)
        return ""

    return Duties(
        metrics=parts.metrics.snapshot,
        push=push,
        keep=keep,
        answers=parts.serving.answers,
        reconfigure=reconfigure,
        announce=parts.drainer.announce,
        undo=parts.drainer.undo,
    )


async def reconfigure_workers(parts: Parts, workers: Workers) -> None:
    """Reconfigure all workers together. What fails in one has nearly always failed in this process first."""
    config = parts.serving.config
    if isinstance(parts.limiters.quotas, SharedLimiter):
        parts.limiters.quotas.quotas = config.quotas
    for problem in await workers.reconfigure(config):
        _log.error("sidecar: config: a worker refused it, and keeps the previous one: %s", problem)


def remarks(parts: Parts, reloads: Reloads | None) -> Sequence[str]:
    files = (watch.remarks() for watch in (reloads, parts.key_file) if watch is not None)
    counting = parts.limiters.remarks() or (() if parts.workers is None else parts.workers.remarks())
    own = (*parts.serving.grace.remarks(), *counting, *parts.sharing.remarks())
    return [
        *(line for lines in files for line in lines),
        *own,
        *parts.store.remarks(),
        *_unwritten(parts.store),
        *_observed(parts),
    ]


def _observed(parts: Parts) -> Sequence[str]:
    found = observing(parts.serving.config)
    return [f"mode: only observed, not enforced: {in_one_line(found)}"] if found else []


def _unwritten(store: Store) -> Sequence[str]:
    """Not a reason to be unready: requests can still be decided."""
    problem = store.database.write_problem
    return [f"store: the last change was not written: {problem}"] if problem else []


async def problems(parts: Parts) -> Sequence[str]:
    """What keeps the sidecar from being ready: it must be able to look up an uncached key, and must not be draining.

    While cached keys keep working without the store, it stays ready, so that not all replicas are removed at once.
    """
    if parts.drainer.not_ready:
        return [f"drain: {parts.drainer.not_ready}"]
    if not await parts.answers():
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
