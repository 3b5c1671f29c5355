"""What every limiter must do, whatever it counts in. An adapter's test module subclasses `LimiterContract`."""

import asyncio
from abc import ABC, abstractmethod

import pytest

from sidecar.core.model import Bucket, Quota, Window
from sidecar.limiter.port import Limiter

NOON = 1_772_366_400.0
"""2026-03-01T12:00:00Z."""
DAY = 86_400


def bucket(limit: int = 3, *, subject: str = "key-1", cost: int = 1, **quota: object) -> Bucket:
    settings = {"name": "general", "limit": limit, "period": "hour", **quota}
    return Bucket(quota=Quota(**settings), subject=(subject,), limit=limit, cost=cost)


async def passed(limiter: Limiter, wanted: Bucket, now: float, *, tries: int) -> int:
    """How many of `tries` takes at `now` pass."""
    taken = [await limiter.take([wanted], now) for _ in range(tries)]
    return sum(one.refused is None for one in taken)


class LimiterContract(ABC):
    @pytest.fixture
    @abstractmethod
    def limiter(self) -> Limiter:
        """An empty limiter."""

    @pytest.mark.parametrize("window", list(Window))
    async def test_exactly_the_limit_passes_in_a_burst(self, limiter: Limiter, window: Window) -> None:
        wanted = bucket(100, window=window, period=10)
        assert await passed(limiter, wanted, NOON + 9.9, tries=150) == 100

    @pytest.mark.parametrize("window", list(Window))
    async def test_concurrent_takes_never_pass_the_limit(self, limiter: Limiter, window: Window) -> None:
        wanted = bucket(100, window=window)
        taken = await asyncio.gather(*(limiter.take([wanted], NOON) for _ in range(300)))
        assert sum(one.refused is None for one in taken) == 100

    @pytest.mark.parametrize("window", list(Window))
    async def test_a_refused_take_passes_after_the_reported_wait(self, limiter: Limiter, window: Window) -> None:
        wanted = bucket(7, window=window, period=90)
        assert await passed(limiter, wanted, NOON + 0.25, tries=8) == 7
        refused = (await limiter.take([wanted], NOON + 1.5)).refused
        assert refused is not None
        assert refused.remaining == 0
        assert refused.retry_after_seconds >= 1
        assert (await limiter.take([wanted], NOON + 1.5 + refused.retry_after_seconds)).refused is None

    @pytest.mark.parametrize("window", list(Window))
    async def test_the_whole_allowance_is_back_when_it_says_so(self, limiter: Limiter, window: Window) -> None:
        wanted = bucket(5, window=window)
        await passed(limiter, wanted, NOON + 10, tries=3)
        (state,) = (await limiter.peek([wanted], NOON + 10)).states
        assert state.remaining == 2
        (later,) = (await limiter.peek([wanted], state.resets_at + 0.001)).states
        assert later.remaining == 5

    @pytest.mark.parametrize("window", list(Window))
    async def test_a_refused_take_takes_nothing_from_any_bucket(self, limiter: Limiter, window: Window) -> None:
        wide, narrow = bucket(10, window=window, name="wide"), bucket(1, window=window, name="narrow")
        assert (await limiter.take([wide, narrow], NOON)).refused is None
        taken = await limiter.take([wide, narrow], NOON + 1)
        assert taken.refused is not None
        assert taken.refused.quota.name == "narrow"
        assert [state.remaining for state in taken.states] == [9, 0]
        assert [state.remaining for state in (await limiter.peek([wide, narrow], NOON + 1)).states] == [9, 0]

    async def test_only_refused_states_have_a_wait(self, limiter: Limiter) -> None:
        wide, narrow = bucket(10, name="wide"), bucket(0, name="narrow")
        taken = await limiter.take([wide, narrow], NOON)
        assert [state.retry_after_seconds for state in taken.states] == [0, 3600]

    async def test_the_longest_wait_of_several_refusals_is_reported(self, limiter: Limiter) -> None:
        minute, hour = bucket(0, name="minute", period="minute"), bucket(0, name="hour")
        for order in ([minute, hour], [hour, minute]):
            refused = (await limiter.take(order, NOON)).refused
            assert refused is not None
            assert refused.quota.name == "hour"

    async def test_twice_the_same_quota_and_subject_is_judged_by_the_whole_cost(self, limiter: Limiter) -> None:
        wanted = bucket(3, cost=2)
        taken = await limiter.take([wanted, wanted], NOON)
        assert taken.refused is not None
        assert [state.remaining for state in taken.states] == [3]
        assert (await limiter.peek([wanted], NOON)).states[0].remaining == 3

    @pytest.mark.parametrize("window", list(Window))
    async def test_a_peek_takes_nothing_and_reports_what_a_take_would(self, limiter: Limiter, window: Window) -> None:
        wanted = bucket(1, window=window)
        for _ in range(3):
            peeked = await limiter.peek([wanted], NOON)
            assert peeked.refused is None
            assert peeked.states[0].remaining == 1
        await limiter.take([wanted], NOON)
        assert (await limiter.peek([wanted], NOON)).refused is not None

    @pytest.mark.parametrize("window", list(Window))
    async def test_a_cost_above_the_limit_never_passes(self, limiter: Limiter, window: Window) -> None:
        dear = bucket(3, cost=4, window=window)
        refused = (await limiter.take([dear], NOON)).refused
        assert refused is not None
        assert refused.retry_after_seconds >= 1
        assert refused.remaining == 3
        assert (await limiter.take([dear], NOON + refused.retry_after_seconds)).refused is not None

    async def test_subjects_and_quotas_are_counted_apart(self, limiter: Limiter) -> None:
        assert await passed(limiter, bucket(2), NOON, tries=3) == 2
        assert await passed(limiter, bucket(2, subject="key-2"), NOON, tries=3) == 2
        assert await passed(limiter, bucket(2, name="analytics"), NOON, tries=3) == 2

    async def test_a_limit_of_the_subject_wins_over_the_quotas(self, limiter: Limiter) -> None:
        quota = Quota(name="general", limit=1, period="hour")
        plan = Bucket(quota=quota, subject=("key-1",), limit=5)
        assert await passed(limiter, plan, NOON, tries=9) == 5

    async def test_a_take_without_buckets_passes(self, limiter: Limiter) -> None:
        taken = await limiter.take([], NOON)
        assert taken.states == ()
        assert taken.refused is None

    @pytest.mark.parametrize("window", list(Window))
    @pytest.mark.parametrize("jump", [-400 * DAY, -3 * DAY, -1.5 * 3600, -90, -0.5])
    async def test_setting_the_clock_back_gives_no_free_requests_and_no_endless_wait(
        self, limiter: Limiter, window: Window, jump: float
    ) -> None:
        spent, half = bucket(100, window=window), bucket(100, window=window, subject="key-2")
        start = NOON + 10
        assert await passed(limiter, spent, start, tries=100) == 100
        assert await passed(limiter, half, start, tries=50) == 50
        assert await passed(limiter, spent, start + jump, tries=5) == 0
        assert await passed(limiter, half, start + jump, tries=100) == 50
        refused = (await limiter.take([spent], start + jump + 1)).refused
        assert refused is not None
        assert refused.retry_after_seconds <= 3600 + 60
        assert (await limiter.take([spent], start + jump + 3700)).refused is None

    @pytest.mark.parametrize("window", list(Window))
    @pytest.mark.parametrize("jump", [3600.0, 3 * DAY, 400 * DAY])
    async def test_setting_the_clock_forward_gives_only_one_allowance(
        self, limiter: Limiter, window: Window, jump: float
    ) -> None:
        wanted = bucket(100, window=window)
        assert await passed(limiter, wanted, NOON + 10, tries=60) == 60
        assert await passed(limiter, wanted, NOON + 10 + jump, tries=150) == 100
        assert await passed(limiter, wanted, NOON + 10, tries=150) == 0

    async def test_a_clock_trembling_at_a_windows_end_opens_it_once(self, limiter: Limiter) -> None:
        wanted = bucket(10)
        assert await passed(limiter, wanted, NOON - 0.1, tries=11) == 10
        assert sum([await passed(limiter, wanted, NOON + tremble, tries=11) for tremble in (0.1, -0.1, 0.2, -2)]) == 10
