import asyncio
from collections.abc import Mapping

import pytest

from sidecar.keys.sqlite import SqliteStore
from sidecar.keys.store import StoreUnavailable
from sidecar.keys.usage import LastUsed
from tests.keys.making import NOW_US, Clock, a_key, open_store

SECOND = 1_000_000


@pytest.fixture
def last_used(clock: Clock) -> LastUsed:
    return LastUsed(clock=clock)


async def stored(store: SqliteStore, key_id: str) -> int | None:
    key = await store.get(key_id)
    assert key is not None
    return key.last_used_at


async def test_the_latest_use_is_written(store: SqliteStore, last_used: LastUsed) -> None:
    key = a_key()
    await store.add(key, actor="ann")
    for at in (NOW_US + 1, NOW_US + 3, NOW_US + 2):
        last_used.used(key.id, at)
    await last_used.flush(store)
    assert await stored(store, key.id) == NOW_US + 3


async def test_a_key_is_written_at_most_once_in_a_sample_and_its_last_use_in_the_end(
    store: SqliteStore, last_used: LastUsed, clock: Clock, timings: list[str]
) -> None:
    key = a_key()
    await store.add(key, actor="ann")
    for second in range(59):
        clock.seconds = NOW_US / SECOND + second
        last_used.used(key.id, NOW_US + second * SECOND)
        await last_used.flush(store)
    assert timings.count("touch") == 1
    assert await stored(store, key.id) == NOW_US
    clock.seconds += 2
    await last_used.flush(store)
    assert await stored(store, key.id) == NOW_US + 58 * SECOND
    await last_used.flush(store)
    assert timings.count("touch") == 2


async def test_at_the_end_everything_is_written(store: SqliteStore, last_used: LastUsed) -> None:
    key = a_key()
    await store.add(key, actor="ann")
    last_used.used(key.id, NOW_US)
    await last_used.flush(store)
    last_used.used(key.id, NOW_US + SECOND)
    await last_used.flush(store, everything=True)
    assert await stored(store, key.id) == NOW_US + SECOND


async def test_a_clock_that_was_set_back_does_not_stop_the_writing(
    store: SqliteStore, last_used: LastUsed, clock: Clock
) -> None:
    key = a_key()
    await store.add(key, actor="ann")
    last_used.used(key.id, NOW_US)
    await last_used.flush(store)
    clock.seconds -= 86_400
    last_used.used(key.id, NOW_US + 1)
    await last_used.flush(store)
    assert await stored(store, key.id) == NOW_US + 1


async def test_nothing_is_lost_when_the_store_is_unavailable(path: str, last_used: LastUsed) -> None:
    store = await open_store(path)
    keys = [a_key() for _ in range(3)]
    for key in keys:
        await store.add(key, actor="ann")
        last_used.used(key.id, NOW_US + 7)
    await store.close()
    with pytest.raises(StoreUnavailable):
        await last_used.flush(store)
    again = await open_store(path)
    await last_used.flush(again)
    assert [await stored(again, key.id) for key in keys] == [NOW_US + 7] * 3
    await again.close()


async def test_a_use_during_the_writing_is_written_later(path: str, clock: Clock) -> None:
    store = await open_store(path)
    key = a_key()
    await store.add(key, actor="ann")
    last_used = LastUsed(clock=clock, sample_seconds=0)
    last_used.used(key.id, NOW_US)
    flushing = asyncio.create_task(last_used.flush(store))
    await asyncio.sleep(0)
    last_used.used(key.id, NOW_US + 1)
    await flushing
    await last_used.flush(store)
    assert await stored(store, key.id) == NOW_US + 1
    await store.close()


class Registry:
    """Takes last-used times, or not."""

    def __init__(self) -> None:
        self.touched: dict[str, int] = {}
        self.largest = 0
        self.down = False

    async def touch(self, last_used_at: Mapping[str, int]) -> None:
        if self.down:
            raise StoreUnavailable("down")
        self.largest = max(self.largest, len(last_used_at))
        self.touched.update(last_used_at)


async def test_memory_is_bounded_and_the_newest_are_kept(clock: Clock) -> None:
    last_used, registry = LastUsed(clock=clock, size=1500), Registry()
    for number in range(2000):
        last_used.used(str(number), NOW_US)
    await last_used.flush(registry)  # type: ignore[arg-type]  # only touch is called
    assert sorted(map(int, registry.touched)) == list(range(500, 2000))
    assert registry.largest == 1000
