"""Several processes that write to one store at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from sidecar.core.model import ApiKey, KeyStatus
from sidecar.keys.ports import AuditFilter, NotWritten, StoreUnavailable
from sidecar.store.store import Store, open_store
from sidecar.usage.recorder import LastUse, UsageFilter, UsageRow
from tests.harness.postgresql import PostgresqlServer
from tests.harness.waiting import eventually
from tests.unit.keys.making import ANN, NOW_US, Clock, a_key, ignore, set_status

WRITERS, KEYS = 4, 12


@pytest.fixture
async def stores(url: str) -> AsyncIterator[list[Store]]:
    """As that many sidecars have them."""
    async with AsyncExitStack() as stack:
        yield [await _opened(url, stack) for _ in range(WRITERS)]


async def _opened(url: str, stack: AsyncExitStack) -> Store:
    store = await open_store(url, create=False, watched=True, clock=Clock(), timings=ignore)
    stack.push_async_callback(store.close)
    return store


async def test_the_audit_stays_one_chain(stores: list[Store]) -> None:
    keys = [a_key() for _ in range(KEYS)]
    await asyncio.gather(*(stores[number % WRITERS].keys.add([key], actor=ANN) for number, key in enumerate(keys)))
    ids = [key.id for key in keys]

    def renamed(key: ApiKey) -> ApiKey:
        return replace(key, name=f"{key.name} again")

    changes = [
        store.keys.change_all(order, renamed, action="change", at=NOW_US, actor=ANN)
        for store, order in zip(stores, (ids, ids[::-1], ids, ids[::-1]), strict=True)
    ]
    await asyncio.gather(*changes)
    state = await stores[0].audit.verify()
    assert (state.rows, state.problem) == (KEYS + WRITERS * KEYS, None)
    assert (await stores[0].keys.among(ids[:1]))[0].name.count("again") == WRITERS


async def test_writers_wait_for_each_other_whatever_isolation_the_database_has_by_default(
    server: PostgresqlServer, url: str
) -> None:
    server.sql(f"ALTER DATABASE {url.rpartition('/')[2]} SET default_transaction_isolation = 'serializable'")
    async with AsyncExitStack() as stack:
        stores = [await _opened(url, stack) for _ in range(2)]
        await asyncio.gather(*(store.keys.add([a_key()], actor=ANN) for store in stores * 3))
        assert (await stores[0].audit.verify()).rows == 6


async def test_uses_and_changes_of_the_same_keys_lose_nothing(stores: list[Store]) -> None:
    keys = [a_key() for _ in range(KEYS)]
    await stores[0].keys.add(keys, actor=ANN)
    uses = {key.id: LastUse(at=NOW_US, address="192.0.2.1", networks=("192.0.2.0/24",)) for key in keys}
    rows = [UsageRow(key_id=key.id, at=0, route="GET /a", status_class=2, count=1) for key in keys]
    work = []
    for store in stores:
        work += [store.usage.touch(dict(reversed(uses.items()))), store.usage.add(rows[::-1]), store.usage.add(rows)]
        work += [store.usage.touch(uses)]
        work += [set_status(store.keys, key.id, KeyStatus.DISABLED) for key in keys]
    await asyncio.gather(*work)
    found = await stores[0].keys.among([key.id for key in keys])
    assert {(key.status, key.last_used_at) for key in found} == {(KeyStatus.DISABLED, NOW_US)}
    [total] = await stores[0].usage.counts(UsageFilter(since=0, until=NOW_US))
    assert total.count == 2 * WRITERS * KEYS


async def test_a_change_announces_the_changed_keys_to_every_store(stores: list[Store]) -> None:
    keys = [a_key(), a_key()]
    await stores[0].keys.add(keys, actor=ANN)
    before = await stores[1].keys.read_generation()
    await set_status(stores[0].keys, keys[1].id, KeyStatus.REVOKED)
    # A query over the listening connection comes after the notification.
    assert await stores[1].keys.read_generation() != before
    assert stores[1].keys.changes_since(before) == {keys[1].id}
    own = stores[1].keys.generation()
    assert own is not None
    await set_status(stores[1].keys, keys[0].id, KeyStatus.REVOKED)
    assert stores[1].keys.changes_since(own) == {keys[0].id}, "what was acknowledged is known at once"
    assert stores[1].keys.generation() != own


async def test_a_change_without_a_notification_is_found_by_polling(
    server: PostgresqlServer, url: str, stores: list[Store]
) -> None:
    before = stores[0].keys.generation()
    server.sql("UPDATE sidecar.generation SET value = value + 1", url=url)
    await eventually(lambda: stores[0].keys.generation() != before, within_seconds=10)


async def test_the_number_of_changes_may_go_and_come_back(
    server: PostgresqlServer, url: str, stores: list[Store]
) -> None:
    """No store is used meanwhile, and none has to be reopened."""
    server.sql("DELETE FROM sidecar.generation", url=url)
    await eventually(lambda: not _knows_changes(stores[0]), within_seconds=10)
    with pytest.raises(StoreUnavailable, match="is damaged"):
        stores[0].keys.generation()
    server.sql("INSERT INTO sidecar.generation VALUES (7)", url=url)
    await eventually(lambda: _knows_changes(stores[0]), within_seconds=10)


def _knows_changes(store: Store) -> bool:
    try:
        store.keys.generation()
    except StoreUnavailable:
        return False
    return True


async def test_waiting_too_long_for_another_writer_is_an_error(stores: list[Store]) -> None:
    key = a_key()
    await stores[0].keys.add([key], actor=ANN)
    async with stores[1].imports.intake(at=NOW_US, actor=ANN) as intake:
        await intake.begin()
        with pytest.raises(StoreUnavailable, match="being changed by another process"):
            await set_status(stores[0].keys, key.id, KeyStatus.DISABLED)
        assert await stores[0].keys.find({key.digest: "sha256"}) == key
        await stores[0].usage.add([UsageRow(key_id=key.id, at=0, route="GET /a", status_class=2, count=1)])
    await set_status(stores[0].keys, key.id, KeyStatus.DISABLED)
    assert [row.action for row in await stores[0].audit.rows(AuditFilter(limit=1))] == ["disable"]


async def test_a_connection_that_is_lost_at_the_end_leaves_a_doubt(stores: list[Store]) -> None:
    with pytest.raises(NotWritten, match="may have been written"):
        async with stores[0].database.transaction("save_quota_states") as connection:
            # What is deferred runs within COMMIT, and ends its own session there.
            await connection.execute(
                "CREATE FUNCTION pg_temp.leave() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                " PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(1); RETURN NULL; END $$"
            )
            await connection.execute("CREATE TEMPORARY TABLE leaving (id INTEGER)")
            await connection.execute(
                "CREATE CONSTRAINT TRIGGER leave AFTER INSERT ON leaving"
                " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pg_temp.leave()"
            )
            await connection.execute("INSERT INTO leaving VALUES (1)")
    await stores[0].keys.add([a_key()], actor=ANN)
