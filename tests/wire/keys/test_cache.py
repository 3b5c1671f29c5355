import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Literal

import pytest

from sidecar.core.model import ApiKey, KeyStatus
from sidecar.keys.cache import MISS, MOST_CHANGES, CacheEntry, KeyCache, KeyChanges, Miss
from sidecar.keys.lifecycle import NewHash
from sidecar.keys.ports import StoreUnavailable
from sidecar.store.sqlite.schema import KEPT_CHANGES
from sidecar.store.store import SqliteStore
from tests.unit.keys.making import ANN, NOW_US, a_key, digest_of, set_status, used_at


class Reader:
    """A store in memory whose reads wait for `gate` and are counted; it fulfils the reader's half of the contract."""

    def __init__(self) -> None:
        self.keys: dict[bytes, ApiKey] = {}
        self.changes = 0
        self.told = KeyChanges()
        self.reads = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.broken = False
        self.must_be_asked = False
        """Whether a changed generation is known only after waiting."""
        self.asked = 0

    def put(self, text: str, key: ApiKey, *, tells: bool = True) -> ApiKey:
        """tells: whether the changed key can be identified."""
        before = self.keys.get(digest_of(text))
        self.keys[digest_of(text)] = key
        self.changes += 1
        self.told.add(self.changes, frozenset() if before is None else frozenset({before.id}) if tells else None)
        return key

    def generation(self) -> int | None:
        if self.broken:
            raise StoreUnavailable("broken")
        return self.changes if self.asked == self.changes or not self.must_be_asked else None

    async def read_generation(self) -> int:
        self.asked = self.changes
        await asyncio.sleep(0)
        return self.asked

    def changes_since(self, generation: int) -> frozenset[str] | None:
        return self.told.since(generation)

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


async def test_an_unknown_secret_is_read_once_and_works_once_it_is_issued(reader: Reader) -> None:
    cache = KeyCache(reader, size=10)
    assert [await find(cache, "s1") for _ in range(3)] == [None] * 3
    assert peek(cache, "s1") is None
    assert (reader.reads, cache.misses, cache.negative_hits) == (1, 1, 3)
    key = reader.put("s1", a_key())
    await settle()
    assert peek(cache, "s1") is MISS
    assert await find(cache, "s1") is key
    assert len(cache) == 1


async def test_after_a_change_only_the_key_that_was_changed_is_read_again(reader: Reader) -> None:
    cache = KeyCache(reader, size=10)
    keys = {text: reader.put(text, a_key()) for text in ("s1", "s2", "s3")}
    for text in keys:
        await find(cache, text)
    revoked = reader.put("s2", replace(keys["s2"], status=KeyStatus.REVOKED))
    await settle()
    assert [peek(cache, text) for text in keys] == [keys["s1"], MISS, keys["s3"]]
    assert cache.remembers(digest_of("s2"))
    assert [await find(cache, text) for text in keys] == [keys["s1"], revoked, keys["s3"]]
    assert reader.reads == 4
    assert len(cache) == 3


async def test_after_an_unknown_change_keys_are_reread_one_by_one(reader: Reader) -> None:
    cache = KeyCache(reader, size=10)
    keys = {text: reader.put(text, a_key()) for text in ("s1", "s2")}
    for text in keys:
        await find(cache, text)
    reader.put("s2", keys["s2"], tells=False)
    await settle()
    assert [peek(cache, text) for text in keys] == [MISS, MISS]
    await find(cache, "s1")
    assert reader.reads == 3
    assert [cache.remembers(digest_of(text)) for text in keys] == [True, True]
    assert len(cache) == 2


async def test_an_added_key_does_not_affect_cached_keys(reader: Reader) -> None:
    cache = KeyCache(reader, size=10)
    key = reader.put("s1", a_key())
    assert [await find(cache, text) for text in ("s1", "s2")] == [key, None]
    added = reader.put("s2", a_key())
    await settle()
    assert [peek(cache, text) for text in ("s1", "s2")] == [key, MISS]
    assert await find(cache, "s2") is added


async def test_a_change_is_seen_under_every_digest_that_led_to_its_key(reader: Reader) -> None:
    cache = KeyCache(reader, size=10)
    key = reader.put("s1", a_key())
    reader.keys[digest_of("s2")] = key
    for text in ("s1", "s2"):
        await find(cache, text)
    reader.put("s1", replace(key, status=KeyStatus.REVOKED))
    await settle()
    assert [peek(cache, text) for text in ("s1", "s2")] == [MISS, MISS]


async def test_a_key_is_kept_when_only_another_one_was_changed_while_it_was_read(reader: Reader) -> None:
    cache = KeyCache(reader, size=10)
    key, other = reader.put("s1", a_key()), reader.put("s2", a_key())
    reader.gate.clear()
    reading = asyncio.create_task(find(cache, "s1"))
    await settle()
    reader.put("s2", replace(other, status=KeyStatus.REVOKED))
    assert peek(cache, "s1") is MISS
    reader.gate.set()
    assert await reading is key
    assert peek(cache, "s1") is key


def test_changes_are_known_for_each_remembered_generation() -> None:
    changes = KeyChanges()
    changes.add(7, None)
    changes.add(5, frozenset("a"))
    changes.add(9, frozenset())
    changes.add(2, frozenset("bc"))
    assert [changes.since(generation) for generation in (2, 9, 5, 7)] == [
        frozenset(),
        frozenset("bc"),
        frozenset("bc"),
        frozenset("abc"),
    ]
    assert changes.since(0) is None
    changes.add(4, frozenset(map(str, range(MOST_CHANGES))))
    assert [changes.since(generation) for generation in (7, 9)] == [None, None]
    told = changes.since(2)
    assert told is not None and len(told) == MOST_CHANGES
    changes.add(1, frozenset(map(str, range(MOST_CHANGES + 1))))
    assert changes.since(4) is None
    for generation in range(10, 10 + 2 * MOST_CHANGES):
        changes.add(generation, frozenset())
    assert changes.since(10) is None
    assert changes.since(10 + MOST_CHANGES) == frozenset()


async def test_a_key_read_during_a_revocation_is_not_cached(reader: Reader) -> None:
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


@pytest.mark.parametrize("tells", [True, False])
async def test_a_read_overtaken_by_a_revocation_does_not_count(reader: Reader, tells: bool) -> None:
    cache = KeyCache(reader, size=10)
    key = reader.put("s1", a_key())
    reader.gate.clear()
    readings = [asyncio.create_task(find(cache, text)) for text in ("s1", "s2")]
    await settle()
    revoked = reader.put("s1", replace(key, status=KeyStatus.REVOKED), tells=tells)
    added = reader.put("s2", a_key())
    assert peek(cache, "s3") is MISS
    reader.gate.set()
    assert await asyncio.gather(*readings) == [key, None]
    assert [peek(cache, text) for text in ("s1", "s2")] == [MISS, MISS]
    assert [await find(cache, text) for text in ("s1", "s2")] == [revoked, added]


async def test_a_read_that_began_before_a_revocation_is_not_joined_after_it(reader: Reader) -> None:
    cache = KeyCache(reader, size=10)
    key = reader.put("s1", a_key())
    reader.gate.clear()
    reading = asyncio.create_task(find(cache, "s1"))
    await settle()
    revoked = reader.put("s1", replace(key, status=KeyStatus.REVOKED))
    # One that begins now must not get what was read before the revocation.
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


async def test_a_cancelled_reader_does_not_fail_other_readers(reader: Reader) -> None:
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


async def test_without_a_generation_no_cached_key_is_valid(reader: Reader) -> None:
    cache = KeyCache(reader, size=10)
    reader.put("s1", a_key())
    await find(cache, "s1")
    reader.broken = True
    with pytest.raises(StoreUnavailable):
        peek(cache, "s1")
    with pytest.raises(StoreUnavailable):
        await find(cache, "s1")


async def test_if_only_the_store_knows_what_changed_it_is_queried_before_a_key_is_used(reader: Reader) -> None:
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


async def test_memory_is_bounded_and_the_least_used_key_is_evicted_first(reader: Reader) -> None:
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


async def test_a_revocation_by_another_process_takes_effect_on_the_next_find(store: SqliteStore, path: str) -> None:
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


async def test_a_revocation_by_this_process_takes_effect_on_the_next_find(store: SqliteStore) -> None:
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


async def cached(store: SqliteStore, count: int) -> tuple[KeyCache, list[ApiKey]]:
    """A cache with this many keys, the secret of each being its id."""
    keys = [a_key(f"secret of {number}") for number in range(count)]
    await store.keys.add(keys, actor=ANN)
    cache = KeyCache(store.keys, size=2 * count)
    for number, key in enumerate(keys):
        assert await find(cache, f"secret of {number}") == key
    return cache, keys


async def looked_up(cache: KeyCache, count: int) -> int:
    """How many keys are looked up in the store when all of them are used."""
    await settle()
    before = cache.misses
    for number in range(count):
        assert await find(cache, f"secret of {number}") is not None
    return cache.misses - before


async def test_one_change_among_many_keys_costs_one_lookup(store: SqliteStore, path: str) -> None:
    cache, keys = await cached(store, 200)
    assert await looked_up(cache, 200) == 0
    subprocess.run([sys.executable, "-c", _REVOKE, path, keys[100].id], check=True)
    assert await looked_up(cache, 200) == 1
    await store.keys.add([a_key() for _ in range(10)], actor=ANN)
    assert await looked_up(cache, 200) == 0


async def test_a_rehashed_key_is_looked_up_once_and_keeps_working(store: SqliteStore) -> None:
    cache, [key, *_] = await cached(store, 3)
    new = NewHash(key_id=key.id, old=key.digest, old_algorithm="sha256", digest=digest_of("new"), algorithm="sha256")
    await store.keys.rehash([new], NOW_US, ANN)
    candidates = {digest_of("new"): "sha256", key.digest: "sha256"}
    await settle()
    for _ in range(3):
        known = await cache.find(key.digest, lambda: candidates)
        assert known is not None and known.key == replace(key, digest=digest_of("new"))
    assert cache.misses == 4
    assert await cache.find(digest_of("secret of 1"), dict) is not None


@pytest.mark.parametrize(
    "happened",
    [
        "DELETE FROM key_change",
        "UPDATE key_change SET token = token + 1",
        "UPDATE generation SET value = random()",
    ],
    ids=["forgotten", "of another store", "too many"],
)
async def test_if_changes_are_unknown_every_key_is_looked_up(store: SqliteStore, path: str, happened: str) -> None:
    cache, keys = await cached(store, 3)
    with closing(sqlite3.connect(path)) as other:
        for _ in range(MOST_CHANGES if "random" in happened else 1):
            other.execute("UPDATE api_key SET name = 'new' WHERE id = ?", (keys[0].id,))
        other.execute(happened)
        other.execute("UPDATE api_key SET name = 'newer' WHERE id = ?", (keys[1].id,))
        other.commit()
    assert await looked_up(cache, 3) == 3
    await set_status(store.keys, keys[2].id, KeyStatus.DISABLED)
    assert await looked_up(cache, 3) in (1, 3)
    await set_status(store.keys, keys[2].id, KeyStatus.ACTIVE)
    assert await looked_up(cache, 3) == 1


async def test_a_removed_key_is_unknown_at_once(store: SqliteStore, path: str) -> None:
    cache, keys = await cached(store, 2)
    with closing(sqlite3.connect(path)) as other:
        other.execute("DELETE FROM api_key WHERE id = ?", (keys[0].id,))
        other.commit()
    assert [await find(cache, f"secret of {number}") for number in range(2)] == [None, keys[1]]
    assert cache.misses == 3


async def test_only_the_latest_changes_are_kept(store: SqliteStore, path: str) -> None:
    await cached(store, 10)
    with closing(sqlite3.connect(path)) as other:
        for _ in range(KEPT_CHANGES // 10 + 100):
            other.execute("UPDATE api_key SET name = name || 'x'")
        other.commit()
        assert other.execute("SELECT count(*) FROM key_change").fetchone() == (KEPT_CHANGES,)


_WRITER = """
import asyncio, sys
from dataclasses import replace
from tests.unit.keys.making import ANN, a_key, open_store

async def main():
    store = await open_store(sys.argv[1], create=False)
    for number in range(int(sys.argv[2])):
        for key_id in sys.argv[3:]:
            await store.keys.change(
                key_id, lambda key: replace(key, name=str(number)), action="change", at=1, actor=ANN
            )
            print(key_id, number, flush=True)
        await store.keys.add([a_key(f"{sys.argv[3]} {number}", id=f"{sys.argv[3]}_{number}")], actor=ANN)
    await store.close()

asyncio.run(main())
"""


async def test_no_acknowledged_change_of_several_processes_is_missed(store: SqliteStore, path: str) -> None:
    cache, keys = await cached(store, 6)
    texts = {key.id: f"secret of {number}" for number, key in enumerate(keys)}

    async def follow(mine: Sequence[ApiKey]) -> None:
        command = [sys.executable, "-c", _WRITER, path, "30", *(key.id for key in mine)]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        async for line in process.stdout:
            key_id, number = line.decode().split()
            # As in the gate: everything read from the pipe was acknowledged before this turn of the loop.
            known = peek(cache, texts[key_id])
            found = await find(cache, texts[key_id]) if known is MISS else known
            assert isinstance(found, ApiKey) and int(found.name) >= int(number)
        assert await process.wait() == 0

    await asyncio.gather(follow(keys[:3]), follow(keys[3:]))
    assert cache.misses < 6 + 2 * 3 * 30 + 10
