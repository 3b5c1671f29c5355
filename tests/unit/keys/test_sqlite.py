import asyncio
import json
import logging
import os
import secrets
import sqlite3
import stat
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from sidecar.core.apikey import Hasher, Pepper
from sidecar.core.model import ApiKey, KeyStatus
from sidecar.keys.lifecycle import Lifecycle
from sidecar.keys.ports import KeyConflict, KeyFilter, StoreUnavailable
from sidecar.keys.records import row_of
from sidecar.keys.validation import KeyRules, NewKey
from sidecar.store.keys import INSERT_KEY, find_statement
from sidecar.store.sqlite.schema import MIGRATIONS
from sidecar.store.store import SqliteStore
from tests.unit.keys.contract import StoreContract
from tests.unit.keys.making import ANN, BOB, NOW_US, Clock, Timings, a_key, digest_of, open_store, set_status


class TestSqliteStore(StoreContract):
    """The contract, kept by SQLite."""


def asked(path: str, sql: str) -> list[tuple[object, ...]]:
    """What the file itself holds."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


async def test_files_are_for_their_owner_only(store: SqliteStore, path: str) -> None:
    await store.keys.add([a_key()], actor=ANN)
    files = sorted(Path(path).parent.iterdir())
    assert [file.name for file in files] == ["keys.db", "keys.db-shm", "keys.db-wal"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


async def test_the_write_ahead_log_is_on_and_every_commit_reaches_the_disk(store: SqliteStore, path: str) -> None:
    assert asked(path, "PRAGMA journal_mode") == [("wal",)]
    for connection in store.database.connections:
        assert await connection.fetch("PRAGMA synchronous") == [(2,)]


async def test_a_request_s_lookup_uses_the_index(store: SqliteStore, path: str) -> None:
    [plan] = asked(path, f"EXPLAIN QUERY PLAN {find_statement(3).replace('?', 'x' + repr('00' * 32))}")
    assert "SEARCH api_key USING INDEX api_key_digest (digest=?)" in str(plan)


@pytest.mark.parametrize(
    ("where", "index"),
    [
        ("tenant = 'a'", "api_key_tenant"),
        ("environment = 'a'", "api_key_environment"),
        ("status = 'a'", "api_key_status"),
    ],
)
async def test_lists_use_an_index_and_sort_nothing(store: SqliteStore, path: str, where: str, index: str) -> None:
    plan = asked(path, f"EXPLAIN QUERY PLAN SELECT * FROM api_key WHERE {where} AND serial < 9 ORDER BY serial DESC")  # noqa: S608 - the test's own
    assert index in str(plan)
    assert "TEMP B-TREE" not in str(plan)


async def test_every_change_has_its_audit_row_without_the_digest(store: SqliteStore, path: str) -> None:
    key = a_key("s1", metadata={"user_id": "7"})
    await store.keys.add([key], actor=ANN)
    for status in (KeyStatus.DISABLED, KeyStatus.ACTIVE, KeyStatus.REVOKED):
        await set_status(store.keys, key.id, status, at=NOW_US + 5, actor=BOB)
    rows = asked(path, "SELECT at, actor, action, key_id, before, after FROM audit ORDER BY id")
    assert [row[:4] for row in rows] == [
        (NOW_US, "ann", "issue", key.id),
        (NOW_US + 5, "bob", "disable", key.id),
        (NOW_US + 5, "bob", "enable", key.id),
        (NOW_US + 5, "bob", "revoke", key.id),
    ]
    assert [json.loads(str(row[5]))["status"] for row in rows] == ["active", "disabled", "active", "revoked"]
    assert rows[0][4] is None
    assert json.loads(str(rows[1][4]))["status"] == "active"
    assert "digest" not in str(rows)


async def test_a_refused_change_leaves_no_row_and_no_audit_row(store: SqliteStore, path: str) -> None:
    key = a_key("s1")
    await store.keys.add([key], actor=ANN)
    with pytest.raises(KeyConflict):
        await store.keys.add([a_key("s1")], actor=BOB)
    await set_status(store.keys, key.id, KeyStatus.REVOKED, at=NOW_US)
    with pytest.raises(KeyConflict):
        await set_status(store.keys, key.id, KeyStatus.ACTIVE, at=NOW_US, actor=BOB)
    assert asked(path, "SELECT actor FROM audit") == [("ann",), ("ann",)]
    assert asked(path, "SELECT count(*) FROM api_key") == [(1,)]


@pytest.mark.parametrize("peppers", [(), (Pepper.of(b"a long enough pepper"),)])
async def test_nothing_that_can_be_sent_is_written_anywhere(
    store: SqliteStore, rules: KeyRules, path: str, caplog: pytest.LogCaptureFixture, peppers: Sequence[Pepper]
) -> None:
    caplog.set_level(logging.DEBUG)
    lifecycle = Lifecycle(store.keys, Hasher(peppers), clock=Clock(), randbelow=secrets.randbelow)
    issued = await lifecycle.issue(NewKey(name="canary"), rules, actor=ANN)
    text = issued.secret.text
    assert await lifecycle.find_by(text) == issued.key
    assert await lifecycle.find_by(text[:-1] + "?") is None
    await lifecycle.revoke(issued.key.id, actor=ANN)
    assert text not in repr(issued)
    written = b"".join(file.read_bytes() for file in Path(path).parent.iterdir()) + caplog.text.encode()
    assert issued.key.digest in written
    # The stored prefix is the only part of the key that may be found.
    secret = text.removeprefix(issued.key.prefix).encode()
    assert not any(secret[start : start + 8] in written for start in range(len(secret) - 7))


async def test_keys_are_counted_by_status_and_environment(store: SqliteStore, clock: Clock) -> None:
    keys = [a_key(expires_at=NOW_US + 1), a_key(), a_key(environment=None), a_key(environment="test")]
    for key in keys:
        await store.keys.add([key], actor=ANN)
    await set_status(store.keys, keys[3].id, KeyStatus.DISABLED, at=NOW_US)
    assert await store.statistics.counts() == {("active", "live"): 2, ("active", ""): 1, ("disabled", "test"): 1}
    clock.now += 1
    assert (await store.statistics.counts())["expired", "live"] == 1


def made_at(path: str, version: int, keys: Sequence[ApiKey]) -> None:
    """A store of an earlier schema, with these keys."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE schema_version (version INTEGER NOT NULL)")
        for step in chain.from_iterable(MIGRATIONS[:version]):
            connection.execute(step) if isinstance(step, str) else step(connection)
        connection.execute("INSERT INTO schema_version VALUES (?)", (version,))
        connection.executemany(INSERT_KEY, map(row_of, keys))
        connection.commit()


async def test_keys_of_an_earlier_schema_are_found_and_changed(path: str) -> None:
    ending, lasting = a_key(tenant="acme", expires_at=NOW_US + 9), a_key(tenant="acme")
    made_at(path, 4, [ending, lasting])
    store = await open_store(path, clock=Clock())
    new = a_key(tenant="acme", expires_at=NOW_US + 9)
    await store.keys.add([new], actor=ANN)
    for key in (ending, lasting, new):
        await store.keys.change(key.id, lambda key: replace(key, expires_at=NOW_US), action="change", at=0, actor=ANN)
    wanted = KeyFilter(tenant="acme", effective_status="expired", search="key")
    assert [key.id for key in await store.keys.list(wanted)] == [new.id, lasting.id, ending.id]
    await store.keys.change(
        ending.id, lambda key: replace(key, expires_at=None, name="x"), action="change", at=0, actor=ANN
    )
    assert [key.id for key in await store.keys.list(wanted)] == [new.id, lasting.id]
    assert [key.id for key in await store.keys.list(replace(wanted, search="x", effective_status=None))] == [ending.id]
    await store.close()
    asked(path, "INSERT INTO key_text (key_text) VALUES ('integrity-check')")


def quota_row(subject: str, *by: str, seconds: int = 60) -> tuple[str, str, str, int]:
    state = json.dumps({"by": ["fixed", "hour", by], "count": [0, 1, 2]})
    return "general", json.dumps([subject]), state, NOW_US + seconds * 1_000_000


async def test_quota_states_are_bounded_and_addresses_are_dropped_first(path: str, clock: Clock) -> None:
    strangers = [quota_row(f"192.0.2.{last}", "address", seconds=last + 1) for last in range(5)]
    kept = [quota_row("key_1", "key", seconds=1), quota_row("key_2", "key", "address", seconds=1), strangers[4]]
    store = await open_store(path, clock=clock)
    await store.quotas.save([*strangers, *kept])
    assert await store.quotas.load(most=3) == kept
    await store.quotas.trim(most=3)
    assert sorted(await store.quotas.load(most=100)) == sorted(kept)
    await store.close()


async def test_quota_states_outlive_the_process_until_they_expire(path: str, clock: Clock) -> None:
    first = await open_store(path, clock=clock)
    await first.quotas.save([("general", '["k1"]', "{}", NOW_US + 5), ("general", '["k2"]', "{}", NOW_US + 9)])
    await first.quotas.save([("general", '["k1"]', '{"n":2}', NOW_US + 5_000_000)])
    await first.close()
    clock.now += 1
    second = await open_store(path, clock=clock)
    assert await second.quotas.load(most=10) == [("general", '["k1"]', '{"n":2}', NOW_US + 5_000_000)]
    await second.quotas.save([])
    await second.close()
    assert asked(path, "SELECT count(*) FROM quota_state") == [(1,)]


async def test_every_operation_is_timed(store: SqliteStore, timings: Timings) -> None:
    await store.keys.find({digest_of("s1"): "sha256"})
    await store.keys.add([a_key()], actor=ANN)
    await store.statistics.counts()
    assert timings == ["find", "add", "counts"]


async def test_concurrent_lookups_are_combined_into_one_query(store: SqliteStore, timings: Timings) -> None:
    key = a_key("s1")
    await store.keys.add([key], actor=ANN)
    timings.clear()
    texts = [f"stranger {number}" for number in range(99)]
    texts.insert(50, "s1")
    found = await asyncio.gather(*(store.keys.find({digest_of(text): "sha256"}) for text in texts))
    assert [one for one in found if one] == [found[50]] == [key]
    assert len(timings) <= 7
    timings.clear()
    assert await store.keys.find({digest_of("s1"): "sha256"}) == key
    assert timings == ["find"]


async def test_concurrent_lookups_over_a_bound_are_unavailable_and_the_others_succeed(
    store: SqliteStore,
) -> None:
    key = a_key("s1")
    await store.keys.add([key], actor=ANN)
    finding = [store.keys.find({digest_of("s1"): "sha256"}) for _ in range(4_200)]
    outcomes = await asyncio.gather(*finding, return_exceptions=True)
    assert outcomes[:4_096] == [key] * 4_096
    assert {type(outcome) for outcome in outcomes[4_096:]} == {StoreUnavailable}
    assert await store.keys.find({digest_of("s1"): "sha256"}) == key


async def test_a_cancelled_lookup_does_not_fail_others(store: SqliteStore) -> None:
    key = a_key("s1")
    await store.keys.add([key], actor=ANN)
    first, second = (asyncio.create_task(store.keys.find({digest_of("s1"): "sha256"})) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == key


async def test_a_damaged_row_concerns_only_those_who_ask_for_it(store: SqliteStore, path: str) -> None:
    good, damaged = a_key("s1"), a_key("s2")
    await store.keys.add([good, damaged], actor=ANN)
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE api_key SET metadata = 'no JSON' WHERE id = ?", (damaged.id,))
    finding = [store.keys.find({digest_of(text): "sha256"}) for text in ("s1", "s2", "s1")]
    first, second, third = await asyncio.gather(*finding, return_exceptions=True)
    assert (first, third) == (good, good)
    assert isinstance(second, StoreUnavailable)


async def test_a_closed_store_is_unavailable(path: str) -> None:
    store = await open_store(path)
    await store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.keys.find({digest_of("s1"): "sha256"})
    with pytest.raises(StoreUnavailable):
        await store.keys.read_generation()


async def test_an_existing_store_keeps_the_mode_that_its_owner_chose(path: str) -> None:
    await (await open_store(path)).close()
    os.chmod(path, 0o660)
    await (await open_store(path)).close()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
