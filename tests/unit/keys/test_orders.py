"""Keys in other orders than that of their age, counted, and changed together."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import get_args

import pytest

from sidecar.core.model import ApiKey, KeyStatus
from sidecar.keys.ports import AuditFilter, KeyFilter, Sort, UnknownKey, sort_time
from sidecar.keys.transitions import with_status
from sidecar.store.sqlite.listing import count_statement, page_statements
from sidecar.store.store import SqliteStore
from tests.unit.keys.making import ANN, NOW_US, a_key, used_at

HOUR_US = 3_600_000_000
KEYS = {
    "banana": a_key(name="banana", tenant="globex", last_used_at=NOW_US - 5, expires_at=NOW_US + 30),
    "Apple": a_key(name="Apple", last_used_at=NOW_US - HOUR_US, expires_at=NOW_US + 90, retires_at=NOW_US + 10),
    "cherry": a_key(name="cherry", tenant="acme"),
    "date": a_key(name="date", tenant="acme", last_used_at=NOW_US - 1, created_at=NOW_US - 9 * HOUR_US),
}
ORDERS: dict[Sort, str] = {
    "created": "date cherry Apple banana",
    "name": "Apple banana cherry date",
    "tenant": "Apple cherry date banana",
    "used": "date banana Apple cherry",
    "unused": "cherry Apple banana date",
    "ends": "Apple banana cherry date",
}

FILTERED = [
    (KeyFilter(tenant="acme"), 2),
    (KeyFilter(search="che"), 1),
    (KeyFilter(search="key_"), 4),
    (KeyFilter(search="!"), 0),
    (KeyFilter(tenant="acme", environment="live", search="dat", effective_status="active"), 1),
    (KeyFilter(unused_since=NOW_US - HOUR_US), 1),
    (KeyFilter(unused_since=NOW_US), 4),
    (KeyFilter(effective_status="revoked"), 0),
]
"""How many of KEYS fit each."""


async def names(store: SqliteStore, wanted: KeyFilter) -> str:
    return " ".join(key.name for key in await store.keys.list(wanted))


@pytest.fixture
async def stocked(store: SqliteStore) -> SqliteStore:
    await store.keys.add(list(KEYS.values()), actor=ANN)
    return store


def after(key: ApiKey, sort: Sort) -> KeyFilter:
    return KeyFilter(sort=sort, after=key.id, after_at=sort_time(key, sort), limit=1)


def test_every_order_is_tried_here() -> None:
    assert set(ORDERS) == set(get_args(Sort))


@pytest.mark.parametrize("sort", ORDERS)
async def test_keys_are_listed_in_order_and_page_by_page(stocked: SqliteStore, sort: Sort) -> None:
    assert await names(stocked, KeyFilter(sort=sort)) == ORDERS[sort]
    found = await stocked.keys.list(KeyFilter(sort=sort, limit=1))
    for _ in range(len(KEYS)):
        found = [*found, *await stocked.keys.list(after(found[-1], sort))]
    assert " ".join(key.name for key in found) == ORDERS[sort]


async def test_a_key_used_between_two_pages_does_not_restart_the_list(stocked: SqliteStore) -> None:
    await stocked.usage.touch({KEYS["banana"].id: used_at(NOW_US + HOUR_US)})
    [following] = await stocked.keys.list(after(KEYS["banana"], "used"))
    assert following.name == "Apple"


async def test_filters_hold_in_every_order_and_the_count_agrees(stocked: SqliteStore) -> None:
    """All in one store: to make one takes longer than to read it."""
    rows = [(sort, wanted, count) for sort in ORDERS for wanted, count in FILTERED]
    found = [(sort, wanted, len(await stocked.keys.list(replace(wanted, sort=sort)))) for sort, wanted, _ in rows]
    assert found == rows
    assert [(wanted, await stocked.keys.count(wanted, most=100)) for wanted, _ in FILTERED] == FILTERED


async def test_counting_stops_at_a_bound(stocked: SqliteStore) -> None:
    assert await stocked.keys.count(KeyFilter(), most=3) == 3


@pytest.mark.parametrize("sort", [sort for sort in ORDERS if sort != "created"])
async def test_no_order_sorts_all_keys(stocked: SqliteStore, path: str, sort: Sort) -> None:
    key = KEYS["banana"]
    for wanted in (KeyFilter(sort=sort, limit=2), after(key, sort), KeyFilter(sort=sort, effective_status="active")):
        [(sql, values)] = page_statements(wanted, NOW_US)
        with closing(sqlite3.connect(path)) as connection:
            plan = str(connection.execute(f"EXPLAIN QUERY PLAN {sql}", values).fetchall())
        assert "USING INDEX api_key_by_" in plan and "TEMP B-TREE" not in plan


async def test_counting_a_tenant_s_keys_reads_its_index(stocked: SqliteStore, path: str) -> None:
    sql, values = count_statement(KeyFilter(tenant="acme"), NOW_US, 10)
    with closing(sqlite3.connect(path)) as connection:
        plan = str(connection.execute(f"EXPLAIN QUERY PLAN {sql}", values).fetchall())
    assert "USING COVERING INDEX api_key_tenant" in plan


async def test_keys_are_changed_together_with_their_audit_rows(stocked: SqliteStore) -> None:
    ids = [KEYS["banana"].id, KEYS["date"].id]

    def revoke(key: ApiKey) -> ApiKey:
        return with_status(key, KeyStatus.REVOKED, NOW_US)

    both = await stocked.keys.change_all(ids, revoke, action="revoke", at=NOW_US, actor=ANN)
    assert [(old.status, new.status) for old, new in both] == [(KeyStatus.ACTIVE, KeyStatus.REVOKED)] * 2
    again = await stocked.keys.change_all(ids, revoke, action="revoke", at=NOW_US, actor=ANN)
    assert all(old == new for old, new in again)
    rows = await stocked.audit.rows(AuditFilter(key_ids=tuple(ids), action="revoke", limit=9))
    assert {row.key_id for row in rows} == set(ids) and len(rows) == 2
    assert (await stocked.audit.verify()).problem is None


async def test_one_unknown_key_leaves_all_as_they_are(stocked: SqliteStore) -> None:
    key = KEYS["banana"]
    with pytest.raises(UnknownKey):
        await stocked.keys.change_all(
            [key.id, "key_0"],
            lambda key: with_status(key, KeyStatus.REVOKED, NOW_US),
            action="revoke",
            at=NOW_US,
            actor=ANN,
        )
    assert await stocked.keys.get(key.id) == key
