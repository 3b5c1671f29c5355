"""How PostgreSQL finds keys among many: by an index, sorting no more than what a page needs."""

from typing import Any

import pytest

from sidecar.keys.ports import KeyFilter
from sidecar.keys.records import new_row
from sidecar.store.keys import find_statement
from sidecar.store.postgresql.listing import count_statement, page_statements
from sidecar.store.store import Store, open_store
from tests.harness.postgresql import PostgresqlServer
from tests.unit.keys.making import ANN, NOW_US, Clock, a_key, ignore

KEYS = 20_000
_FILL = f"""INSERT INTO sidecar.api_key (id, name, prefix, digest, algorithm, tenant, environment, scopes, quotas,
        metadata, status, created_at, created_by, expires_at, last_used_at)
    SELECT 'key_' || i, 'Key ' || i || ' nightly', 'sk_live_' || i % 9973, sha256(i::text::bytea), 'sha256',
        'tenant-' || i % 500, CASE WHEN i % 4 = 0 THEN 'test' ELSE 'live' END, '[]', '{{}}', '{{}}',
        CASE WHEN i % 10 = 0 THEN 'revoked' ELSE 'active' END, i, 'x', CASE WHEN i % 1000 = 1 THEN i END, i
    FROM generate_series(1, {KEYS}) AS i"""  # noqa: S608 - no input


@pytest.fixture(scope="module")
def full(server: PostgresqlServer, template: str) -> str:
    url = server.database(template=template)
    server.sql(_FILL, "VACUUM ANALYZE sidecar.api_key", url=url)
    return url


@pytest.fixture
def shared_url(full: str) -> str:
    return full


@pytest.fixture
def emptied() -> bool:
    return False


async def plan(store: Store, sql: str, values: Any) -> str:
    return "\n".join(row[0] for row in await store.database.read("explain", f"EXPLAIN {sql}", values))


async def test_a_lookup_reads_the_index_of_digests(store: Store) -> None:
    told = await plan(store, find_statement(4), [bytes(32)] * 4)
    assert "api_key_digest" in told and "Seq Scan" not in told


async def test_a_lookup_is_planned_once(store: Store) -> None:
    for number in range(9):
        assert await store.keys.find({bytes([number] * 32): "sha256"}) is None
    plans = "SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement = ?"
    assert await store.database.lookup("find", plans, (find_statement(1).replace("IN (?)", "= ANY($1)"),)) == [(9, 0)]


PAGES = {
    "the newest": KeyFilter(limit=50),
    "after a key": KeyFilter(after="key_9000", limit=50),
    "a tenant": KeyFilter(tenant="tenant-7", limit=50),
    "a tenant's revoked ones": KeyFilter(tenant="tenant-10", effective_status="revoked", limit=50),
    "an environment": KeyFilter(environment="test", limit=50),
    "expired": KeyFilter(effective_status="expired", limit=50),
    "expired, a word": KeyFilter(search="night", effective_status="expired", limit=50),
    "active": KeyFilter(effective_status="active", limit=50),
    "a rare word": KeyFilter(search="key 17", limit=50),
    "a common word": KeyFilter(search="night", limit=50),
    "a stored prefix": KeyFilter(search="sk_live_123", limit=50),
    "by name": KeyFilter(sort="name", limit=50),
    "by tenant, after a key": KeyFilter(sort="tenant", after="key_9000", limit=50),
    "by use": KeyFilter(sort="used", after="key_9000", after_at=9000, limit=50),
    "by disuse": KeyFilter(sort="unused", limit=50),
    "by end": KeyFilter(sort="ends", limit=50),
}


@pytest.mark.parametrize("page", PAGES)
async def test_no_page_reads_or_sorts_all_keys(store: Store, page: str) -> None:
    wanted = PAGES[page]
    for sql, values in page_statements(wanted, NOW_US):
        told = await plan(store, sql, values)
        assert "Seq Scan" not in told, told
        if wanted.sort != "created":
            assert "Sort" not in told and "api_key_by_" in told, told
    assert await store.keys.list(wanted)


async def test_an_environment_that_a_tenant_does_not_have_is_not_looked_for_among_its_keys(store: Store) -> None:
    for after in (None, "key_9000"):
        wanted = KeyFilter(tenant="tenant-1", environment="test", after=after, limit=50)
        [(sql, values)] = page_statements(wanted, NOW_US)
        told = await plan(store, sql, values)
        assert "api_key_tenant_environment" in told and "Filter" not in told, told


async def test_counting_a_tenants_keys_reads_its_index(store: Store) -> None:
    assert "api_key_tenant" in await plan(store, *count_statement(KeyFilter(tenant="tenant-7"), NOW_US, 100))


async def test_a_prefix_shared_by_too_many_keys_is_not_searched(store: Store) -> None:
    assert await store.keys.list(KeyFilter(search="key_", limit=5)) != []  # A word of each name.
    assert await store.keys.list(KeyFilter(search="sk_live_", limit=5)) == []
    assert len(await store.keys.list(KeyFilter(search="sk_live_123", limit=500))) == 22


IMPORTED = 2_000


async def test_after_an_import_the_planner_has_statistics(server: PostgresqlServer, url: str) -> None:
    store = await open_store(url, create=False, clock=Clock(), timings=ignore)
    async with store.imports.intake(at=NOW_US, actor=ANN) as intake:
        await intake.begin()
        await intake.add(intake.batch([new_row(a_key()) for _ in range(IMPORTED)]))
    await store.close()
    known = server.sql("SELECT reltuples FROM pg_class WHERE relname IN ('api_key', 'audit')", url=url)
    assert known == [(str(IMPORTED),)] * 2
