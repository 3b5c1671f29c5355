"""The limiter that counts in Redis or Valkey, by the server's clock, with all sidecars that share a namespace."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Final

from sidecar.core.model import Bucket, Subject, Taken
from sidecar.core.quotas import merged
from sidecar.limiter.redis.connecting import Connector, Server
from sidecar.limiter.redis.pipeline import Pipeline, Script, probe, taken_of
from sidecar.limiter.redis.url import RedisUrl
from sidecar.limiter.remote import Fullest, OutageLimiter, RemoteStatistics, Unavailable

CONNECT_SECONDS: Final = 1.0
"""For connecting, authentication and the first take, unless a take may last longer. No request waits for it."""
_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 1.0
_STEADY_SECONDS: Final = 5.0
"""After a connection that lasted this long, pauses start again from the shortest."""

_SILENT_SECONDS: Final = 60.0
"""Between two log lines about an outage: an unstable server must not fill the log."""

_NOTHING: Final = Taken(states=())

_log = logging.getLogger(__name__)


class RedisLimiter:
    """Uses the server while it responds, and `outage` while it does not: a circuit breaker, closed only by `run`.

    connect: makes a connection. timeout: most seconds that a request waits for a reply. name: of the server, for the
    log.
    """

    immediate = False

    def __init__(
        self,
        connect: Callable[[], Awaitable[Server]],
        script: Script,
        outage: OutageLimiter,
        *,
        timeout: float,
        name: str,
        statistics: RemoteStatistics,
        random: Random,
    ) -> None:
        self._connect, self._script, self._outage = connect, script, outage
        self._timeout, self._name, self._random = timeout, name, random
        self._to_connect = max(CONNECT_SECONDS, timeout)
        self._statistics = statistics
        self._pipeline: Pipeline | None = None
        self._fullest = Fullest()
        self._tried = asyncio.Event()
        self._reported_lost, self._silent_until = False, float("-inf")

    async def take(self, buckets: Sequence[Bucket], now: float) -> Taken:
        """Uses the server's clock. Raises Fault if the server is unavailable and `outage` is `closed`."""
        return await self._ask(buckets, now, take=True)

    async def peek(self, buckets: Sequence[Bucket], now: float) -> Taken:
        """As `take`, without taking."""
        return await self._ask(buckets, now, take=False)

    def take_now(self, buckets: Sequence[Bucket], now: float) -> None:
        """None: the server must be awaited."""

    peek_now = take_now

    async def run(self) -> None:
        """Connects, and reconnects, until cancelled."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self._serve()
            except Unavailable as problem:
                self._lost(problem)
            finally:
                self._tried.set()
            if asyncio.get_running_loop().time() - began >= _STEADY_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            await asyncio.sleep(pause * self._random.uniform(0.75, 1.25))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Runs it inside the context, which begins after the first attempt to connect."""
        running = asyncio.get_running_loop().create_task(self.run())
        try:
            await self.tried()
            yield
        finally:
            running.cancel()
            await asyncio.wait([running])

    async def tried(self) -> None:
        """Waits until the first attempt to connect has succeeded or failed."""
        await self._tried.wait()

    def top_subjects(self, most: int) -> list[tuple[Subject, str]]:
        """At most this many keys and tenants that recently had little left, as seen by this process."""
        return self._fullest.latest(most)

    async def _ask(self, buckets: Sequence[Bucket], now: float, *, take: bool) -> Taken:
        if not buckets:
            return _NOTHING
        pipeline = self._pipeline
        if pipeline is not None:
            wanted, began = merged(buckets), asyncio.get_running_loop().time()
            with suppress(Unavailable):
                reply = await pipeline.ask(self._script.call(wanted, take=take))
                self._statistics.answered(asyncio.get_running_loop().time() - began)
                taken = taken_of(wanted, reply, now, take=take)
                for bucket, state in zip(wanted, taken.states, strict=True):
                    self._fullest.see(bucket, state)
                return taken
        return await (self._outage.take(buckets, now) if take else self._outage.peek(buckets, now))

    async def _serve(self) -> None:
        """Raises Unavailable when the connection ends."""
        self._statistics.breaker = "half_open"
        server: Server | None = None
        try:
            async with asyncio.timeout(self._to_connect):
                server = await self._connect()
                await probe(server, self._script, within=self._timeout)
        except BaseException as error:
            if server is not None:
                server.close()
            if isinstance(error, TimeoutError):
                raise Unavailable("timeout", f"no connection within {self._to_connect:g} s") from None
            raise
        await self._use(Pipeline(server, self._script, timeout=self._timeout))

    async def _use(self, pipeline: Pipeline) -> None:
        if self._reported_lost:
            self._reported_lost = False
            _log.warning("sidecar: limiter: %s answers", self._name)
        self._statistics.breaker, self._statistics.problem = "closed", ""
        self._pipeline = pipeline
        self._tried.set()
        try:
            await pipeline.run()
        finally:
            self._pipeline = None

    def _lost(self, problem: Unavailable) -> None:
        statistics, now = self._statistics, asyncio.get_running_loop().time()
        if not self._reported_lost and now >= self._silent_until:
            self._reported_lost, self._silent_until = True, now + _SILENT_SECONDS
            _log.warning("sidecar: limiter: %s cannot be asked (%s): %s", self._name, problem.cause, problem)
        statistics.breaker, statistics.problem = "open", f"{self._name} cannot be asked ({problem.cause})"
        statistics.errors[problem.cause] += 1


def redis_limiter(
    url: RedisUrl,
    outage: OutageLimiter,
    *,
    namespace: str,
    timeout: float,
    ca: str,
    statistics: RemoteStatistics,
    random: Random,
) -> RedisLimiter:
    """The limiter for a URL. It does not connect before it runs. ca: as in the configuration; empty: the system's."""
    script = Script(namespace)
    return RedisLimiter(
        Connector(url, script.any_key, ca=ca).connect,
        script,
        outage,
        timeout=timeout,
        name=str(url),
        statistics=statistics,
        random=random,
    )
