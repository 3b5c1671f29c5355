"""Keys made elsewhere are rehashed like new ones once they are used."""

import pytest

from sidecar.core.apikey import ForeignKeys, Hasher
from sidecar.core.model import ApiKey
from sidecar.keys.lifecycle import Rehashing
from sidecar.keys.ports import AuditFilter, StoreUnavailable
from sidecar.store.store import SqliteStore
from tests.unit.keys.making import ANN, Clock, a_key, digest_of, open_store

OLD = ForeignKeys(prefix="", hash="hmac-sha256", pepper=b"salt")


async def imported(store: SqliteStore, text: str = "legacy") -> ApiKey:
    key = a_key(digest=OLD.digest(text.encode()), algorithm=OLD.algorithm)
    await store.keys.add([key], actor=ANN)
    return key


async def test_a_key_in_use_is_rehashed_like_new_keys(store: SqliteStore) -> None:
    key = await imported(store)
    rehashing = Rehashing(store.keys, "sha256", clock=Clock())
    await rehashing.find(Hasher((), [OLD]).candidates("legacy"))
    await rehashing.flush(store.keys.rehash)
    found = await store.keys.find(Hasher().candidates("legacy"))
    assert found is not None
    assert (found.id, found.algorithm) == (key.id, "sha256")
    [row] = await store.audit.rows(AuditFilter(action="rehash"))
    assert row.before is not None and row.after is not None
    assert (row.before["algorithm"], row.after["algorithm"]) == (OLD.algorithm, "sha256")
    assert (await store.audit.verify()).problem is None


async def test_the_key_is_found_before_and_after_it_is_rehashed(store: SqliteStore) -> None:
    await imported(store)
    rehashing = Rehashing(store.keys, "sha256", clock=Clock())
    held = await rehashing.find(Hasher((), [OLD]).candidates("legacy"))
    assert held is not None
    assert await rehashing.find({held.digest: held.algorithm}) is not None
    await rehashing.flush(store.keys.rehash)
    assert await rehashing.find({held.digest: held.algorithm}) is not None


async def test_a_key_whose_new_hash_exists_is_not_changed(store: SqliteStore) -> None:
    key = await imported(store)
    rehashing = Rehashing(store.keys, "sha256", clock=Clock())
    candidates = Hasher((), [OLD]).candidates("legacy")
    await rehashing.find(candidates)
    twin = a_key("legacy")
    await store.keys.add([twin], actor=ANN)
    await rehashing.flush(store.keys.rehash)
    assert await store.keys.get(key.id) == key
    assert await store.keys.get(twin.id) == twin
    assert await store.audit.rows(AuditFilter(action="rehash")) == []


async def test_a_failed_store_is_queried_again(store: SqliteStore, path: str) -> None:
    await imported(store)
    rehashing = Rehashing(store.keys, "sha256", clock=Clock())
    await rehashing.find(Hasher((), [OLD]).candidates("legacy"))
    closed = await open_store(path)
    await closed.close()
    with pytest.raises(StoreUnavailable):
        await rehashing.flush(closed.keys.rehash)
    await rehashing.flush(store.keys.rehash)
    assert await store.keys.find(Hasher().candidates("legacy")) is not None


async def test_keys_of_the_newest_kind_are_left_alone(store: SqliteStore) -> None:
    await store.keys.add([a_key("fresh")], actor=ANN)
    rehashing = Rehashing(store.keys, "sha256", clock=Clock())
    before = await store.keys.read_generation()
    assert await rehashing.find({digest_of("fresh"): "sha256"}) is not None
    await rehashing.flush(store.keys.rehash)
    assert await store.keys.read_generation() == before
