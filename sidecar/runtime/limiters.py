"""Where a running sidecar counts: quotas in its memory or in a Redis, wrong keys always in its memory."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from random import SystemRandom
from typing import TYPE_CHECKING, Final

from sidecar.config.engines import LimiterSettings
from sidecar.core.model import Subject
from sidecar.limiter.port import Limiter
from sidecar.limiter.redis.url import RedisUrl
from sidecar.limiter.remote import OutageLimiter, RemoteStatistics
from sidecar.limiter.shared import EmbeddedLimiter
from sidecar.runtime.serving import StartError
from sidecar.runtime.tasks import Background
from sidecar.telemetry.limiter import RemoteLimiterMetrics
from sidecar.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from sidecar.limiter.redis.limiter import RedisLimiter

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
    try:
        # It takes a tenth of a second, and is for those who use it.
        from sidecar.limiter.redis.limiter import redis_limiter
    except ImportError as error:
        raise StartError("limiter: Redis needs a library: pip install 'sidecar[redis]'") from error
    outage = OutageLimiter(settings.outage, memory, replicas=settings.replicas, statistics=statistics)
    return redis_limiter(
        url,
        outage,
        namespace=settings.namespace,
        timeout=settings.timeout,
        ca=settings.ca,
        statistics=statistics,
        random=SystemRandom(),
    )
