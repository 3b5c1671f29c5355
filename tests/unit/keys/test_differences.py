"""What must change for a store to match the records of a file."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from sidecar.core.model import ApiKey, KeyStatus
from sidecar.keys.ports import AuditFilter, KeyFilter
from sidecar.keys.records import key_of, row_of
from sidecar.keys.transfer.importer import InvalidFile
from sidecar.keys.transfer.records import Difference, Record, difference, id_from, mirrored, records_of
from sidecar.keys.validation import KeyRules
from sidecar.store.store import SqliteStore
from tests.unit.keys.making import ANN, BOB, NOW_US, a_key, digest_of, used_at
from tests.unit.keys.test_importing import a_file, a_line, line_rules

LATER = NOW_US + 5


def record_of(key: ApiKey, *given: str, line: int = 1) -> Record:
    return Record(line=line, key=key, given=frozenset(given))


def told(found: Difference) -> list[str]:
    return [str(problem) for problem in found.problems]


async def ids(store: SqliteStore, status: Any = None) -> set[str]:
    return {key.id for key in await store.keys.list(KeyFilter(effective_status=status))}


def test_a_store_that_matches_the_file_has_no_differences() -> None:
    key = a_key(scopes=("a",), quotas={"general": 5})
    # As the store and as the file have it: with and without a read-only mapping.
    assert not difference([record_of(key, "id")], [key_of(row_of(key))], at=LATER, surplus=True)


def test_a_record_without_an_id_has_the_same_one_each_time(rules: KeyRules) -> None:
    [first] = records_of(a_file(a_line()), line_rules(rules))
    [second] = records_of(a_file(a_line(name="Renamed")), line_rules(rules))
    assert first.key.id == second.key.id == id_from(digest_of("sk_live_1"))
    [changed] = difference([second], [first.key], at=LATER).changed
    assert changed == (first.key, replace(first.key, name="Renamed"))


def test_a_record_without_an_id_is_the_key_with_its_hash() -> None:
    stored = a_key("s1", name="Before", last_used_at=7)
    wanted = replace(stored, id=id_from(stored.digest), name="After", last_used_at=None)
    [(before, after)] = difference([record_of(wanted)], [stored], at=LATER).changed
    assert (before, after) == (stored, replace(stored, name="After"))


@pytest.mark.parametrize(
    ("stored", "wanted", "problem"),
    [
        (
            {"digest": digest_of("other")},
            {},
            "1: hash: key key_a is stored with another one: a new secret needs a new id",
        ),
        ({"id": "key_b"}, {}, "1: hash: is stored already, as key key_b"),
    ],
    ids=["another hash", "another id"],
)
def test_a_record_that_contradicts_what_is_stored_is_a_problem(
    stored: Mapping[str, Any], wanted: Mapping[str, Any], problem: str
) -> None:
    key = a_key("s1", id="key_a")
    found = difference([record_of(replace(key, **wanted), "id")], [replace(key, **stored)], at=LATER)
    assert told(found) == [problem]
    assert not found


def test_a_rehashed_key_keeps_its_new_hash() -> None:
    record = a_key("s1")
    stored = replace(record, digest=digest_of("peppered"), algorithm="hmac-sha256:ab12cd34")
    assert not difference([record_of(record, "id")], [stored], at=LATER)
    [(_, after)] = mirrored([record_of(record, "id")], [stored], at=LATER).changed
    assert (after.digest, after.algorithm) == (record.digest, record.algorithm)


def test_two_records_are_not_the_same_key() -> None:
    stored = replace(a_key("s1"), digest=digest_of("peppered"), algorithm="hmac-sha256:ab12cd34")
    by_id = replace(stored, digest=digest_of("s1"), algorithm="sha256")
    by_hash = replace(stored, id="key_derived")
    found = difference([record_of(by_id, "id"), record_of(by_hash, line=2)], [stored], at=LATER)
    assert told(found) == [f"2: is key {stored.id}, which is on an earlier line"]


def test_a_revoked_key_stays_revoked() -> None:
    record = a_key()
    stored = replace(record, status=KeyStatus.REVOKED, revoked_at=3, name="Old name")
    found = difference([record_of(record, "id")], [stored], at=LATER, surplus=True)
    assert (list(found.revoked), bool(found)) == ([stored], False)


def test_disabling_and_enabling_are_dated() -> None:
    key = a_key()
    off = replace(key, status=KeyStatus.DISABLED, disabled_at=NOW_US)
    [(_, disabled)] = difference([record_of(off, "id")], [key], at=LATER).changed
    assert (disabled.status, disabled.disabled_at) == (KeyStatus.DISABLED, LATER)
    [(_, enabled)] = difference([record_of(key, "id")], [disabled], at=LATER + 1).changed
    assert enabled == key


def test_only_where_it_is_asked_for_are_other_keys_surplus() -> None:
    mine, other = a_key(), a_key()
    gone = replace(a_key(), status=KeyStatus.REVOKED)
    wanted = [record_of(mine, "id")]
    assert list(difference(wanted, [mine, other, gone], at=LATER, surplus=True).surplus) == [other]
    assert not difference(wanted, [mine, other, gone], at=LATER)


def test_every_problem_of_a_file_is_reported(rules: KeyRules) -> None:
    lines: list[Any] = [a_line(), "{", a_line("sk_live_2", plan="gold"), a_line(), {"key": "sk_live_3", "name": "x"}]
    with pytest.raises(InvalidFile) as caught:
        records_of(a_file(*lines), line_rules(rules))
    assert [str(problem) for problem in caught.value.problems] == [
        "2: is not JSON",
        "3: unknown plan 'gold' (known: pro)",
        "4: hash: is the same as on line 1",
        "5: key: is the key itself, which does not belong in a file: write its hash",
    ]


def test_an_expired_key_is_not_a_problem_of_a_file(rules: KeyRules) -> None:
    [record] = records_of(a_file(a_line(expires_at="2024-01-31")), line_rules(rules))
    assert record.key.expires_at == 1_706_659_200_000_000


async def test_everything_is_one_transaction_with_its_audit_rows(store: SqliteStore) -> None:
    kept, changed, other = a_key(), a_key(last_used_at=3), a_key()
    await store.keys.add([kept, changed, other], actor=ANN)
    new, wanted = a_key(), replace(changed, name="Renamed", last_used_at=None)
    records = [record_of(each, "id") for each in (kept, wanted, new)]
    planned = await store.records.difference(records, at=LATER, surplus=True)
    assert [len(planned.added), len(planned.changed), len(planned.surplus)] == [1, 1, 1]

    def refuse(found: Difference) -> None:
        assert found == planned
        raise InvalidFile([])

    with pytest.raises(InvalidFile):
        await store.records.apply(records, at=LATER, actor=BOB, surplus=True, allowed=refuse)
    assert await ids(store, "active") == {kept.id, changed.id, other.id}
    await store.records.apply(records, at=LATER, actor=BOB, surplus=True, allowed=lambda found: None)
    assert (await ids(store, "active"), await ids(store, "revoked")) == ({kept.id, changed.id, new.id}, {other.id})
    rows = [row for row in await store.audit.rows(AuditFilter()) if row.actor == "bob"]
    assert {(row.action, row.key_id) for row in rows} == {
        ("import", new.id),
        ("change", changed.id),
        ("revoke", other.id),
    }
    assert (await store.audit.verify()).problem is None
    assert not await store.records.difference(records, at=LATER, surplus=True)


async def test_a_mirror_has_the_keys_of_the_file_and_no_others(store: SqliteStore) -> None:
    first, second, gone = a_key("s1"), a_key("s2"), a_key("s3")
    await store.records.mirror([record_of(each, "id") for each in (first, second, gone)], at=NOW_US, actor=ANN)
    await store.usage.touch({first.id: used_at(NOW_US)})
    before = store.keys.generation() or await store.keys.read_generation()
    # The two have exchanged their hashes.
    swapped = [replace(first, digest=second.digest), replace(second, digest=first.digest)]
    await store.records.mirror([record_of(each, "id") for each in swapped], at=LATER, actor=ANN)
    assert await ids(store) == {first.id, second.id}
    found = await store.keys.find({digest_of("s2"): "sha256"})
    assert found is not None
    assert (found.id, found.last_used_at) == (first.id, NOW_US)
    assert await store.keys.read_generation() != before
    actions = [(row.action, row.key_id) for row in await store.audit.rows(AuditFilter(limit=3))]
    assert set(actions) == {("change", first.id), ("change", second.id), ("revoke", gone.id)}
    unchanged = await store.keys.read_generation()
    await store.records.mirror([record_of(each, "id") for each in swapped], at=LATER, actor=ANN)
    assert await store.keys.read_generation() == unchanged
