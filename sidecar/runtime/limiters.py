"""Where a running sidecar counts: quotas in memory or in Redis, wrong keys always in memory."""

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
"""Keys and tenants for which the page shows how much is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limiters:
    """quotas: counts the configured quotas.

    fullest: keys and tenants that have used most of a limit, given the limits of plans. remarks: why the shared counts
    are unavailable now.
    """

    quotas: Limiter
    fullest: Callable[[Mapping[str, Collection[int]]], Sequence[tuple[Subject, str]]]
    remarks: Callable[[], Sequence[str]] = tuple


async def limiters_of(
    settings: LimiterSettings, memory: EmbeddedLimiter, *, metrics: Metrics, background: Background
) -> Limiters:
    """As `limiter` says; a Redis has been tried once, but need not be available. Raises StartError."""
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
    """A limiter that is not running yet. memory: counts during outages. Raises StartError if its library is missing."""
    try:
        # Importing takes a tenth of a second, and only users of Redis need it.
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
