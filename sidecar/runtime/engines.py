"""The engines of a running sidecar: its store, opened, checked and marked as in use; and its limiter.

Quotas are counted in the sidecar's memory or in a Redis, wrong keys always in its memory.
"""

import os
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from random import SystemRandom
from typing import TYPE_CHECKING, Final

from sidecar.config.build.config import Config
from sidecar.config.engines import LimiterSettings
from sidecar.config.store_url import is_file, is_sqlite, shown_store, sqlite_path
from sidecar.core.apikey import Hasher
from sidecar.core.model import Subject
from sidecar.core.units import Clock
from sidecar.keys.lifecycle import MissingPepper, check_peppers
from sidecar.keys.ports import StoreUnavailable
from sidecar.limiter.port import Limiter
from sidecar.limiter.redis.url import RedisUrl
from sidecar.limiter.remote import OutageLimiter, RemoteStatistics
from sidecar.limiter.shared import EmbeddedLimiter
from sidecar.runtime.control import Sharing, served_store
from sidecar.runtime.key_file import open_key_file
from sidecar.runtime.serving import StartError
from sidecar.runtime.tasks import Background
from sidecar.runtime.telemetry import ReplicaInStep, RevocationLag
from sidecar.store.file import InvalidKeyFile
from sidecar.store.store import Store, open_store
from sidecar.telemetry.limiter import LimiterMetrics, RemoteLimiterMetrics
from sidecar.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from sidecar.limiter.redis.limiter import RedisLimiter

# The store.


_NO_ADMINISTRATION: Final = (
    "admin: this role of the database may not issue keys: name the administration role in `store`, or leave out `admin`"
)


async def open_served(
    config: Config,
    hasher: Hasher,
    limiter: EmbeddedLimiter | None,
    *,
    stack: AsyncExitStack,
    metrics: Metrics,
    clock: Clock,
) -> tuple[Store, Sharing]:
    """The store that the configuration names, until `stack` ends, and who else uses it. Raises StartError.

    limiter: restores the counts that are saved in the store; None if another process does, and marks the store.
    """
    try:
        mark = stack.enter_context(ExitStack())  # Left after the store is closed.
        store = await _store_of(config, hasher, metrics, clock)
        stack.push_async_callback(store.close)
        sharing = Sharing("", _alone, kept=False) if limiter is None else _sharing_of(config, store, stack, mark)
        await store.tables.refuse_unfinished()
        await check_peppers(store.statistics, hasher)
        if config.admin is not None and not await store.database.may_issue():
            raise StartError(_NO_ADMINISTRATION)
        if limiter is not None:
            metrics.also(LimiterMetrics(limiter))
        if limiter is not None and not await sharing.look():
            limiter.restore(await store.quotas.load(most=limiter.max_entries), clock.seconds())
    except InvalidKeyFile as error:
        raise StartError("\nsidecar: ".join(error.problems)) from error
    except (StoreUnavailable, MissingPepper) as error:
        raise StartError(str(error)) from error
    return store, sharing


async def _store_of(config: Config, hasher: Hasher, metrics: Metrics, clock: Clock) -> Store:
    """Raises StoreUnavailable."""
    if is_file(config.store):
        return await open_key_file(config, hasher, clock=clock, timings=metrics.store_timed)
    lag = RevocationLag()
    store = await open_store(
        config.store,
        create=False,
        watched=True,
        clock=clock,
        timings=metrics.store_timed,
        lag=lag.observe,
        replica=config.store_replica,
    )
    if not is_sqlite(config.store):
        metrics.also(lag)
    if store.follows is not None:
        metrics.also(ReplicaInStep(store.follows))
    return store


def _sharing_of(config: Config, store: Store, stack: AsyncExitStack, mark: ExitStack) -> Sharing:
    """With counts in Redis, or with keys in a file and no database, no counts are shared or saved."""
    url, name = config.store_usage if is_file(config.store) else config.store, shown_store(config.store)
    if is_sqlite(url):
        count = mark.enter_context(served_store(sqlite_path(url)))
        if isinstance(config.limiter.url, str):
            return Sharing(name, count)
    elif url and isinstance(config.limiter.url, str):
        here = _name_of_process(config)
        stack.push_async_callback(_leave, store, here)
        return Sharing(name, partial(store.quotas.present, here))
    return Sharing(name, _alone, kept=False)


async def _alone() -> int:
    return 1


def _name_of_process(config: Config) -> str:
    """A name that survives a restart, so that a sidecar does not mistake itself for another."""
    addresses = sorted(map(str, config.listen))
    own = f" {os.getpid()}" if any(address.port == 0 for address in config.listen) else ""
    return f"{socket.gethostname()} {' '.join(addresses)}{own}"


async def _leave(store: Store, here: str) -> None:
    with suppress(StoreUnavailable):
        await store.quotas.absent(here)


# The limiter.


_FULLEST: Final = 20
"""Keys and tenants of which the page asks how much they have left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limiters:
    """quotas: counts those of the configuration. remarks: why the shared counts cannot be asked now.

    fullest: keys, tenants and environments that have used most of a limit, given the limits of plans.
    """

    quotas: Limiter
    fullest: Callable[[Mapping[str, Collection[int]]], Sequence[tuple[Subject, str]]]
    remarks: Callable[[], Sequence[str]] = tuple


async def limiters_of(
    settings: LimiterSettings, memory: EmbeddedLimiter, *, metrics: Metrics, background: Background
) -> Limiters:
    """As `limiter` says; a Redis has been tried once, and need not be there. Raises StartError."""
    if isinstance(settings.url, str):
        return Limiters(quotas=memory, fullest=lambda limits: memory.top_subjects(most=_FULLEST, limits=limits))
    statistics = RemoteStatistics()
    limiter = shared_limiter(settings, settings.url, memory, statistics)
    metrics.also(RemoteLimiterMetrics(statistics))
    background.run(limiter.run)
    await limiter.tried()
    return Limiters(
        quotas=limiter,
        fullest=lambda limits: limiter.top_subjects(_FULLEST),
        remarks=lambda: [f"limiter: {statistics.problem}"] if statistics.problem else (),
    )


def shared_limiter(
    settings: LimiterSettings, url: RedisUrl, memory: EmbeddedLimiter, statistics: RemoteStatistics
) -> "RedisLimiter":
    """Not running yet. memory: counts while it is away. Raises StartError where its library is missing."""
    outage = OutageLimiter(settings.outage, memory, replicas=settings.replicas, statistics=statistics)
    try:
        from sidecar.limiter.redis.limiter import redis_limiter

        return redis_limiter(
            url,
            outage,
            namespace=settings.namespace,
            timeout=settings.timeout,
            ca=settings.ca,
            statistics=statistics,
            random=SystemRandom(),
        )
    except ImportError as error:
        raise StartError("limiter: Redis needs a library: pip install 'sidecar[redis]'") from error
