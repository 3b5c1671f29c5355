"""Limiters that count in a test's Redis."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random

from sidecar.core.model import Bucket, Taken
from sidecar.limiter.memory import MemoryLimiter
from sidecar.limiter.redis.connecting import Connector
from sidecar.limiter.redis.limiter import RedisLimiter
from sidecar.limiter.redis.pipeline import TEXT, Script
from sidecar.limiter.redis.url import parse_redis_url
from sidecar.limiter.remote import Outage, OutageLimiter, RemoteStatistics
from tests.harness.redis import Clock, RedisServer

TIME = "redis.call('TIME')"
"""The key that the script reads the time from."""


class Timed:
    """The limiter by a clock that each call sets. Takes that are under way together share one `now`."""

    immediate = False

    def __init__(self, limiter: RedisLimiter, clock: Clock) -> None:
        self._limiter, self._clock = limiter, clock

    async def take(self, buckets: Sequence[Bucket], now: float) -> Taken:
        self._clock.set(now)
        return await self._limiter.take(buckets, now)

    async def peek(self, buckets: Sequence[Bucket], now: float) -> Taken:
        self._clock.set(now)
        return await self._limiter.peek(buckets, now)

    def take_now(self, buckets: Sequence[Bucket], now: float) -> None:
        """None: the server must be awaited."""

    peek_now = take_now


@asynccontextmanager
async def redis_limiter(
    url: str,
    *,
    namespace: str = "sidecar",
    timeout: float = 5.0,
    outage: Outage = "closed",
    replicas: int = 1,
    text: str = TEXT,
    ca: str = "",
) -> AsyncIterator[tuple[RedisLimiter, RemoteStatistics]]:
    """A limiter whose first attempt to connect has finished."""
    statistics, script, parsed = RemoteStatistics(), Script(namespace, text), parse_redis_url(url)
    limiter = RedisLimiter(
        Connector(parsed, script.any_key, ca=ca).connect,
        script,
        OutageLimiter(outage, MemoryLimiter(max_entries=1000), replicas=replicas, statistics=statistics),
        timeout=timeout,
        name=str(parsed),
        statistics=statistics,
        random=Random(1),  # noqa: S311 - no secret
    )
    async with limiter.running():
        yield limiter, statistics


@asynccontextmanager
async def timed_limiter(server: RedisServer) -> AsyncIterator[Timed]:
    """An empty one."""
    server.call("FLUSHALL")
    clock = Clock(server, "now")
    text = TEXT.replace(TIME, "{string.match(redis.call('GET', 'now'), '(%d+) (%d+)')}")
    assert text != TEXT
    url = f"redis+unix://{server.socket}"
    async with redis_limiter_with_clock(url, clock, text) as limiter:
        yield limiter


@asynccontextmanager
async def redis_limiter_with_clock(url: str, clock: Clock, text: str) -> AsyncIterator[Timed]:
    clock.set(1.0)  # For the first take, which probes the server.
    try:
        async with redis_limiter(url, text=text) as (limiter, statistics):
            assert not statistics.problem
            yield Timed(limiter, clock)
    finally:
        clock.close()
