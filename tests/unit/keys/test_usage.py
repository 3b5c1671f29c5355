"""Counting on the request's path, and writing to the store."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from sidecar.core.errors import Reason
from sidecar.core.model import ApiKey
from sidecar.keys.ports import StoreUnavailable
from sidecar.store.store import SqliteStore
from sidecar.usage.recorder import HOUR, Earlier, LastUse, Usage, UsageFilter, UsageRow
from sidecar.usage.writer import KeyUsed, RefusalCount, UsageWriter
from tests.unit.keys.making import ANN, NOW, NOW_US, Clock, a_key, open_store
from tests.unit.keys.uses import HOUR_SECONDS, a_head, allowed, refused

SECOND = 1_000_000
FIRST_HOUR = NOW_US - NOW_US % HOUR


class Counting:
    """Usage and its writer over one store."""

    def __init__(self, store: SqliteStore, clock: Clock) -> None:
        self.store, self.clock = store, clock
        self.usage = Usage(clock=clock)
        self.writer = UsageWriter(clock=clock)
        self.touched: list[KeyUsed] = []

    def use(self, key: ApiKey, *, status: int = 200, address: str = "192.0.2.1", agent: bytes | None = b"curl") -> None:
        self.usage.used(allowed(key, address=address), a_head(agent), status, self.clock.seconds())

    async def flush(self, *, everything: bool = False) -> Sequence[RefusalCount]:
        seen = await self.writer.sum_up(self.usage.taken())
        await self.writer.write(self.store.usage, self.touched.append, everything=everything)
        return seen

    async def rows(self, key: ApiKey) -> list[tuple[int, str, int, int]]:
        rows = await self.store.usage.counts(UsageFilter(key_id=key.id, since=0, until=2 * NOW_US))
        return [(row.at, row.route, row.status_class, row.count) for row in rows]

    async def key(self, key: ApiKey) -> ApiKey:
        found = await self.store.keys.get(key.id)
        assert found is not None
        return found


@pytest.fixture
def counting(store: SqliteStore, clock: Clock) -> Counting:
    return Counting(store, clock)


async def test_requests_are_counted_by_hour_route_and_class(counting: Counting, key: ApiKey) -> None:
    for status in (200, 204, 304, 404, 499, 502, 101):
        counting.use(key, status=status)
    counting.usage.used(allowed(key, route="POST /b"), a_head(), 201, counting.clock.seconds())
    counting.clock.now += HOUR_SECONDS
    counting.use(key)
    await counting.flush()
    assert await counting.rows(key) == [
        (FIRST_HOUR, "GET /a", 1, 1),
        (FIRST_HOUR, "GET /a", 2, 2),
        (FIRST_HOUR, "GET /a", 3, 1),
        (FIRST_HOUR, "GET /a", 4, 2),
        (FIRST_HOUR, "GET /a", 5, 1),
        (FIRST_HOUR, "POST /b", 2, 1),
        (FIRST_HOUR + HOUR, "GET /a", 2, 1),
    ]


async def test_counts_of_several_rounds_add_up_and_none_is_written_twice(counting: Counting, key: ApiKey) -> None:
    for _ in range(3):
        counting.use(key)
        await counting.flush()
    await counting.flush(everything=True)
    assert await counting.rows(key) == [(FIRST_HOUR, "GET /a", 2, 3)]


async def test_refusals_of_a_recognised_key_count_but_do_not_count_as_use(counting: Counting, key: ApiKey) -> None:
    for reason, status in ((Reason.REVOKED_KEY, 401), (Reason.NO_ROUTE, 403), (Reason.QUOTA_EXCEEDED, 429)):
        route = {"route": None} if reason is Reason.NO_ROUTE else {}
        counting.usage.refused(refused(key, reason, **route), status, counting.clock.seconds())
    counting.usage.refused(refused(None, Reason.INVALID_KEY), 401, counting.clock.seconds())
    seen = await counting.flush(everything=True)
    assert await counting.rows(key) == [(FIRST_HOUR, "(none)", 4, 1), (FIRST_HOUR, "GET /a", 4, 2)]
    assert (await counting.key(key)).last_used_at is None
    assert {(one.key_id, one.reason, one.network, one.count) for one in seen} == {
        (key.id, Reason.REVOKED_KEY, "192.0.2.0/24", 1),
        (key.id, Reason.NO_ROUTE, "192.0.2.0/24", 1),
        (key.id, Reason.QUOTA_EXCEEDED, "192.0.2.0/24", 1),
        ("", Reason.INVALID_KEY, "192.0.2.0/24", 1),
    }


async def test_requests_without_a_key_of_ours_are_not_counted(counting: Counting, store: SqliteStore) -> None:
    counting.usage.used(allowed(None), a_head(), 200, counting.clock.seconds())
    await counting.flush(everything=True)
    assert await store.usage.counts(UsageFilter(since=0, until=2 * NOW_US)) == []


async def test_the_last_use_has_time_address_and_agent(counting: Counting, key: ApiKey) -> None:
    counting.use(key, address="192.0.2.1", agent=b"old/1")
    counting.clock.now += 1.5
    counting.use(key, address="2001:db8::1", agent="new/2 \r\n\x1b[31m\xff".encode("latin-1") + b"-x" * 250)
    await counting.flush()
    found = await counting.key(key)
    assert (found.last_used_at, found.last_used_address) == (NOW_US + 1_500_000, "2001:db8::1")
    assert found.last_used_agent == "new/2 ???[31m?" + "-x" * 93
    assert len(found.last_used_agent) == 200


async def test_a_client_without_address_and_agent_leaves_none(counting: Counting, key: ApiKey) -> None:
    counting.use(key, address="", agent=None)
    await counting.flush()
    found = await counting.key(key)
    assert (found.last_used_at, found.last_used_address, found.last_used_agent) == (NOW_US, None, None)


async def test_a_last_use_is_written_at_most_once_in_a_sample_and_in_the_end(
    counting: Counting, key: ApiKey, timings: list[str]
) -> None:
    for _ in range(59):
        counting.use(key)
        await counting.flush()
        counting.clock.now += 1
    assert timings.count("touch") == 1
    assert (await counting.key(key)).last_used_at == NOW_US
    await counting.flush(everything=True)
    assert (await counting.key(key)).last_used_at == NOW_US + 58 * SECOND
    await counting.flush(everything=True)
    assert timings.count("touch") == 2


async def test_a_use_from_another_network_does_not_wait_for_the_sample(counting: Counting, key: ApiKey) -> None:
    counting.use(key, address="192.0.2.1")
    await counting.flush()
    counting.use(key, address="192.0.2.99")
    await counting.flush()
    assert (await counting.key(key)).last_used_address == "192.0.2.1"
    counting.clock.now += 1
    counting.use(key, address="198.51.100.1")
    await counting.flush()
    assert (await counting.key(key)).last_used_address == "198.51.100.1"
    assert [touched.earlier.new_networks for touched in counting.touched] == [(), ("198.51.100.0/24",)]


async def test_a_clock_that_was_set_back_does_not_stop_the_writing(counting: Counting, key: ApiKey) -> None:
    counting.use(key)
    await counting.flush()
    counting.clock.now -= 86_400
    counting.use(key)
    await counting.flush()
    assert len(counting.touched) == 2
    assert sum(count for *_, count in await counting.rows(key)) == 2


async def test_nothing_is_lost_while_the_store_is_unavailable(path: str, clock: Clock) -> None:
    store = await open_store(path)
    keys = [a_key() for _ in range(3)]
    await store.keys.add(keys, actor=ANN)
    counting = Counting(store, clock)
    await store.close()
    for key in keys:
        counting.use(key)
        with pytest.raises(StoreUnavailable):
            await counting.flush()
    counting.store = await open_store(path)
    await counting.flush()
    for key in keys:
        assert await counting.rows(key) == [(FIRST_HOUR, "GET /a", 2, 1)]
        assert (await counting.key(key)).last_used_at == NOW_US
    await counting.store.close()


async def test_counts_made_during_a_write_are_written_later(counting: Counting, key: ApiKey) -> None:
    counting.use(key)
    flushing = asyncio.create_task(counting.flush())
    await asyncio.sleep(0)
    counting.use(key)
    await flushing
    await counting.flush()
    assert await counting.rows(key) == [(FIRST_HOUR, "GET /a", 2, 2)]


class Counted:
    """Takes what is written, or not."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.touched: dict[str, LastUse] = {}
        self.largest = 0

    async def add(self, rows: Sequence[UsageRow]) -> None:
        self.largest = max(self.largest, len(rows))
        for row in rows:
            self.counts[row.key_id] = self.counts.get(row.key_id, 0) + row.count

    async def touch(self, last_uses: Mapping[str, LastUse]) -> Mapping[str, Earlier]:
        self.largest = max(self.largest, len(last_uses))
        self.touched.update(last_uses)
        return {}


async def test_memory_is_bounded_and_its_cost_is_reported(clock: Clock) -> None:
    usage, writer, counted = Usage(clock=clock, size=2000), UsageWriter(clock=clock, size=1500), Counted()
    keys = [a_key() for _ in range(2100)]
    for key in [*keys, keys[0]]:
        usage.used(allowed(key), a_head(), 200, NOW)
    assert usage.dropped == 100
    await writer.sum_up(usage.taken())
    assert writer.dropped == 500
    await writer.write(counted, lambda touched: None)
    assert counted.counts[keys[0].id] == 2
    assert sum(counted.counts.values()) == 1501
    assert set(counted.touched) == {key.id for key in keys[500:2000]}
    assert counted.largest == 1000
