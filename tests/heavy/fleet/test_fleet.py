"""Three sidecars over PostgreSQL and Redis, behind HAProxy, at a few hundred requests a second, while things go wrong.

Every response is judged by what was true when it was asked for; `-s` prints what was seen.
"""

import asyncio
import contextlib
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sidecar.config.fields import Address
from tests.harness.keys import IssuedKey, Keys
from tests.harness.postgresql import PostgresqlServer, running_postgresql
from tests.harness.processes import Process
from tests.harness.redis import RedisServer
from tests.heavy.balanced import Balancer, Instance, comes_before, service
from tests.wire.proxy.wire import RawClient, get

LIMIT, REPLICAS = 200, 3
CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere
limiter: {{url: "redis://127.0.0.1:{redis}", outage: local, replicas: 3}}
keys: {{failures: off}}  # To the sidecars, all clients have one address.
scopes: {{read: Read}}
quotas:
  few: {{limit: 200, per: 1h, window: sliding, by: key}}
routes:
- GET /items/**: {{scopes: [read]}}
- GET /counted: {{scopes: [read], quotas: [few]}}
drain: {{delay: 1s, timeout: 30s}}
"""
WORKERS, RATE = 12, 250
"""Clients, and requests a second of all of them, as far as the machine gets."""
COUNTING = 4
"""Clients that use up the quota once there is one: a single one would take ten seconds."""
EACH = 120
"""Requests that every event has to stand."""
BOUND_SECONDS = 1.0
"""The time within which a revocation takes effect everywhere."""
BACK_SECONDS = 5.0
"""The time within which the sidecars recover once an engine has."""
SHARE = -(-LIMIT // REPLICAS)


@dataclass(eq=False)
class Known:
    """A key as the fleet's operator knows it: good from `issued` until `ended`, both as monotonic seconds."""

    key: IssuedKey
    issued: float
    ended: float = float("inf")


@dataclass(frozen=True)
class Seen:
    """A response, or its absence (status 0), to a request of `sent` that was over at `done`."""

    known: Known
    sent: float
    done: float
    status: int
    code: str


@dataclass
class Fleet:
    """The sidecars, their engines, and their clients."""

    keys: Keys
    instances: dict[str, Instance]
    processes: dict[str, Process]
    balancer: Balancer
    postgresql: PostgresqlServer
    redis: RedisServer
    known: list[Known] = field(default_factory=list)
    limited: Known | None = None
    seen: list[Seen] = field(default_factory=list)
    counted: list[int] = field(default_factory=list)
    refused: set[int] = field(default_factory=set)
    """Clients that were refused by the quota: what each asked for before has its response."""
    troubles: list[tuple[str, float, float]] = field(default_factory=list)
    """What was down (a sidecar, an engine), from when to when."""
    asked_enough: asyncio.Event = field(default_factory=asyncio.Event)
    wanted: int = 0

    async def issue(self) -> Known:
        key = await asyncio.to_thread(self.keys.issue, scopes=("read",))
        known = Known(key, time.monotonic())
        self.known.append(known)
        return known

    async def run(self, *words: str) -> None:
        done = await asyncio.to_thread(self.keys.run, *words)
        assert done.exit_code == 0, done.output

    async def end(self, known: Known, verb: str) -> None:
        """From the command's beginning the key may be refused, and from its end on it must be."""
        known.ended = float("-inf")
        await self.run(verb, known.key.id, *(["--yes"] if verb == "revoke" else []))
        known.ended = time.monotonic()

    async def stand(self, requests: int = EACH) -> None:
        """Until so many more requests were answered."""
        self.asked_enough.clear()
        self.wanted = len(self.seen) + requests
        async with asyncio.timeout(60):
            await self.asked_enough.wait()

    @contextlib.asynccontextmanager
    async def trouble(self, name: str) -> AsyncIterator[None]:
        began = time.monotonic()
        yield
        self.troubles.append((name, began, time.monotonic() + BACK_SECONDS))


async def ask(fleet: Fleet, ends: asyncio.Event, number: int) -> None:
    """One client, which asks for its turn of the keys as they come."""
    due, client = time.monotonic() + number / RATE, None
    while not await comes_before(ends, due):
        due = max(due + WORKERS / RATE, time.monotonic())
        counted = number < COUNTING and fleet.limited is not None
        known = fleet.limited if counted else fleet.known[len(fleet.seen) % len(fleet.known)]
        assert known is not None
        sent, status, code = time.monotonic(), 0, ""
        try:
            client = client or await RawClient.connect(Address(host="127.0.0.1", port=fleet.balancer.port))
            target = "/counted" if counted else "/items/1"
            response = await client.ask(get(target, f"Authorization: Bearer {known.key.text}".encode()))
            status, code = response.status, response.body.decode() if response.status >= 400 else ""
            if b"close" in response.all(b"Connection"):
                await client.close()
                client = None
        except (OSError, EOFError, TimeoutError):
            if client is not None:
                client.writer.transport.abort()
            client = None
        if counted:
            fleet.counted.append(status)
            fleet.refused |= {number} if status == 429 else set()
        fleet.seen.append(Seen(known, sent, time.monotonic(), status, code))
        if len(fleet.seen) >= fleet.wanted:
            fleet.asked_enough.set()
    if client is not None:
        await client.close()


def wrong(fleet: Fleet, seen: Seen) -> str:
    """Why the response is wrong; empty if it is as documented."""
    known, status = seen.known, seen.status
    may_fail = any(began <= seen.done and seen.sent <= ended for _, began, ended in fleet.troubles)
    ended = known.ended
    if status == 200:
        return "allowed after its end" if float("-inf") < ended < seen.sent - BOUND_SECONDS else ""
    if status == 401:
        return "a good key refused" if ended == float("inf") else ""
    if status == 429:
        return "" if known is fleet.limited else "refused by a quota that it does not have"
    if status in (0, 502, 503, 504):
        return "" if may_fail else "failed while nothing was down"
    return "an answer that nobody expects"


async def events(fleet: Fleet) -> None:
    """The events of a bad week for a fleet, one after another."""
    first = [await fleet.issue() for _ in range(6)]
    await fleet.stand()
    rotated = await asyncio.to_thread(fleet.keys.told, "rotate", first[0].key.id)
    fleet.known.append(Known(IssuedKey(id=rotated["id"], text=rotated["key"], told=rotated), time.monotonic()))
    await fleet.end(first[1], "revoke")
    await fleet.stand()
    await fleet.end(first[2], "disable")
    await fleet.stand()
    async with fleet.trouble("a sidecar was killed"):
        await asyncio.to_thread(fleet.processes["a"].stop, signal.SIGKILL)
        await fleet.balancer.until(lambda servers: servers["a"] == "DOWN")
        await fleet.stand()
        fleet.processes["a"] = await asyncio.to_thread(fleet.instances["a"].start)
        await fleet.balancer.until(lambda servers: servers["a"] == "UP")
    fleet.processes["b"].signal(signal.SIGTERM)
    await fleet.balancer.until(lambda servers: servers["b"] == "DOWN")
    assert await asyncio.to_thread(fleet.processes["b"].wait) == 0
    fleet.processes["b"] = await asyncio.to_thread(fleet.instances["b"].start)
    await fleet.balancer.until(lambda servers: servers["b"] == "UP")
    await fleet.stand()
    async with fleet.trouble("PostgreSQL was restarted"):
        await asyncio.to_thread(fleet.postgresql.stop)
        await fleet.stand()
        await asyncio.to_thread(fleet.postgresql.start)
    await fleet.balancer.until(lambda servers: set(servers.values()) == {"UP"})
    await fleet.end(first[3], "revoke")
    await fleet.stand()
    fleet.limited = await fleet.issue()
    fleet.known.remove(fleet.limited)
    while len(fleet.refused) < COUNTING or fleet.counted.count(429) < 5:
        await fleet.stand(50)
    assert fleet.counted.count(200) == LIMIT
    fleet.redis.kill()
    await fleet.stand()
    await asyncio.to_thread(fleet.redis.start)
    await fleet.issue()
    await fleet.end(first[4], "revoke")
    await fleet.stand(2 * EACH)


@contextlib.contextmanager
def engines(folder: Path) -> Iterator[tuple[PostgresqlServer, RedisServer]]:
    with running_postgresql() as postgresql, RedisServer(folder, "--appendonly", "yes") as redis:
        yield postgresql, redis


@pytest.mark.requirement("R3.3", "R4.2")
@pytest.mark.timeout(600)
@pytest.mark.alone
async def test_a_fleet_answers_every_request_as_documented_whatever_breaks(tmp_path: Path) -> None:
    async with service() as url, contextlib.AsyncExitStack() as stack:
        postgresql, redis = stack.enter_context(engines(tmp_path))
        config = tmp_path / "sidecar.yaml"
        config.write_text(CONFIG.format(redis=redis.port), encoding="utf-8")
        keys = Keys(config, postgresql.database())
        keys.make_store("the key that makes the store")
        instances = {name: Instance(keys=keys, upstream=url) for name in "abc"}
        processes = {name: instance.start() for name, instance in instances.items()}
        stack.callback(lambda: [process.stop(signal.SIGINT) for process in processes.values()])
        balancer = Balancer(tmp_path, instances)
        stack.enter_context(balancer.running())
        await balancer.until(lambda servers: len(servers) == REPLICAS and set(servers.values()) == {"UP"})
        fleet = Fleet(keys, instances, processes, balancer, postgresql, redis)
        await fleet.issue()
        ends = asyncio.Event()
        clients = [asyncio.ensure_future(ask(fleet, ends, number)) for number in range(WORKERS)]
        try:
            await events(fleet)
        finally:
            ends.set()
            await asyncio.gather(*clients)
        report(fleet)
        assert Counter(why for seen in fleet.seen if (why := wrong(fleet, seen))) == {}
        assert LIMIT <= fleet.counted.count(200) <= LIMIT + REPLICAS * SHARE


def report(fleet: Fleet) -> None:
    """What was seen, by status, and in which trouble."""
    print(f"\n{len(fleet.seen):,} requests: {dict(Counter(seen.status for seen in fleet.seen))}")
    for name, began, ended in fleet.troubles:
        back = ended - BACK_SECONDS
        within = Counter(seen.status for seen in fleet.seen if began <= seen.done and seen.sent <= back)
        print(f"  while {name}, {back - began:.1f} s: {dict(within)}")
    print(f"  of a limit of {LIMIT}: {fleet.counted.count(200)} were allowed, {fleet.counted.count(429)} refused")
