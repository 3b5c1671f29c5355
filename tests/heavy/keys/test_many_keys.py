"""A million keys, and what a day of four thousand keys' use costs to add up."""

import secrets
import time

import pytest

from sidecar.core.apikey import KeyFormat
from sidecar.store.store import SqliteStore
from sidecar.usage.recorder import DAY, HOUR, UsageFilter
from tests.unit.keys.test_usage_store import TODAY, row


@pytest.mark.timeout(600)
def test_no_two_of_a_million_keys_are_alike() -> None:
    made = KeyFormat(length=32)
    keys = {made.make("hv_live_", secrets.randbelow) for _ in range(1_000_000)}
    assert len(keys) == 1_000_000


@pytest.mark.timeout(600)
async def test_the_sum_over_all_keys_costs_as_little_as_its_rows(store: SqliteStore) -> None:
    hours, keys = range(24), [f"key_{number}" for number in range(4_000)]
    for hour in hours:
        rows = [row(TODAY + hour * HOUR, key_id=key_id, route=f"GET /{at}") for key_id in keys for at in range(2)]
        await store.usage.add(rows)
    summed = UsageFilter(since=TODAY, until=TODAY + DAY)
    assert [one.count for one in await store.usage.counts(summed)] == [len(keys)] * 48
    # The sums are 48 rows; of the 192,000 that they are of, it takes thousands of times as long.
    took = min([await seconds(store, summed) for _ in range(5)])
    assert took * 20 < await seconds(store, UsageFilter(since=TODAY, until=TODAY + DAY, key_ids=keys))


async def seconds(store: SqliteStore, wanted: UsageFilter) -> float:
    """Of this process and its threads, so that nobody else on the machine counts."""
    started = time.process_time()
    await store.usage.counts(wanted)
    return time.process_time() - started
