"""The limiter that processes share: the contract, its bound, restarts, and killed processes."""

import asyncio
import os
import random
import signal
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

import pytest

from sidecar.core.errors import Fault
from sidecar.core.model import Bucket, Subject, Window
from sidecar.limiter.memory import MemoryLimiter
from sidecar.limiter.shared import SharedLimiter
from tests.unit.limiter.contract import NOON, LimiterContract, bucket, passed


class TestSharedLimiter(LimiterContract):
    @pytest.fixture
    def limiter(self) -> SharedLimiter:
        return SharedLimiter()


def stranger(number: int, window: Window = Window.FIXED) -> Bucket:
    return bucket(5, subject=f"2001:db8::{number:x}", window=window, name="by_address", by=(Subject.ADDRESS,))


@pytest.mark.parametrize("window", list(Window))
async def test_it_counts_exactly_like_the_memory_limiter(window: Window) -> None:
    chance, shared, memory = random.Random(window), SharedLimiter(), MemoryLimiter()  # noqa: S311
    now = NOON
    for _ in range(2_000):
        now += chance.choice((0, 0.001, 0.3, 5, 40, 200))
        burst = 9 if window is Window.BUCKET else None
        wanted = [
            bucket(6, subject=f"key-{chance.randrange(4)}", cost=chance.randrange(4), window=window, period=period,
                   name=f"of {period}", burst=burst)
            for period in chance.sample((10, "minute", 90), chance.randrange(1, 4))
        ]  # fmt: skip
        ask = chance.choice(("take", "take", "peek"))
        assert await getattr(shared, ask)(wanted, now) == await getattr(memory, ask)(wanted, now)


@pytest.mark.requirement("S7.7")
async def test_a_flood_of_addresses_never_resets_a_key() -> None:
    limiter = SharedLimiter(max_entries=1000)
    spent = [bucket(3, subject=f"key-{number}") for number in range(500)]
    assert [await passed(limiter, one, NOON, tries=3) for one in spent] == [3] * 500
    for number in range(5_000):
        await limiter.take([stranger(number)], NOON)
    assert [one.subject for one in spent if (await limiter.take([one], NOON)).refused is None] == []
    limiter.expire(NOON)
    assert len(limiter) <= 1000 * 4 / 3 + 64 and limiter.evicted > 0


async def test_addresses_are_counted_however_many_keys_there_are() -> None:
    limiter = SharedLimiter(max_entries=1000)
    for number in range(5_000):
        await limiter.take([bucket(3, subject=f"key-{number}")], NOON)
    assert await passed(limiter, stranger(1), NOON, tries=9) == 5


@pytest.mark.parametrize("window", list(Window))
@pytest.mark.parametrize(("before", "after"), [(SharedLimiter, MemoryLimiter), (MemoryLimiter, SharedLimiter),
                                               (SharedLimiter, SharedLimiter)])  # fmt: skip
async def test_counts_survive_a_restart_with_more_or_fewer_workers(
    window: Window, before: Callable[[], MemoryLimiter], after: Callable[[], MemoryLimiter]
) -> None:
    old, new = before(), after()
    wanted = bucket(5, window=window)
    assert await passed(old, wanted, NOON, tries=3) == 3
    assert new.restore(old.rows(NOON + 1), NOON + 2) == 1
    assert await passed(new, wanted, NOON + 3, tries=5) == 2


async def test_quotas_shorter_than_a_minute_and_past_counts_are_not_written() -> None:
    limiter = SharedLimiter()
    await limiter.take([bucket(5, period=59, name="short"), bucket(5, period="minute", name="long")], NOON)
    assert [row[0] for row in limiter.rows(NOON + 1)] == ["long"]
    assert list(limiter.rows(NOON + 61)) == []


async def test_the_top_users_of_a_quota_are_known() -> None:
    limiter = SharedLimiter()
    full, idle = bucket(5, subject="full"), bucket(5, subject="idle")
    await passed(limiter, full, NOON, tries=5)
    await passed(limiter, idle, NOON, tries=1)
    limiter.quotas = {"general": full.quota}
    limiter.expire(NOON)
    assert limiter.top_subjects(most=3, limits={}) == [(Subject.KEY, "full")]


@pytest.fixture
def forked() -> Iterator[Callable[[Callable[[], None]], int]]:
    """Starts a process that does the work; all are killed at the end."""
    started = list[int]()

    def fork(work: Callable[[], None]) -> int:
        pid = os.fork()
        if not pid:
            try:
                work()
            finally:
                os._exit(0)
        started.append(pid)
        return pid

    yield fork
    for pid in started:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


LIMIT, MUCH, KILLS = 3_000, 20_000, 70


@pytest.mark.parametrize("window", list(Window))
def test_killed_processes_leave_counts_exact(window: Window, forked: Callable[[Callable[[], None]], int]) -> None:
    """Each passed take is noted in the one byte that a pipe gets, so that none is noted in part."""
    limiter, chance = SharedLimiter(), random.Random(1)  # noqa: S311
    both = [bucket(MUCH, window=window, period="day"), bucket(MUCH, window=window, period="day", name="second")]
    noted, note = os.pipe()

    async def take_until_refused() -> None:
        while (await limiter.take(both, NOON)).refused is None:
            os.write(note, b"+")

    told = 0
    for _ in range(KILLS):
        pid = forked(lambda: asyncio.run(take_until_refused()))
        told += sum(len(os.read(noted, 1)) for _ in range(chance.randrange(10)))
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    os.close(note)
    left = asyncio.run(passed(limiter, both[0], NOON, tries=MUCH + 1))
    with os.fdopen(noted, "rb") as rest:
        told += len(rest.read())
    assert MUCH - KILLS <= told + left <= MUCH


@pytest.mark.parametrize("window", list(Window))
def test_what_a_process_was_writing_when_it_was_killed_is_as_before(
    window: Window, forked: Callable[[Callable[[], None]], int]
) -> None:
    limiter, wanted = SharedLimiter(), bucket(5, window=window, period="day")
    assert asyncio.run(passed(limiter, wanted, NOON, tries=3)) == 3

    def write_half() -> None:
        slots, place = limiter._slots, limiter._counts_of(wanted.quota).place(wanted.subject)
        slots.lock((place.lock,))
        slot, _ = slots.find(place, int(NOON * 1_000_000))
        with suppress(struct.error):
            slots.write(place, slot, (0, 0, "not a number"), expires=1 << 62, flags=0)  # type: ignore[arg-type]

    os.waitid(os.P_PID, forked(write_half), os.WEXITED | os.WNOWAIT)
    assert asyncio.run(passed(limiter, wanted, NOON, tries=5)) == 2


def test_concurrent_processes_get_exactly_the_limit(forked: Callable[[Callable[[], None]], int]) -> None:
    limiter = SharedLimiter()
    wanted = bucket(LIMIT, period="day")
    noted, note = os.pipe()

    def take_all() -> None:
        count = asyncio.run(passed(limiter, wanted, NOON, tries=LIMIT))
        os.write(note, f"{count}\n".encode())

    for _ in range(3):
        forked(take_all)
    os.close(note)
    with os.fdopen(noted) as lines:
        counts = [int(line) for line in lines]
    assert len(counts) == 3 and sum(counts) == LIMIT


def stopped_in_a_take(limiter: SharedLimiter, forked: Callable[[Callable[[], None]], int]) -> int:
    """A process that stands still, and holds all locks."""

    def lock_and_stop() -> None:
        limiter._slots.lock(range(64))
        os.kill(os.getpid(), signal.SIGSTOP)

    pid = forked(lock_and_stop)
    os.waitid(os.P_PID, pid, os.WSTOPPED)
    return pid


async def turns_until(work: Awaitable[object]) -> int:
    """How often the loop turns until it is done."""
    waiting, turns = asyncio.ensure_future(work), 0
    while not waiting.done():
        turns += 1
        await asyncio.sleep(0)
    return turns


@pytest.mark.parametrize("ask", ["take", "peek"])
@pytest.mark.parametrize("quotas", [1, 2])
async def test_a_process_that_is_stopped_in_a_take_stops_no_other_and_no_event_loop(
    forked: Callable[[Callable[[], None]], int], ask: str, quotas: int
) -> None:
    limiter, wanted = SharedLimiter(), [bucket(name=f"quota-{number}") for number in range(quotas)]
    pid = stopped_in_a_take(limiter, forked)
    asked = asyncio.ensure_future(getattr(limiter, ask)(wanted, NOON))
    assert await turns_until(asyncio.wait([asked])) > 100
    with pytest.raises(Fault):
        await asked
    later = asyncio.ensure_future(getattr(limiter, ask)(wanted, NOON))
    await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    assert (await later).refused is None
