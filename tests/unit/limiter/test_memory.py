"""The limiter in memory: the contract, its bound, and restarts."""

import pytest
from msgspec.structs import replace

from sidecar.core.model import Bucket, Subject, Window
from sidecar.limiter.memory import MemoryLimiter
from tests.unit.limiter.contract import DAY, NOON, LimiterContract, bucket, passed


class TestMemoryLimiter(LimiterContract):
    @pytest.fixture
    def limiter(self) -> MemoryLimiter:
        return MemoryLimiter()


def stranger(number: int, window: Window) -> Bucket:
    return bucket(5, subject=f"2001:db8:{number:x}::/64", window=window, name="anonymous", period="minute")


@pytest.mark.parametrize("window", list(Window))
async def test_unknown_clients_over_the_limit_are_not_kept(window: Window) -> None:
    limiter = MemoryLimiter(max_entries=100)
    for number in range(1000):
        await limiter.take([stranger(number, window)], NOON)
        assert len(limiter) <= 100


@pytest.mark.parametrize("window", list(Window))
async def test_unknown_clients_do_not_evict_active_ones(window: Window) -> None:
    limiter = MemoryLimiter(max_entries=100)
    regular = stranger(10**6, window)
    assert await passed(limiter, regular, NOON, tries=5) == 5
    for number in range(1000):
        await limiter.take([stranger(number, window)], NOON)
        assert (await limiter.take([regular], NOON)).refused is not None


async def test_unknown_clients_do_not_evict_the_counts_of_smaller_quotas() -> None:
    limiter = MemoryLimiter(max_entries=100)
    assert await passed(limiter, bucket(3), NOON, tries=3) == 3
    for number in range(1000):
        await limiter.take([stranger(number, Window.FIXED)], NOON)
    assert (await limiter.take([bucket(3)], NOON)).refused is not None


def from_address(number: int, *, limit: int = 5, window: Window = Window.FIXED) -> Bucket:
    return bucket(limit, subject=f"2001:db8::{number:x}", window=window, name="by_address", by=(Subject.ADDRESS,))


@pytest.mark.requirement("S7.7")
@pytest.mark.parametrize("window", list(Window))
@pytest.mark.parametrize("by", [(Subject.KEY,), (Subject.TENANT,), (Subject.KEY, Subject.ADDRESS)])
async def test_a_flood_of_addresses_never_resets_a_key_or_a_tenant(window: Window, by: tuple[Subject, ...]) -> None:
    limiter = MemoryLimiter(max_entries=100)
    spent = [bucket(3, subject=f"key-{number}", by=by, window=window) for number in range(80)]
    assert [await passed(limiter, one, NOON, tries=3) for one in spent] == [3] * 80
    for number in range(1000):
        await limiter.take([from_address(number, window=window)], NOON)
    assert len(limiter) <= 100
    assert limiter.evicted == 980
    assert all([(await limiter.take([one], NOON)).refused is not None for one in spent])


async def test_keys_leave_a_tenth_to_addresses_which_are_counted_however_many_keys_there_are() -> None:
    limiter = MemoryLimiter(max_entries=100)
    for number in range(1000):
        await limiter.take([bucket(subject=f"key-{number}")], NOON)
    assert len(limiter) == 90
    assert await passed(limiter, from_address(1), NOON, tries=9) == 5
    for number in range(1000, 2000):
        await limiter.take([bucket(subject=f"key-{number}")], NOON)
    assert (await limiter.take([from_address(1)], NOON)).refused is not None


@pytest.mark.parametrize("window", list(Window))
async def test_an_address_that_has_used_its_quota_is_not_let_off_by_a_flood_of_others(window: Window) -> None:
    limiter = MemoryLimiter(max_entries=100)
    blocked = from_address(10**6, window=window)
    assert await passed(limiter, blocked, NOON, tries=9) == 5
    for number in range(5000):
        await limiter.take([from_address(number, window=window)], NOON)
    assert (await limiter.take([blocked], NOON)).refused is not None


async def test_restoring_is_bounded_and_keys_come_before_addresses() -> None:
    before, after = MemoryLimiter(max_entries=1000), MemoryLimiter(max_entries=100)
    for number in range(50):
        await passed(before, bucket(subject=f"key-{number}"), NOON, tries=3)
    for number in range(500):
        await before.take([from_address(number)], NOON)
    after.restore(before.snapshot(NOON), NOON)
    assert len(after) == 100
    assert (await after.take([bucket(subject="key-7")], NOON)).refused is not None


@pytest.mark.parametrize("window", list(Window))
async def test_expired_counts_are_removed_as_others_are_taken(window: Window) -> None:
    limiter = MemoryLimiter()
    for number in range(1000):
        await limiter.take([stranger(number, window)], NOON)
    for number in range(600):
        await limiter.take([stranger(0, window)], NOON + 61 + number / 4)
    assert len(limiter) == 1


@pytest.mark.parametrize("window", list(Window))
async def test_expired_counts_of_an_unused_quota_are_removed_on_request(window: Window) -> None:
    limiter = MemoryLimiter()
    await limiter.take([stranger(1, window)], NOON)
    limiter.expire(NOON + 1)
    assert (await limiter.peek([stranger(1, window)], NOON + 1)).states[0].remaining < 5
    limiter.expire(NOON + 200)
    assert len(limiter) == 0


@pytest.mark.parametrize("window", list(Window))
async def test_refused_unknown_clients_leave_nothing_behind(window: Window) -> None:
    limiter = MemoryLimiter()
    for number in range(50):
        await limiter.take([replace(stranger(number, window), limit=0)], NOON)
        await limiter.peek([stranger(number, window)], NOON)
    assert len(limiter) == 0


async def test_a_bucket_of_a_slow_subject_is_not_forgotten_before_it_is_full() -> None:
    limiter = MemoryLimiter()
    slow = replace(bucket(60, window=Window.BUCKET, burst=60, period="minute"), limit=1)
    assert await passed(limiter, slow, NOON, tries=60) == 60
    for minute in range(1, 31):
        await limiter.take([replace(slow, subject=("other",))], NOON + 60 * minute)
    assert await passed(limiter, slow, NOON + 30 * 60, tries=60) == 30


@pytest.mark.parametrize("window", list(Window))
async def test_counts_survive_a_restart(window: Window) -> None:
    before, after = MemoryLimiter(), MemoryLimiter()
    wanted = bucket(10, window=window, subject='a"\\\u2028é')
    assert await passed(before, wanted, NOON, tries=8) == 8
    rows = before.snapshot(NOON + 1)
    assert [row[0] for row in rows] == ["general"]
    assert after.restore(rows, NOON + 2) == 1
    assert await passed(after, wanted, NOON + 2, tries=10) == 2


@pytest.mark.parametrize("window", list(Window))
async def test_a_restart_with_the_clock_put_right_gives_no_free_pass_and_no_endless_wait(window: Window) -> None:
    before, after = MemoryLimiter(), MemoryLimiter()
    wanted = bucket(10, window=window)
    assert await passed(before, wanted, NOON + 5 * DAY, tries=8) == 8
    after.restore(before.snapshot(NOON + 5 * DAY), NOON)
    assert await passed(after, wanted, NOON, tries=10) == 2
    assert (await after.take([wanted], NOON + 3601)).refused is None


@pytest.mark.parametrize("window", list(Window))
async def test_expired_rows_are_neither_written_nor_read(window: Window) -> None:
    limiter = MemoryLimiter()
    await limiter.take([bucket(window=window)], NOON)
    rows = limiter.snapshot(NOON)
    assert limiter.snapshot(NOON + 2 * 3600) == []
    assert MemoryLimiter().restore(rows, NOON + 2 * 3600) == 0


async def test_quotas_shorter_than_a_minute_are_not_written() -> None:
    limiter = MemoryLimiter()
    await limiter.take([bucket(name="short", period=59), bucket(name="long", period=60)], NOON)
    assert [row[0] for row in limiter.snapshot(NOON)] == ["long"]


@pytest.mark.parametrize(
    "change", [{"window": Window.SLIDING}, {"period": "day"}, {"by": (Subject.TENANT,)}, {"name": "other"}]
)
async def test_rows_of_a_quota_that_counts_in_another_way_are_not_used(change: dict[str, object]) -> None:
    before, after = MemoryLimiter(), MemoryLimiter()
    await before.take([bucket(3)], NOON)
    after.restore(before.snapshot(NOON), NOON)
    assert (await after.peek([bucket(3, **change)], NOON)).states[0].remaining == 3
    after.expire(NOON + 3 * 3600)
    assert len(after) == 0


async def test_a_changed_limit_applies_immediately_and_keeps_the_count() -> None:
    limiter = MemoryLimiter()
    assert await passed(limiter, bucket(3), NOON, tries=3) == 3
    assert await passed(limiter, bucket(5), NOON, tries=9) == 2
    (state,) = (await limiter.peek([bucket(2)], NOON)).states
    assert state.remaining == 0


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (1, "{"), (1, '"key-1"'), (1, "[1]"), (2, "[]"), (2, "{}"), (2, "nothing"), (2, None), (3, "soon"), (0, 7),
        (2, '{"by": ["fixed", "hour", ["key"]], "count": []}'),
        (2, '{"by": ["fixed", "hour", ["key"]], "count": [1772366400, 1772370000, -5]}'),
        (2, '{"by": ["fixed", "hour", ["key"]], "count": [1772366400, 1772370000, true]}'),
        (2, '{"by": ["fixed", "hour", ["key"]], "count": [1772366400, 1772370000, 1.5]}'),
        (2, '{"by": ["fixed", "decade", ["key"]], "count": [1772366400, 1772370000, 1]}'),
        (2, '{"by": ["fixed", 0, ["key"]], "count": [1772366400, 1772370000, 1]}'),
        (2, '{"by": ["fixed", "hour", ["shoe"]], "count": [1772366400, 1772370000, 1]}'),
        (2, '{"by": ["square", "hour", ["key"]], "count": [1772366400, 1772370000, 1]}'),
        (2, '{"by": ["sliding", "hour", ["key"]], "count": [1772366400000000]}'),
        (2, '{"by": ["sliding", "hour", ["key"]], "count": [1772366400000000, 1, 5, 1]}'),
        (2, '{"by": ["bucket", "hour", ["key"]], "count": [5]}'),
        (2, '{"by": ' + "[" * 100_000),
    ],
)  # fmt: skip
async def test_malformed_rows_are_passed_over(place: int, value: object) -> None:
    limiter = MemoryLimiter()
    await limiter.take([bucket()], NOON)
    (good,) = limiter.snapshot(NOON)
    bad = (*good[:place], value, *good[place + 1 :])
    assert MemoryLimiter().restore([bad, (), good], NOON) == 1


async def test_restored_counts_respect_the_limit() -> None:
    full, small = MemoryLimiter(), MemoryLimiter(max_entries=10)
    for number in range(50):
        await full.take([stranger(number, Window.FIXED)], NOON)
    small.restore(full.snapshot(NOON), NOON)
    assert len(small) == 9
