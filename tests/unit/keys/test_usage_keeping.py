"""From counts to the store and to the detector of anomalies, round by round."""

import asyncio
import json
from dataclasses import replace

import pytest

from sidecar.config.document import UsageSettings
from sidecar.core.errors import Reason
from sidecar.core.model import ApiKey
from sidecar.keys.ports import StoreUnavailable
from sidecar.runtime.maintenance import UsageKeeper
from sidecar.store.store import SqliteStore
from sidecar.usage.anomalies import AnomalyDetector
from sidecar.usage.recorder import DAY, Usage, UsageFilter, UsageRow
from tests.unit.keys.making import NOW_US, Clock, a_key, open_store
from tests.unit.keys.uses import a_head, allowed, refused

TODAY = NOW_US - NOW_US % DAY
DAY_SECONDS = 86_400


class Kept:
    """A keeper over a store, and its reports."""

    def __init__(self, store: SqliteStore, clock: Clock) -> None:
        self.store, self.clock = store, clock
        self.usage = Usage(clock=clock)
        self.lines: list[str] = []
        self.detector = AnomalyDetector(UsageSettings().unusual, clock=clock, write=self.lines.append)
        settings = UsageSettings()
        self.keeper = UsageKeeper(
            store.usage, store.anomalies, self.usage, detector=self.detector, settings=settings, clock=clock
        )

    def use(self, key: ApiKey, *, address: str = "192.0.2.1") -> None:
        self.usage.used(allowed(key, address=address), a_head(), 200, self.clock.seconds())

    def told(self) -> list[tuple[str, str | None, str]]:
        lines = [json.loads(line) for line in self.lines]
        return [(line["kind"], line["key_id"], line["detail"]) for line in lines]

    async def requests(self) -> int:
        return sum(row.count for row in await self.store.usage.counts(UsageFilter(since=0, until=2 * NOW_US)))


@pytest.fixture
def kept(store: SqliteStore, clock: Clock) -> Kept:
    return Kept(store, clock)


async def test_a_key_that_is_used_again_after_a_month_is_named(kept: Kept, key: ApiKey) -> None:
    for days in (0, 29, 31):
        kept.clock.now += days * DAY_SECONDS
        kept.use(key)
        await kept.keeper.flush()
    assert kept.told() == [("unused_key", key.id, "used 31 days after its last use")]


async def test_a_new_network_is_named_but_not_the_first_one(kept: Kept, key: ApiKey) -> None:
    for address in ("192.0.2.1", "192.0.2.200", "2001:db8::1", "2001:db8:0:9::1", ""):
        kept.use(key, address=address)
        await kept.keeper.flush()
    assert kept.told() == [("new_network", key.id, "first use from 2001:db8::/48")]


async def test_a_network_that_the_store_knows_is_not_new_to_another_process(kept: Kept, key: ApiKey) -> None:
    for address in ("192.0.2.1", "198.51.100.1"):
        kept.use(key, address=address)
        await kept.keeper.flush()
    other = Kept(kept.store, kept.clock)
    for address in ("198.51.100.1", "192.0.2.1", "203.0.113.1"):
        other.use(key, address=address)
        await other.keeper.flush()
    assert other.told() == [("new_network", key.id, "first use from 203.0.113.0/24")]


async def test_unusual_events_are_stored_and_known_after_a_restart(kept: Kept, key: ApiKey) -> None:
    kept.usage.refused(refused(key, Reason.REVOKED_KEY), 401, kept.clock.seconds())
    await kept.keeper.flush()
    after = Kept(kept.store, kept.clock)
    await after.keeper.restore()
    after.usage.refused(refused(key, Reason.REVOKED_KEY), 401, kept.clock.seconds())
    await after.keeper.flush()
    assert after.lines == []


async def test_refusals_are_named_even_while_the_store_is_unavailable(path: str, clock: Clock) -> None:
    store = await open_store(path)
    kept = Kept(store, clock)
    await store.close()
    deny = refused(None, Reason.INVALID_KEY)
    for _ in range(100):
        kept.usage.refused(deny, 401, clock.seconds())
    kept.use(a_key())
    with pytest.raises(StoreUnavailable):
        await kept.keeper.flush()
    assert [kind for kind, *_ in kept.told()] == ["refusals"]


async def test_a_flush_that_is_cancelled_at_any_step_counts_nothing_twice_or_never(kept: Kept, key: ApiKey) -> None:
    rounds = 40
    for steps in range(rounds):
        kept.use(key, address=f"10.0.{steps}.1")
        flushing = asyncio.create_task(kept.keeper.flush())
        for _ in range(steps):
            await asyncio.sleep(0)
        flushing.cancel()
        await asyncio.wait([flushing])
    await kept.keeper.flush(everything=True)
    assert await kept.requests() == rounds


async def test_flushes_at_the_same_time_write_once(kept: Kept, key: ApiKey) -> None:
    for _ in range(3):
        kept.use(key)
    await asyncio.gather(*[kept.keeper.flush(everything=True) for _ in range(5)])
    assert await kept.requests() == 3


async def test_old_hours_are_merged_into_days_and_old_days_are_deleted(kept: Kept, key: ApiKey, path: str) -> None:
    rows = [
        UsageRow(key_id=key.id, at=TODAY - days * DAY, route="GET /a", status_class=2, count=count)
        for days, count in ((100, 1), (91, 2), (89, 4), (15, 8), (13, 16))
    ]
    await kept.store.usage.add(rows)
    await kept.keeper.tidy()
    assert await kept.requests() == 4 + 8 + 16
    assert await kept.store.usage.roll_up(TODAY - 14 * DAY, most=100) == 0
    assert await kept.store.usage.roll_up(TODAY, most=100) == 2  # The count of the key, and the sum over all keys.


async def test_new_limits_apply_from_then_on(kept: Kept, key: ApiKey) -> None:
    settings = UsageSettings(keep_seconds=20 * DAY_SECONDS, unusual=replace(UsageSettings().unusual, new_network=False))
    kept.keeper.reconfigure(settings)
    for address in ("192.0.2.1", "198.51.100.1"):
        kept.use(key, address=address)
        await kept.keeper.flush()
    await kept.store.usage.add([UsageRow(key_id=key.id, at=TODAY - 30 * DAY, route="GET /a", status_class=2, count=1)])
    await kept.keeper.tidy()
    assert kept.told() == []
    assert await kept.requests() == 2
