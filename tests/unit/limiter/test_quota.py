"""Arithmetic of quotas, by properties."""

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.core.model import Bucket, Quota, QuotaState, Window
from sidecar.core.quotas import (
    NO_DEBT,
    add_debt,
    add_stamp,
    bucket_state,
    capacity,
    fixed_state,
    policy_seconds,
    settle_debt,
    settle_stamps,
    sliding_state,
    window_at,
    window_of_count,
)

NOON = 1_772_366_400
MICRO = 1_000_000

Take = tuple[int, int]
"""Microseconds since the take before, cost."""

# Gaps around a period of ten seconds and a slice of it are where an allowance comes back too soon or too late.
gaps = st.sampled_from([0, 1, 50_000, 200_000, 312_500, 9_700_000, 9_900_000, 10_000_000]) | st.integers(0, 20 * MICRO)
takes = st.lists(st.tuples(gaps, st.integers(1, 4)), max_size=120)
limits = st.integers(1, 3) | st.integers(1, 12)


def bucket(window: Window, limit: int, cost: int = 1, *, period: object = 10, burst: int | None = None) -> Bucket:
    quota = Quota(name="q", limit=limit, period=period, window=window, burst=burst)
    return Bucket(quota=quota, subject=("s",), limit=limit, cost=cost)


def moments(wanted: Sequence[Take]) -> list[tuple[int, int]]:
    """(Absolute microsecond, cost) of each take."""
    at, result = NOON * MICRO, []
    for after, cost in wanted:
        at += after
        result.append((at, cost))
    return result


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@given(wanted=takes, limit=limits)
def test_a_fixed_window_never_holds_more_than_its_limit(wanted: Sequence[Take], limit: int) -> None:
    window, used, granted = (0, 0), 0, {}
    for micro, cost in moments(wanted):
        one, now = bucket(Window.FIXED, limit, cost), micro / MICRO
        window, still_counts = window_of_count(one.quota, window, now)
        used = used if still_counts else 0
        state = fixed_state(one, used, window[1], now)
        if not state.retry_after_seconds:
            used += cost
            granted[micro // (10 * MICRO)] = granted.get(micro // (10 * MICRO), 0) + cost
        assert state.remaining == limit - used
        assert window[0] <= now < window[1] == state.resets_at
    assert all(total <= limit for total in granted.values())


@given(wanted=takes, limit=limits)
@example(wanted=[(0, 1), (200_000, 1), (9_900_000, 1), (0, 1)], limit=2)
def test_no_span_of_a_period_holds_more_than_a_sliding_windows_limit(wanted: Sequence[Take], limit: int) -> None:
    stamps, granted = (), []
    for micro, cost in moments(wanted):
        one, now = bucket(Window.SLIDING, limit, cost), micro / MICRO
        stamps = settle_stamps(one.quota, stamps, now)
        if not sliding_state(one, stamps, now).retry_after_seconds:
            stamps = add_stamp(one.quota, stamps, cost, now)
            granted.append((micro, cost))
    for end, _ in granted:
        assert sum(cost for micro, cost in granted if end - 10 * MICRO < micro <= end) <= limit


@given(wanted=takes, limit=limits)
@example(wanted=[(0, 1), (4_900_000, 1), (5_600_000, 1)], limit=2)
def test_a_sliding_windows_allowance_is_back_a_slice_late_at_most(wanted: Sequence[Take], limit: int) -> None:
    stamps, granted, slice_micros = (), [], 10 * MICRO // 32 + 1
    for micro, cost in moments(wanted):
        one, now = bucket(Window.SLIDING, limit, cost), micro / MICRO
        stamps = settle_stamps(one.quota, stamps, now)
        if not sliding_state(one, stamps, now).retry_after_seconds:
            stamps = add_stamp(one.quota, stamps, cost, now)
            granted.append((micro, cost))
        else:
            recent = sum(c for m, c in granted if micro - 10 * MICRO - slice_micros < m)
            assert recent + cost > limit


def test_a_sliding_window_keeps_few_stamps_however_many_takes() -> None:
    one, stamps = bucket(Window.SLIDING, 10_000), ()
    for number in range(3000):
        now = NOON + number / 100
        stamps = add_stamp(one.quota, settle_stamps(one.quota, stamps, now), 1, now)
        assert len(stamps) <= 2 * 33
    assert sum(stamps[1::2]) == pytest.approx(1000, abs=32)


@given(wanted=takes, limit=limits, burst=st.none() | limits)
def test_no_span_holds_more_than_a_buckets_burst_and_what_flowed_in(
    wanted: Sequence[Take], limit: int, burst: int | None
) -> None:
    debt, granted = NO_DEBT, []
    for micro, cost in moments(wanted):
        one = bucket(Window.BUCKET, limit, cost, burst=burst)
        debt = settle_debt(one, debt, micro / MICRO)
        if not bucket_state(one, debt).retry_after_seconds:
            debt = add_debt(one, debt)
            granted.append((micro, cost))
        assert 0 <= debt[0] <= capacity(one) * 10 * MICRO
    size = burst or limit
    for first, (start, _) in enumerate(granted):
        total = 0
        for end, cost in granted[first:]:
            total += cost
            assert total * 10 * MICRO <= size * 10 * MICRO + (end - start) * limit


@given(limit=limits, burst=st.none() | limits, waits=st.lists(st.integers(0, 5 * MICRO), max_size=40))
def test_a_bucket_passes_as_soon_as_it_can_and_not_a_second_after(
    limit: int, burst: int | None, waits: Sequence[int]
) -> None:
    one, debt, micro = bucket(Window.BUCKET, limit, burst=burst), NO_DEBT, NOON * MICRO
    for wait in waits:
        micro += wait
        debt = settle_debt(one, debt, micro / MICRO)
        state = bucket_state(one, debt)
        if not state.retry_after_seconds:
            debt = add_debt(one, debt)
            continue
        told = micro / MICRO + state.retry_after_seconds
        assert not bucket_state(one, settle_debt(one, debt, told)).retry_after_seconds
        if state.retry_after_seconds > 1:
            assert bucket_state(one, settle_debt(one, debt, told - 1)).retry_after_seconds


@given(
    window=st.sampled_from([Window.SLIDING, Window.BUCKET]),
    jumps=st.lists(st.integers(-(10**6), 0).map(float) | st.floats(-100, 0), max_size=20),
)
def test_a_clock_running_backwards_never_refills(window: Window, jumps: Sequence[float]) -> None:
    one, now, left, counted = bucket(window, 5), float(NOON), 5, None
    for jump in jumps:
        now += jump
        state, counted = _take(one, counted, now)
        assert state.remaining == max(0, left - 1)
        left = state.remaining


def _take(one: Bucket, counted: object, now: float) -> tuple[QuotaState, object]:
    if one.quota.window is Window.SLIDING:
        stamps = settle_stamps(one.quota, counted or (), now)
        state = sliding_state(one, stamps, now)
        return state, stamps if state.retry_after_seconds else add_stamp(one.quota, stamps, 1, now)
    debt = settle_debt(one, counted or NO_DEBT, now)
    state = bucket_state(one, debt)
    return state, debt if state.retry_after_seconds else add_debt(one, debt)


@pytest.mark.parametrize(
    ("period", "now", "start", "end"),
    [
        ("month", "2026-02-14T03:04:05", "2026-02-01", "2026-03-01"),
        ("month", "2028-02-29T23:59:59.999", "2028-02-01", "2028-03-01"),
        ("month", "2028-03-01T00:00:00", "2028-03-01", "2028-04-01"),
        ("month", "2026-12-31T23:59:59.999999", "2026-12-01", "2027-01-01"),
        ("month", "2027-01-01T00:00:00", "2027-01-01", "2027-02-01"),
        ("month", "2100-02-28T12:00:00", "2100-02-01", "2100-03-01"),
        ("day", "2028-02-29T23:59:59.9", "2028-02-29", "2028-03-01"),
        ("hour", "2026-03-29T01:59:59.9", "2026-03-29T01:00:00", "2026-03-29T02:00:00"),
        ("minute", "2026-12-31T23:59:30", "2026-12-31T23:59:00", "2027-01-01T00:00:00"),
        (900, "2026-05-05T13:14:59", "2026-05-05T13:00:00", "2026-05-05T13:15:00"),
        (7200, "2026-05-05T13:14:59", "2026-05-05T12:00:00", "2026-05-05T14:00:00"),
    ],
)
def test_fixed_windows_follow_the_utc_clock(period: object, now: str, start: str, end: str) -> None:
    assert window_at(bucket(Window.FIXED, 1, period=period).quota, at(now)) == (at(start), at(end))


@pytest.mark.parametrize(
    ("window", "period", "burst", "now", "seconds"),
    [
        (Window.FIXED, "hour", None, "2026-01-01", 3600),
        (Window.FIXED, "month", None, "2026-02-10", 28 * 86_400),
        (Window.FIXED, "month", None, "2028-02-10", 29 * 86_400),
        (Window.SLIDING, "month", None, "2026-02-10", 30 * 86_400),
        (Window.FIXED, 10, None, "2026-01-01", 10),
        (Window.BUCKET, 10, None, "2026-01-01", 10),
        (Window.BUCKET, 10, 100, "2026-01-01", 20),
        (Window.BUCKET, 10, 1, "2026-01-01", 1),
    ],
)
def test_a_policys_seconds_are_the_time_to_full_quota(
    window: Window, period: object, burst: int | None, now: str, seconds: int
) -> None:
    assert policy_seconds(bucket(window, 50, period=period, burst=burst).quota, at(now)) == seconds


def test_a_bucket_lets_its_burst_pass_and_then_its_rate() -> None:
    one, debt, passed = bucket(Window.BUCKET, 50, period=1, burst=100), NO_DEBT, []
    for tick in range(300):
        now = NOON + tick / 100
        before = 0
        while True:
            debt = settle_debt(one, debt, now)
            if bucket_state(one, debt).retry_after_seconds:
                break
            debt, before = add_debt(one, debt), before + 1
        passed.append(before)
    assert passed[0] == 100
    assert sum(passed[1:101]) == 50
    assert sum(passed[1:]) == 149


@pytest.mark.parametrize(
    ("now", "start"),
    [
        ("2026-03-01T23:59:59", "2026-02-23T00:00:00"),  # a Sunday
        ("2026-03-02T00:00:00", "2026-03-02T00:00:00"),
        ("2026-03-08T12:00:00", "2026-03-02T00:00:00"),
        ("1970-01-01T00:00:00", "1969-12-29T00:00:00"),
    ],
)
def test_a_week_begins_on_monday(now: str, start: str) -> None:
    week = bucket(Window.FIXED, 1, period="week").quota
    assert window_at(week, at(now)) == (at(start), at(start) + 7 * 86_400)
    assert policy_seconds(week, at(now)) == 7 * 86_400
