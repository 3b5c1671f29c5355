"""The audit's chain: detecting a row that was changed, removed or inserted."""

import json
import sqlite3
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest

from sidecar.core.model import KeyStatus
from sidecar.keys.ports import AuditFilter, StoreUnavailable
from sidecar.store.audit import link
from sidecar.store.sqlite.schema import MIGRATIONS
from sidecar.store.store import SqliteStore
from tests.unit.keys.making import ANN, BOB, NOW_US, a_key, open_store, set_status


def tampered(path: str, *statements: str) -> None:
    """Change the file as someone who may write it."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture
async def six_rows(store: SqliteStore) -> SqliteStore:
    for number in range(3):
        key = a_key(tenant=f"tenant-{number}")
        await store.keys.add([key], actor=ANN)
        await set_status(store.keys, key.id, KeyStatus.REVOKED, at=NOW_US + number + 1, actor=BOB)
    return store


async def test_an_untouched_audit_is_intact(six_rows: SqliteStore) -> None:
    state = await six_rows.audit.verify()
    assert (state.rows, state.problem) == (6, None)
    seen: list[int] = []
    assert await six_rows.audit.verify(state.head, progress=seen.append) == state
    assert seen == [6]


async def test_an_empty_audit_is_intact(store: SqliteStore) -> None:
    state = await store.audit.verify()
    assert (state.rows, state.problem) == (0, None)


ODD_TEXTS = (
    "",
    *map(chr, range(0xA1)),
    '"quoted" \\ and </tags>',
    "Zoë",
    "\u2028",
    "half a pair: \ud800",
    "\U0001f511",
    "\U0010ffff",
)


@pytest.mark.parametrize("text", ODD_TEXTS, ids=ascii)
def test_a_hash_covers_the_same_text_as_in_audits_of_earlier_versions(text: str) -> None:
    for row in ((1, -5, text, "cli", "import", "key_1", None, None, text), (2**63 - 1, text), (2**64, text)):
        written = json.dumps(row, separators=(",", ":")).encode()
        assert link(bytes(32), row) == sha256(bytes(32) + written).digest()


COLUMNS = ("at", "actor", "source", "action", "key_id", "tenant", "before", "after")


@pytest.mark.parametrize("column", COLUMNS)
async def test_a_row_with_one_column_changed_is_found(six_rows: SqliteStore, path: str, column: str) -> None:
    tampered(path, f"UPDATE audit SET {column} = coalesce({column}, 7) || '0' WHERE id = 4")  # noqa: S608 - the test's own
    assert (await six_rows.audit.verify()).problem == "row 4 was changed, or the row before it was"


@pytest.mark.parametrize(
    ("statements", "problem"),
    [
        (["DELETE FROM audit WHERE id = 3"], "row 3 was removed"),
        (["DELETE FROM audit WHERE id IN (2, 3)"], "rows 2 to 3 were removed"),
        (["DELETE FROM audit WHERE id = 1"], "row 1 was removed"),
        (["DELETE FROM audit WHERE id = 6"], "row 6 was removed"),
        (["DELETE FROM audit WHERE id > 4"], "rows 5 to 6 were removed"),
        (["DELETE FROM audit"], "rows 1 to 6 were removed"),
        (["DELETE FROM audit WHERE id = 3", "UPDATE audit SET id = id - 1 WHERE id > 3"], "row 3 was changed"),
        (
            ["UPDATE audit SET id = 99 WHERE id = 3", "UPDATE audit SET id = 3 WHERE id = 4"],
            "row 3 was changed",
        ),
        (["UPDATE audit SET hash = zeroblob(32) WHERE id = 5"], "row 5 was changed"),
        (
            [
                "INSERT INTO audit SELECT 7, at, actor, action, key_id, before, after, source, tenant, hash "
                "FROM audit WHERE id = 6"
            ],
            "were not written by the sidecar",
        ),
        (["UPDATE audit_head SET id = 5"], "were not written by the sidecar"),
        (["DELETE FROM audit_head"], "the head of the audit was removed"),
    ],
)
async def test_rows_removed_moved_or_put_in_are_found(
    six_rows: SqliteStore, path: str, statements: list[str], problem: str
) -> None:
    tampered(path, *statements)
    found = (await six_rows.audit.verify()).problem
    assert found is not None
    assert problem in found


async def test_a_tail_cut_off_together_with_the_head_is_found_by_a_head_noted_before(
    six_rows: SqliteStore, path: str
) -> None:
    noted = (await six_rows.audit.verify()).head
    tampered(
        path,
        "DELETE FROM audit WHERE id > 4",
        "UPDATE audit_head SET id = 4, hash = (SELECT hash FROM audit WHERE id = 4)",
    )
    assert (await six_rows.audit.verify()).problem is None
    assert (await six_rows.audit.verify(noted)).problem == "rows 5 to 6 were removed"
    await six_rows.keys.add([a_key(), a_key(), a_key()], actor=ANN)
    assert "was rewritten" in str((await six_rows.audit.verify(noted)).problem)


@pytest.mark.parametrize("noted", ["", "6", "6:", "x:" + "0" * 64, "6:" + "g" * 64, "6:" + "0" * 63, "²:" + "0" * 64])
async def test_bytes_that_are_not_a_head_are_refused(six_rows: SqliteStore, noted: str) -> None:
    with pytest.raises(ValueError, match="not a head of an audit"):
        await six_rows.audit.verify(noted or ":")


async def test_the_trail_is_shown_newest_first_and_in_pages(six_rows: SqliteStore) -> None:
    rows = await six_rows.audit.rows(AuditFilter())
    assert [row.id for row in rows] == [6, 5, 4, 3, 2, 1]
    assert [row.id for row in await six_rows.audit.rows(AuditFilter(limit=2))] == [6, 5]
    assert [row.id for row in await six_rows.audit.rows(AuditFilter(before_id=5, limit=2))] == [4, 3]
    assert (rows[-1].actor, rows[-1].source, rows[-1].action, rows[-1].tenant) == (
        "ann",
        "192.0.2.1",
        "issue",
        "tenant-0",
    )


async def test_the_trail_is_filtered(six_rows: SqliteStore) -> None:
    key_id = (await six_rows.audit.rows(AuditFilter(limit=1)))[0].key_id
    for wanted, ids in (
        (AuditFilter(key_id=key_id), [6, 5]),
        (AuditFilter(tenant="tenant-1"), [4, 3]),
        (AuditFilter(actor="bob"), [6, 4, 2]),
        (AuditFilter(action="issue"), [5, 3, 1]),
        (AuditFilter(since=NOW_US + 2), [6, 4]),
        (AuditFilter(until=NOW_US + 2, action="revoke"), [2]),
        (AuditFilter(actor="bob", tenant="tenant-1"), [4]),
        (AuditFilter(actor="' OR 1=1 --"), []),
    ):
        assert [row.id for row in await six_rows.audit.rows(wanted)] == ids


async def test_a_row_that_is_not_json_is_reported(six_rows: SqliteStore, path: str) -> None:
    tampered(path, "UPDATE audit SET after = '{' WHERE id = 4")
    with pytest.raises(StoreUnavailable, match="row 4 of the audit is damaged"):
        await six_rows.audit.rows(AuditFilter())


_OLD_AUDIT = """INSERT INTO audit (id, at, actor, action, key_id, before, after) VALUES
    (3, 1, 'ann', 'issue', 'key_1', NULL, '{"tenant":"acme"}'), (9, 2, 'bob', 'revoke', 'key_1', '{}', '{}')"""


async def test_an_audit_of_the_first_schema_is_chained_unchanged(tmp_path: Path) -> None:
    path = str(tmp_path / "old.db")
    statements = [statement for statement in MIGRATIONS[0] if isinstance(statement, str)]
    version = ["CREATE TABLE schema_version (version INTEGER)", "INSERT INTO schema_version VALUES (1)"]
    tampered(path, *version, *statements, _OLD_AUDIT)
    store = await open_store(path)
    assert [(row.id, row.actor, row.tenant) for row in await store.audit.rows(AuditFilter())] == [
        (2, "bob", None),
        (1, "ann", "acme"),
    ]
    await store.keys.add([a_key()], actor=ANN)
    state = await store.audit.verify()
    assert (state.rows, state.problem) == (3, None)
    tampered(path, "UPDATE audit SET actor = 'eve' WHERE id = 1")
    assert (await store.audit.verify()).problem is not None
    await store.close()
