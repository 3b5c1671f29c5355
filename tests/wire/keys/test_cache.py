import asyncio
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import pytest

from sidecar.core.model import ApiKey, KeyStatus
from sidecar.keys.cache import MISS, CacheEntry, KeyCache, Miss
from sidecar.keys.ports import StoreUnavailable
from sidecar.store.store import SqliteStore
from tests.unit.keys.making import ANN, NOW_US, a_key, digest_of, set_status, used_at


class Reader:
    """A store in memory whose reads wait for `gate`, counting them; it keeps the reader's half of the contract."""

    def __init__(self) -> None:
        self.keys: dict[bytes, ApiKey] = {}
        self.changes = 0
        self.reads = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.broken = False
        self.must_be_asked = False
        """Whether a changed generation is known only to those who wait for it."""
        self.asked = 0

    def put(self, text: str, key: ApiKey) -> ApiKey:
        self.keys[digest_of(text)] = key
        self.changes += 1
        return key

    def generation(self) -> int | None:
        if self.broken:
            raise StoreUnavailable("broken")
        return self.changes if self.asked == self.changes or not self.must_be_asked else None

    async def read_generation(self) -> int:
        self.asked = self.changes
        await asyncio.sleep(0)
        return self.asked

    async def find(self, digests: Mapping[bytes, str]) -> ApiKey | None:
        self.reads += 1
        found = next((self.keys[digest] for digest in digests if digest in self.keys), None)
        await self.gate.wait()
        if self.broken:
            raise StoreUnavailable("broken")
        return found


@pytest.fixture
def reader() -> Reader:
    return Reader()


async def find(cache: KeyCache, text: str) -> ApiKey | None:
    known = await cache.find(digest_of(text), lambda: {digest_of(text): "sha256"})
    return known and known.key


def peek(cache: KeyCache, text: str) -> ApiKey | Literal[Miss.MISS] | None:
    known = cache.peek(digest_of(text))
    return known.key if isinstance(known, CacheEntry) else known


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_key_is_read_once_and_then_remembered(reader: Reader) -> None:
    cache = KeyCache(reader, size=10)
    key = reader.put("s1", a_key())
    assert peek(cache, "s1") is MISS
    assert [await find(cache, "s1") for _ in range(3)] == [key] * 3
    assert peek(cache, "s1") is key
    assert reader.reads == 1
    assert (cache.misses, cache.hits, cache.negative_hits) == (1, 3, 0)


async def test_an_unknown_secret_is_read_once_and_counts_as_soon_as_it_is_issued(reader: Reader) -> None:
    cache = KeyCache(reader, size=10)
    assert [await find(cache, "s1") for _ in range(3)] == [None] * 3
    assert peek(cache, "s1") is None
    assert (reader.reads, cache.misses, cache.negative_hits) == (1, 1, 3)
    key = reader.put("s1", a_key())
    await settle()
    assert peek(cache, "s1") is MISS
    assert await find(cache, "s1") is key
    assert len(cache) == 1


async def test_after_a_change_keys_are_read_again_one_by_one(reader: Reader) -> None:
    cache = KeyCache(reader, size=10)
    for text in ("s1", "s2"):
        reader.put(text, a_key())
    await find(cache, "s1")
    await find(cache, "s2")
    reader.changes += 1
    reads = reader.reads
    await find(cache, "s1")
    assert reader.reads == reads + 1
    assert len(cache) == 2


async def test_what_was_read_while_a_revocation_came_is_not_remembered(reader: Reader) -> None:
    cache = KeyCache(reader, size=10)
    key = reader.put("s1", a_key())
    reader.gate.clear()
    reading = asyncio.create_task(find(cache, "s1"))
    await settle()
    revoked = reader.put("s1", replace(key, status=KeyStatus.REVOKED))
    reader.gate.set()
    assert await reading == key
    await settle()
    assert peek(cache, "s1") is MISS
    assert await find(cache, "s1") == revoked


async def test_a_read_that_began_before_a_revocation_is_not_joined_after_it(reader: Reader) -> None:
    cache = KeyCache(reader, size=10)
    key = reader.put("s1", a_key())
    reader.gate.clear()
    reading = asyncio.create_task(find(cache, "s1"))
    await settle()
    revoked = reader.put("s1", replace(key, status=KeyStatus.REVOKED))
    # One that begins only now must not be told what was read before the revocation.
    later = asyncio.create_task(find(cache, "s1"))
    await settle()
    reader.gate.set()
    assert await reading == key
    assert await later == revoked
    assert await find(cache, "s1") == revoked


async def test_concurrent_misses_share_one_read(reader: Reader) -> None:
    cache = KeyCache(reader, size=10)
    key = reader.put("s1", a_key())
    reader.gate.clear()
    readings = [asyncio.create_task(find(cache, "s1")) for _ in range(20)]
    await settle()
    reader.gate.set()
    assert await asyncio.gather(*readings) == [key] * 20
    assert reader.reads == 1


async def test_a_cancelled_reader_takes_nobody_with_it(reader: Reader) -> None:
    cache = KeyCache(reader, size=10)
    key = reader.put("s1", a_key())
    reader.gate.clear()
    first, second, third = (asyncio.create_task(find(cache, "s1")) for _ in range(3))
    await settle()
    first.cancel()
    second.cancel()
    await settle()
    assert (first.cancelled(), second.cancelled()) == (True, True)
    reader.gate.set()
    assert await third == key
    assert reader.reads == 2


async def test_a_failed_read_fails_all_that_wait_for_it_and_is_not_remembered(reader: Reader) -> None:
    cache = KeyCache(reader, size=10)
    key = reader.put("s1", a_key())
    reader.gate.clear()
    readings = [asyncio.create_task(find(cache, "s1")) for _ in range(3)]
    await settle()
    reader.broken = True
    reader.gate.set()
    outcomes = await asyncio.gather(*readings, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 3
    assert reader.reads == 1
    reader.broken = False
    assert await find(cache, "s1") == key


async def test_without_a_generation_nothing_counts(reader: Reader) -> None:
    cache = KeyCache(reader, size=10)
    reader.put("s1", a_key())
    await find(cache, "s1")
    reader.broken = True
    with pytest.raises(StoreUnavailable):
        peek(cache, "s1")
    with pytest.raises(StoreUnavailable):
        await find(cache, "s1")


async def test_where_only_the_store_can_tell_what_changed_it_is_asked_before_a_key_counts(reader: Reader) -> None:
    cache = KeyCache(reader, size=10)
    key = reader.put("s1", a_key())
    await find(cache, "s1")
    reader.must_be_asked = True
    await settle()
    assert peek(cache, "s1") is MISS
    assert await find(cache, "s1") is key
    revoked = reader.put("s1", replace(key, status=KeyStatus.REVOKED))
    await settle()
    assert peek(cache, "s1") is MISS
    assert await find(cache, "s1") == revoked
    assert peek(cache, "s1") == revoked
    assert reader.reads == 2


async def test_memory_is_bounded_and_the_least_used_key_goes_first(reader: Reader) -> None:
    cache = KeyCache(reader, size=3, unknown_size=2)
    for text in "abcd":
        reader.put(text, a_key())
    for text in "abc":
        await find(cache, text)
    assert peek(cache, "a") is not MISS
    await find(cache, "d")
    assert [peek(cache, text) is MISS for text in "abcd"] == [False, True, False, False]
    for number in range(1000):
        await find(cache, f"stranger {number}")
    assert len(cache) == 5
    assert [peek(cache, text) is MISS for text in "abcd"] == [False, True, False, False]


_REVOKE = """
import asyncio, sys
from sidecar.core.model import KeyStatus
from tests.unit.keys.making import open_store, set_status

async def main():
    store = await open_store(sys.argv[1], create=False)
    await set_status(store.keys, sys.argv[2], KeyStatus.REVOKED, at=1)
    await store.close()

asyncio.run(main())
"""


async def test_a_revocation_by_another_process_counts_on_the_next_find(store: SqliteStore, path: str) -> None:
    cache = KeyCache(store.keys, size=10)
    key = a_key("s1")
    await store.keys.add([key], actor=ANN)
    assert await find(cache, "s1") == key
    assert peek(cache, "s1") == key
    subprocess.run([sys.executable, "-c", _REVOKE, path, key.id], check=True)
    await settle()
    assert peek(cache, "s1") is MISS
    found = await find(cache, "s1")
    assert found is not None
    assert found.status is KeyStatus.REVOKED


async def test_a_revocation_by_this_process_counts_on_the_next_find(store: SqliteStore) -> None:
    cache = KeyCache(store.keys, size=10)
    key = a_key("s1")
    await store.keys.add([key], actor=ANN)
    await find(cache, "s1")
    await set_status(store.keys, key.id, KeyStatus.DISABLED, at=NOW_US)
    found = await find(cache, "s1")
    assert found is not None
    assert found.status is KeyStatus.DISABLED


async def test_use_of_keys_empties_no_cache(store: SqliteStore) -> None:
    cache = KeyCache(store.keys, size=10)
    key = a_key("s1")
    await store.keys.add([key], actor=ANN)
    await find(cache, "s1")
    await store.usage.touch({key.id: used_at(NOW_US)})
    await store.quotas.save([("general", "[]", "{}", NOW_US * 2)])
    assert await find(cache, "s1") == key
    assert peek(cache, "s1") == key
    assert cache.misses == 1
