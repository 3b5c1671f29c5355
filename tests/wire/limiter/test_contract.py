"""The limiter in Redis: the contract of all limiters, and exactly the arithmetic of the one in memory."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from sidecar.core.model import Bucket, Quota, QuotaState, Taken, Window
from sidecar.core.quotas import (
    NO_DEBT,
    add_debt,
    add_stamp,
    bucket_state,
    fixed_state,
    longest_refusal,
    merged,
    settle_debt,
    settle_stamps,
    sliding_state,
    window_at,
    window_of_count,
)
from sidecar.limiter.memory import MemoryLimiter
from sidecar.limiter.port import Limiter
from tests.harness.redis import RedisServer
from tests.unit.limiter.contract import DAY, NOON, LimiterContract
from tests.wire.limiter.clients import timed_limiter

PERIODS = (1, 7, 10, 90, 86_400 * 45, 40_000_000, "minute", "hour", "day", "week", "month")


class TestRedisLimiter(LimiterContract):
    @pytest.fixture
    async def limiter(self, server: RedisServer) -> AsyncIterator[Limiter]:
        async with timed_limiter(server) as limiter:
            yield limiter


def buckets(*, limits: st.SearchStrategy[int]) -> st.SearchStrategy[list[Bucket]]:
    """Of some quotas; the name says all that makes a quota, and limits and costs vary."""

    def bucket(window: Window, period: str | int, burst: int | None, limit: int, cost: int) -> Bucket:
        burst = burst if window is Window.BUCKET else None
        quota = Quota(name=f"{window}-{period}-{burst}", limit=limit, period=period, window=window, burst=burst)
        return Bucket(quota=quota, subject=("one",), limit=limit, cost=cost)

    bursts = st.sampled_from([None, 1, 50, 10**15])
    costs = st.sampled_from([1, 2, 3, 10**9])
    one = st.builds(bucket, st.sampled_from(Window), st.sampled_from(PERIODS), bursts, limits, costs)
    return st.lists(one, min_size=1, max_size=3)


Step = tuple[float, bool, list[Bucket]]
"""Seconds that the clock jumps, whether to take or to peek, and the buckets."""


def steps(jumps: st.SearchStrategy[float], limits: st.SearchStrategy[int]) -> st.SearchStrategy[list[Step]]:
    return st.lists(st.tuples(jumps, st.booleans(), buckets(limits=limits)), min_size=1, max_size=12)


FORWARD = st.one_of(
    st.sampled_from([0.0, 0.000_001, 0.03, 0.9, 1.0, 60.0, 3600.0, float(DAY), 31.0 * DAY, 400.0 * DAY]),
    st.floats(0, 100),
    st.floats(0, 3e6),
)
FAR_BACK = st.floats(-400 * DAY, -60 * DAY)
NEAR = st.floats(-3700, -0.000_001)
FEW = st.sampled_from([1, 2, 3, 7, 100])
MANY = st.sampled_from([0, 1, 2, 5, 33, 4_000, 86_399, 123_457, 10**9 + 7, 10**15])


class PureLimiter:
    """The functions of core/quotas on counts that are kept per subject, for ever."""

    immediate = True

    def __init__(self) -> None:
        self._counts: dict[tuple[str, tuple[str, ...]], tuple[int, ...]] = {}

    async def take(self, buckets: Sequence[Bucket], now: float) -> Taken:
        return self.take_now(buckets, now)

    async def peek(self, buckets: Sequence[Bucket], now: float) -> Taken:
        return self.peek_now(buckets, now)

    def take_now(self, buckets: Sequence[Bucket], now: float) -> Taken:
        return self._asked(merged(buckets), now, take=True)

    def peek_now(self, buckets: Sequence[Bucket], now: float) -> Taken:
        return self._asked(merged(buckets), now, take=False)

    def _asked(self, buckets: Sequence[Bucket], now: float, *, take: bool) -> Taken:
        counts = [self._settled(bucket, now) for bucket in buckets]
        states = [_state(bucket, count, now, take=take) for bucket, count in zip(buckets, counts, strict=True)]
        refused = longest_refusal(states)
        if refused is not None:
            states = [_state(bucket, count, now, take=False) for bucket, count in zip(buckets, counts, strict=True)]
        for bucket, count in zip(buckets, counts, strict=True):
            new = _added(bucket, count, now) if take and refused is None else count
            self._counts[bucket.quota.name, bucket.subject] = new
        return Taken(states=tuple(states), refused=refused)

    def _settled(self, bucket: Bucket, now: float) -> tuple[int, ...]:
        held = self._counts.get((bucket.quota.name, bucket.subject), ())
        match bucket.quota.window:
            case Window.FIXED:
                if not held or not held[2]:
                    return (*window_at(bucket.quota, now), 0)
                window, counts = window_of_count(bucket.quota, (held[0], held[1]), now)
                return (*window, held[2] if counts else 0)
            case Window.SLIDING:
                return settle_stamps(bucket.quota, held, now)
            case Window.BUCKET:
                return settle_debt(bucket, (held[0], held[1]) if held else NO_DEBT, now)


def _state(bucket: Bucket, count: tuple[int, ...], now: float, *, take: bool) -> QuotaState:
    match bucket.quota.window:
        case Window.FIXED:
            return fixed_state(bucket, count[2], count[1], now, take=take)
        case Window.SLIDING:
            return sliding_state(bucket, count, now, take=take)
        case Window.BUCKET:
            return bucket_state(bucket, (count[0], count[1]), take=take)


def _added(bucket: Bucket, count: tuple[int, ...], now: float) -> tuple[int, ...]:
    match bucket.quota.window:
        case Window.FIXED:
            return (*count[:2], count[2] + bucket.cost)
        case Window.SLIDING:
            return add_stamp(bucket.quota, count, bucket.cost, now)
        case Window.BUCKET:
            return add_debt(bucket, (count[0], count[1]))


class Comparison:
    """One limiter in Redis, kept for all sequences; each counts for a subject of its own."""

    def __init__(self, server: RedisServer, runner: asyncio.Runner) -> None:
        self._runner, self._made = runner, 0
        self._context = timed_limiter(server)
        self._limiter = runner.run(self._context.__aenter__())

    def close(self) -> None:
        self._runner.run(self._context.__aexit__(None, None, None))

    def assert_same(self, other: Limiter, sequence: Sequence[Step]) -> None:
        """Both give the same result at each step, to the last digit."""
        self._made += 1
        self._runner.run(self._compare(other, sequence, f"subject-{self._made}"))

    async def _compare(self, other: Limiter, sequence: Sequence[Step], subject: str) -> None:
        now = NOON
        for jump, take, asked in sequence:
            now = max(1e6, round((now + jump) * 1_000_000) / 1_000_000)
            wanted = [replace(bucket, subject=(subject,)) for bucket in asked]
            assert await _asked(self._limiter, wanted, now, take=take) == await _asked(other, wanted, now, take=take)


async def _asked(limiter: Limiter, wanted: list[Bucket], now: float, *, take: bool) -> Taken:
    return await (limiter.take(wanted, now) if take else limiter.peek(wanted, now))


@pytest.fixture(scope="module")
def comparison(server: RedisServer) -> Iterator[Comparison]:
    with asyncio.Runner() as runner:
        comparison = Comparison(server, runner)
        yield comparison
        comparison.close()


SOME = settings(max_examples=100, deadline=None)


@SOME
@given(sequence=steps(st.one_of(FORWARD, FAR_BACK, NEAR), MANY))
def test_the_script_counts_by_the_arithmetic_of_all_limiters_however_the_clock_jumps(
    comparison: Comparison, sequence: Sequence[Step]
) -> None:
    comparison.assert_same(PureLimiter(), sequence)


@SOME
@given(jumps=st.lists(st.tuples(st.one_of(FORWARD, FAR_BACK), st.booleans()), max_size=12), asked=buckets(limits=FEW))
def test_redis_and_memory_give_the_same_results_step_by_step(
    comparison: Comparison, jumps: Sequence[tuple[float, bool]], asked: list[Bucket]
) -> None:
    comparison.assert_same(MemoryLimiter(), [(jump, take, asked) for jump, take in jumps])


@SOME
@given(
    jumps=st.lists(st.one_of(st.floats(0, 3), st.floats(0, 3e6)), min_size=1, max_size=12),
    period=st.sampled_from(PERIODS),
    limit=st.integers(1, 10**15),
    size=st.integers(1, 10**15),
    data=st.data(),
)
def test_buckets_of_any_size_refill_exactly(
    comparison: Comparison, jumps: Sequence[float], period: int, limit: int, size: int, data: st.DataObject
) -> None:
    quota = Quota(name=f"{period}-{size}", limit=limit, period=period, window=Window.BUCKET, burst=size)
    cost = data.draw(st.integers(max(1, size // 4), size))
    bucket = Bucket(quota=quota, subject=(), limit=limit, cost=cost)
    comparison.assert_same(PureLimiter(), [(jump, True, [bucket]) for jump in (*jumps, 0.0)])
