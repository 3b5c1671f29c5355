"""When Redis fails, no request waits beyond the budget, and the configured choice decides."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random

import pytest

from sidecar.core.errors import Fault, Reason
from sidecar.core.model import Taken, Window
from sidecar.limiter.redis.limiter import RedisLimiter
from sidecar.limiter.remote import Cause, Outage, RemoteStatistics
from tests.harness.redis import RedisServer
from tests.harness.waiting import eventually
from tests.unit.limiter.contract import bucket, passed
from tests.wire.limiter.clients import redis_limiter

BUDGET = 1.0
PATIENCE_SECONDS = 30
NOW = 1_772_366_400.0
PASSWORD = "hunter2-very-secret"


async def take(limiter: RedisLimiter, **settings: object) -> Taken:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await limiter.take([bucket(90, **settings)], NOW)  # type: ignore[arg-type]


def decided_without(statistics: RemoteStatistics) -> int:
    return sum(statistics.fallbacks.values())


@pytest.fixture(autouse=True)
def as_ever(server: RedisServer) -> None:
    """The shared server accepts writes, and is empty."""
    for words in (("REPLICAOF", "NO", "ONE"), ("CONFIG", "SET", "maxmemory", "0"), ("FLUSHALL",)):
        assert server.call(*words).startswith(b"+OK")


BREAKS: dict[str, tuple[tuple[str, ...], tuple[str, ...], Cause]] = {
    "memory is full": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"), "memory"),
    "it became a replica": (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"), "readonly"),
}


@pytest.mark.requirement("R3.1")
@pytest.mark.parametrize("problem", list(BREAKS))
async def test_a_server_that_answers_with_errors_is_replaced_by_the_share_until_it_is_well(
    server: RedisServer, problem: str
) -> None:
    broken, mended, cause = BREAKS[problem]
    async with redis_limiter(server.url, outage="local", replicas=3) as (limiter, statistics):
        assert (await take(limiter)).states[0].remaining == 89
        server.call(*broken)
        taken = await take(limiter)
        assert (taken.states[0].limit, taken.states[0].remaining) == (30, 29)
        assert statistics.errors[cause] >= 1 and statistics.breaker != "closed" and cause in statistics.problem
        server.call(*mended)
        await eventually(lambda: statistics.breaker == "closed")
        assert (await take(limiter)).states[0].remaining == 88


@pytest.mark.requirement("R3.1")
async def test_lost_counts_restart_and_lost_scripts_are_reloaded(server: RedisServer) -> None:
    async with redis_limiter(server.url) as (limiter, statistics):
        assert await passed(limiter, bucket(5), NOW, tries=3) == 3
        server.call("SCRIPT", "FLUSH")
        taken = await asyncio.gather(*(take(limiter, subject="another") for _ in range(20)))
        assert sorted(one.states[0].remaining for one in taken) == list(range(70, 90))
        assert await passed(limiter, bucket(5), NOW, tries=9) == 2
        server.call("FLUSHALL")
        assert await passed(limiter, bucket(5), NOW, tries=9) == 5
        assert decided_without(statistics) == 0


@pytest.mark.requirement("R3.1")
async def test_a_paused_server_holds_up_what_is_under_way_and_nothing_after_it(server: RedisServer) -> None:
    async with redis_limiter(server.url, timeout=BUDGET, outage="local") as (limiter, statistics):
        await take(limiter)
        with server.paused():
            taken = await asyncio.gather(*(take(limiter) for _ in range(10)))
            assert all(one.refused is None for one in taken)
            assert statistics.errors["timeout"] == 1 and decided_without(statistics) == 10
            # The breaker is open: these do not use the server, and end without a turn of the loop.
            for _ in range(10):
                work = limiter.take([bucket(90)], NOW)
                with pytest.raises(StopIteration):
                    work.send(None)
        await eventually(lambda: statistics.breaker == "closed")
        assert (await limiter.peek([bucket(90)], NOW)).states[0].limit == 90


async def test_a_busy_loop_does_not_treat_a_response_as_late(server: RedisServer) -> None:
    async with redis_limiter(server.url, timeout=BUDGET, outage="local") as (limiter, statistics):
        with server.paused():
            asked = [asyncio.ensure_future(take(limiter)) for _ in range(10)]
            for _ in range(5):
                await asyncio.sleep(0)  # They are sent.
            time.sleep(2 * BUDGET)  # A loop that is blocked for this long is what is tested.
        server.call("PING")  # Blocks until the replies have arrived and wait to be read.
        assert sorted(one.states[0].remaining for one in await asyncio.gather(*asked)) == list(range(80, 90))
        await asyncio.gather(*(take(limiter) for _ in range(10)))
        assert decided_without(statistics) == 0 and statistics.errors.total() == 0


@pytest.mark.requirement("R3.2")
async def test_a_late_reply_of_a_paused_server_is_discarded(server: RedisServer) -> None:
    async with redis_limiter(server.url, timeout=BUDGET, outage="open") as (limiter, statistics):
        for number in range(10):
            await take(limiter, subject=f"key-{number}", cost=number + 1)
        with server.paused():
            asked = (limiter.peek([bucket(90, subject=f"key-{number}")], NOW) for number in range(10))
            assert [one.states for one in await asyncio.gather(*asked)] == [()] * 10
        await eventually(lambda: statistics.breaker == "closed")
        for number in reversed(range(10)):
            (state,) = (await limiter.peek([bucket(90, subject=f"key-{number}")], NOW)).states
            assert state.used == number + 1


@pytest.mark.requirement("R3.2")
async def test_a_thousand_cancelled_takes_never_mix_up_replies(server: RedisServer) -> None:
    random = Random(7)  # noqa: S311 - no secret
    async with redis_limiter(server.url) as (limiter, statistics):
        for number in range(50):
            await take(limiter, subject=f"key-{number}", cost=number + 1)
        numbers = [random.randrange(50) for _ in range(2000)]
        for some in (numbers[i : i + 100] for i in range(0, 2000, 100)):
            asked = [asyncio.ensure_future(limiter.peek([bucket(90, subject=f"key-{n}")], NOW)) for n in some]
            for turn in range(50):
                if turn % 10 == 0:
                    await asyncio.sleep(0)
                asked[random.randrange(100)].cancel()
            for number, one in zip(some, asked, strict=True):
                with suppress(asyncio.CancelledError):
                    assert (await one).states[0].used == number + 1
        assert decided_without(statistics) == 0 and statistics.errors.total() == 0


@pytest.mark.requirement("R3.1")
async def test_a_killed_server_is_found_again_when_it_is_back(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with redis_limiter(server.url, outage="local") as (limiter, statistics):
            await take(limiter)
            server.kill()
            await asyncio.gather(*(take(limiter) for _ in range(20)))
            assert decided_without(statistics) == 20 and statistics.errors["connection"] >= 1
            server.start()
            await eventually(lambda: statistics.breaker == "closed")
            assert (await take(limiter)).states[0].remaining == 89


@pytest.mark.requirement("R3.1")
async def test_a_loading_server_is_not_queried_until_it_has_loaded(tmp_path: Path) -> None:
    with RedisServer(tmp_path, "--rdbcompression", "no") as full:
        for number in range(40):
            full.call("SET", f"key-{number}", "x" * 5000)
        assert full.call("SAVE") == b"+OK\r\n"
    slow = ("--key-load-delay", "50000", "--loading-process-events-interval-bytes", "1024")
    with RedisServer(tmp_path, *slow) as server:
        async with redis_limiter(server.url, outage="local") as (limiter, statistics):
            assert statistics.errors["loading"] == 1
            assert (await take(limiter)).refused is None and decided_without(statistics) == 1
            await eventually(lambda: statistics.breaker == "closed")


@pytest.mark.parametrize(("outage", "passes"), [("open", 9), ("local", 3), ("closed", 0)])
async def test_during_an_outage_requests_are_decided_as_configured(outage: Outage, passes: int) -> None:
    async with redis_limiter("redis://127.0.0.1:1", outage=outage, replicas=3) as (limiter, statistics):
        taken, refused, faults = 0, 0, 0
        for _ in range(9):
            try:
                one = await limiter.take([bucket(9)], NOW)
                taken, refused = taken + (one.refused is None), refused + (one.refused is not None)
            except Fault as fault:
                assert fault.reason is Reason.LIMITER_UNAVAILABLE
                faults += 1
        assert taken == passes
        assert statistics.fallbacks == {"allowed": taken, "refused": refused, "fault": faults}
        assert statistics.errors["connection"] == 1


@pytest.mark.parametrize("window", list(Window))
async def test_shares_let_at_least_one_request_of_each_quota_pass(window: Window) -> None:
    async with redis_limiter("redis://127.0.0.1:1", outage="local", replicas=100) as (limiter, _):
        burst = 3 if window is Window.BUCKET else None
        assert await passed(limiter, bucket(20, window=window, burst=burst), NOW, tries=5) == 1
        assert await passed(limiter, bucket(20, window=window, name="dear", cost=7), NOW, tries=5) == 1
        assert await passed(limiter, bucket(5, window=window, name="too dear", cost=7), NOW, tries=5) == 0


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:{port}", "redis://:wrong@127.0.0.1:{port}", "redis://me:{password}@127.0.0.1:{port}"]
)
async def test_with_a_wrong_password_the_outage_setting_decides_and_no_secret_is_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    with RedisServer(tmp_path, "--requirepass", PASSWORD) as server, caplog.at_level(logging.DEBUG):
        wrong = url.format(port=server.port, password=PASSWORD)
        async with redis_limiter(wrong, outage="local") as (limiter, statistics):
            assert (await take(limiter)).refused is None
            assert statistics.errors["auth"] == 1 and decided_without(statistics) == 1
            assert "auth" in caplog.text and PASSWORD not in caplog.text + statistics.problem
        async with redis_limiter(f"redis://:{PASSWORD}@127.0.0.1:{server.port}") as (limiter, statistics):
            assert (await take(limiter)).states[0].remaining == 89
            assert not statistics.problem


@asynccontextmanager
async def black_hole() -> AsyncIterator[str]:
    """Accepts connections, and never responds."""
    writers: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(lambda reader, writer: writers.append(writer), "127.0.0.1", 0) as server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for writer in writers:
            writer.close()


@asynccontextmanager
async def repeating(answer: bytes) -> AsyncIterator[str]:
    """Sends this reply to every command."""

    async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while commands := await reader.read(65536):
                writer.write(answer * (1 + commands.count(b"\r\n*")))
        writer.close()

    async with await asyncio.start_server(answered, "127.0.0.1", 0) as server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"


OF_THE_SCRIPT = b"*4\r\n:0\r\n:1772366400\r\n:0\r\n*2\r\n:1\r\n:1772370000\r\n"
ODD = {
    "another form": b"+OK\r\n",
    "nothing": b"$-1\r\n",
    "too short": b"*0\r\n",
    "more than was asked": OF_THE_SCRIPT * 20,
    "no protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
}


@pytest.mark.requirement("R3.1")
@pytest.mark.parametrize("answer", ODD)
async def test_a_server_that_is_not_redis_is_an_outage_and_no_request_fails(answer: str) -> None:
    async with repeating(ODD[answer]) as url, redis_limiter(url, outage="local", replicas=3) as (limiter, statistics):
        taken = await asyncio.gather(*(take(limiter) for _ in range(5)))
        assert all(one.refused is None for one in taken)
        await eventually(lambda: statistics.errors.total() >= 2)
        assert statistics.breaker != "closed" and statistics.problem


async def test_a_silent_server_delays_no_request() -> None:
    async with black_hole() as url, redis_limiter(url, timeout=0.05, outage="local") as (limiter, statistics):
        assert statistics.errors["timeout"] == 1
        assert (await take(limiter)).refused is None
