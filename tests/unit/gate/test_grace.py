"""Cached keys keep working while the store is unavailable (`store.grace`). See also tests/wire/keys/test_grace.py."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import pytest

from sidecar.core.apikey import KeyFormat
from sidecar.core.errors import Reason
from sidecar.core.model import KeyStatus
from sidecar.keys.cache import CacheEntry, KeyCache
from tests.unit.gate.world import World, make_world
from tests.unit.keys.making import set_status

MINUTE = 60_000_000


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await make_world(tmp_path, grace=30)
    yield made
    await made.store.close()


async def reason(world: World, key: str) -> Reason | None:
    decision = await world.decide("GET", "/items/1", key=key)
    return getattr(decision, "reason", None)


@pytest.mark.requirement("R2.1")
async def test_a_cached_key_works_until_the_grace_ends_and_others_are_faults(world: World) -> None:
    (seen, _), (new, _) = await world.issue("read"), await world.issue("read")
    assert await reason(world, seen) is None
    world.move_store()
    for _ in range(2):
        assert [await reason(world, key) for key in (seen, new)] == [None, Reason.STORE_UNAVAILABLE]
    world.clock.now += 29
    assert await reason(world, seen) is None
    world.clock.now += 1
    assert await reason(world, seen) is Reason.STORE_UNAVAILABLE


async def test_the_grace_counts_from_the_stores_last_response(world: World) -> None:
    key, _ = await world.issue("read")
    assert await reason(world, key) is None
    world.clock.now += 100
    await world.grace.check()
    world.clock.now += 20
    world.move_store()
    assert await reason(world, key) is None
    world.clock.now += 10
    await world.grace.check()
    assert await reason(world, key) is Reason.STORE_UNAVAILABLE


async def test_a_store_that_was_not_asked_for_longer_than_the_grace_leaves_none(world: World) -> None:
    key, _ = await world.issue("read")
    assert await reason(world, key) is None
    world.clock.now += 31
    world.move_store()
    assert await reason(world, key) is Reason.STORE_UNAVAILABLE


async def test_an_unknown_key_is_a_fault_because_it_may_have_been_issued(world: World) -> None:
    unknown = KeyFormat().make("hv_live_", random.Random(1).randrange)  # noqa: S311 - no secret is guarded
    assert await reason(world, unknown) is Reason.INVALID_KEY
    world.move_store()
    assert await reason(world, unknown) is Reason.STORE_UNAVAILABLE
    assert await reason(world, unknown[:-1]) is Reason.STORE_UNAVAILABLE


@pytest.mark.parametrize(("changes", "ended"), [("expires_at", Reason.EXPIRED_KEY), ("retires_at", Reason.RETIRED_KEY)])
async def test_the_end_of_a_key_counts_without_the_store(world: World, changes: str, ended: Reason) -> None:
    key, _ = await world.issue("read", **{changes: world.clock.micros() + MINUTE // 4})
    assert await reason(world, key) is None
    world.move_store()
    assert await reason(world, key) is None
    world.clock.now += 15
    assert await reason(world, key) is ended


async def test_a_change_that_was_seen_is_not_forgotten(world: World) -> None:
    (revoked, record), (other, _) = await world.issue("read"), await world.issue("read")
    assert [await reason(world, key) for key in (revoked, other)] == [None, None]
    await set_status(world.store.keys, record.id, KeyStatus.REVOKED)
    assert await reason(world, other) is None
    world.move_store()
    assert [await reason(world, key) for key in (revoked, other)] == [Reason.STORE_UNAVAILABLE, None]
    world.move_store()
    assert await reason(world, revoked) is Reason.REVOKED_KEY
    world.move_store()
    assert await reason(world, revoked) is Reason.REVOKED_KEY


async def test_once_the_store_is_back_everything_is_as_before(world: World) -> None:
    key, record = await world.issue("read")
    assert await reason(world, key) is None
    for _ in range(2):
        world.move_store()
        assert await reason(world, key) is None
        world.clock.now += 29
        world.move_store()
        await world.grace.check()
        assert world.grace.active is False
    await set_status(world.store.keys, record.id, KeyStatus.REVOKED)
    assert await reason(world, key) is Reason.REVOKED_KEY


async def test_without_grace_no_key_works(world: World) -> None:
    key, _ = await world.issue("read")
    world.grace.reconfigure(0)
    assert await reason(world, key) is None
    world.move_store()
    assert await reason(world, key) is Reason.STORE_UNAVAILABLE
    assert world.grace.remarks() == []


async def test_start_and_end_are_reported_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "sidecar")
    key, _ = await world.issue("read")
    assert await reason(world, key) is None
    world.move_store()
    for _ in range(3):
        await reason(world, key)
        await world.grace.check()
    [remark] = world.grace.remarks()
    assert remark.startswith("store: no answer, cached keys keep working for 30 s more: ")
    world.clock.now += 40
    for _ in range(3):
        await reason(world, key)
        await world.grace.check()
    assert world.grace.remarks() == []
    world.move_store()
    for _ in range(3):
        await world.grace.check()
    said = [record.getMessage() for record in caplog.records if "store:" in record.getMessage()]
    assert [line.split(": ")[2] for line in said[:2]] == [
        "no answer",
        "no answer for 40 s, store.grace is over",
    ]
    assert said[2:] == ["sidecar: store: answers again, after 40 s and 3 lookups without it"]


async def test_a_lookup_that_is_made_again_counts_once(world: World) -> None:
    text, key = await world.issue("read")
    cache = KeyCache(world.store.keys, size=10, grace=world.grace)
    digest = sha256(text.encode()).digest()

    async def looked_up_twice() -> tuple[int, int]:
        before = cache.hits, world.grace.lookups
        found = cache.peek(digest)
        assert isinstance(found, CacheEntry) and found.key.id == key.id
        cache.uncount(found)
        assert await cache.find(digest, lambda: world.hasher.candidates(text)) is found
        return cache.hits - before[0], world.grace.lookups - before[1]

    await cache.find(digest, lambda: world.hasher.candidates(text))
    assert await looked_up_twice() == (1, 0)
    await asyncio.sleep(0)
    world.move_store()
    assert await looked_up_twice() == (1, 1)
