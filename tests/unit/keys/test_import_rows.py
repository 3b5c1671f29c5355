"""The fast path from a line to a row gives the same result as the thorough one, and leaves the store intact."""

import itertools
import json
import sqlite3
from contextlib import closing
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from sidecar.core.apikey import ALPHABET, ForeignKeys, Hasher, KeyFormat
from sidecar.core.policy import Catalogue, Scope
from sidecar.keys.lifecycle import new_ids
from sidecar.keys.ports import Actor, AuditFilter, KeyFilter
from sidecar.keys.records import NewRow, new_row
from sidecar.keys.transfer.fields import InvalidLine, LineRules, Origin
from sidecar.keys.transfer.formats import BadLine, Entry
from sidecar.keys.transfer.importer import InvalidFile, Rows, import_keys
from sidecar.keys.validation import KeyRules
from sidecar.store.store import SqliteStore
from tests.unit.keys.making import ANN, NOW_US, a_key
from tests.unit.keys.test_importing import a_file, a_line, hash_of, taken_in

FOREIGN = (ForeignKeys(prefix="sk_live_"), ForeignKeys(prefix="sk_", hash="hmac-sha256", pepper=b"salt"))
ODD: tuple[Any, ...] = (
    None,
    "",
    " ",
    "é",
    "\ud800",
    0,
    1,
    True,
    1.0,
    [],
    [1],
    {},
    {"a": 1},
    "a" * 201,
    "x/y",
    "\x7f",
    '"\\',
)
FIELDS: dict[str, tuple[Any, ...]] = {
    "hash": (hash_of("a"), hash_of("b").upper(), "q" * 64, "sk_live_51HbTqYx2", "A" * 43, " " * 64),
    "name": ("Old key", 'Ünï "quoted"', "a\tb"),
    "prefix": (
        "sk_live_1",
        "sk_2",
        "hv_live_3",
        "pk_",
        "s" * 32,
        "sk_" + "-" * 21,
        "sk_" + "-" * 22,
        "sk_live_" + "a" * 22,
    ),
    "tenant": ("acme", "*", "ac me"),
    "environment": ("live", "test", "*", "moon"),
    "scopes": (["streams:read"], ["streams:read", "streams:read"], ["nothing"], "streams:read", ["*"]),
    "plan": ("pro", "gold"),
    "quotas": ({"general": 1}, {"general": True}, {"general": 1.0}, {"general": 0}, {"general": "1"}, {"none": 1}),
    "metadata": ({"user_id": "7"}, {"ü": "7"}, {"a": "b\n"}, {"a": 'ü "quoted"'}, {"a": "b" * 1025}, {"a": ["b"]}),
    "expires_at": ("2030-01-31", "2020-01-31", "9999-12-31T23:59:59-01:00", "soon"),
    "created_at": ("2024-05-01T12:00:00+02:00", "2999-01-01", "1969-01-01"),
    "id": ("key_" + "7" * 20, "key_7"),
    "algorithm": ("sha256", "md5"),
    "enabled": (True, False, "TRUE"),
}
LINES = some.fixed_dictionaries({}, optional={name: some.sampled_from(values + ODD) for name, values in FIELDS.items()})
MOSTLY_FIT = some.fixed_dictionaries(
    {"hash": some.just(hash_of("a")), "name": some.just("Old")},
    optional={
        **{name: some.sampled_from(values[:2]) for name, values in FIELDS.items() if name not in ("hash", "name")},
        **{name: some.sampled_from(FIELDS[name] + ODD) for name in ("quotas", "metadata", "prefix", "scopes")},
    },
)


def line_rules() -> LineRules:
    catalogue = Catalogue([Scope(name="streams:read")])
    rules = KeyRules(
        format=KeyFormat(),
        environments={"live": "hv_live_", "test": "hv_test_"},
        prefix_length=12,
        default_scopes=("streams:read",),
        catalogue=catalogue,
        plans={"pro"},
        quotas={"general"},
    )
    algorithms = Hasher((), FOREIGN).algorithms
    origin = Origin(own=rules.environments, foreign=FOREIGN, algorithms=algorithms)
    return LineRules(rules, origin, now=NOW_US, actor=Actor(name='ann "é"'), new_id=lambda: "key_" + "0" * 20)


def outcome(make: Any, fields: dict[str, Any]) -> NewRow | tuple[str, ...]:
    try:
        row: NewRow = make(fields)
    except InvalidLine as error:
        return error.problems
    return row


@given(some.lists(LINES | MOSTLY_FIT, min_size=2, max_size=8))
def test_a_line_like_one_before_it_is_judged_as_if_it_were_the_first(lines: list[dict[str, Any]]) -> None:
    rules = line_rules()
    rows = Rows(rules)
    for fields in (*lines, *lines):
        assert outcome(rows.row_of, fields) == outcome(lambda given: new_row(rules.key_of(given)), fields)


def test_every_single_change_of_a_good_line_is_judged_as_if_it_were_the_first() -> None:
    rules, good = line_rules(), {"hash": hash_of("a"), "name": "Old", "prefix": "sk_live_1"}
    rows = Rows(rules)
    rows.row_of(good)
    for name, values in FIELDS.items():
        for before, value in itertools.product(({}, {name: values[0]}), values + ODD):
            outcome(rows.row_of, {**good, **before})
            fields = {**good, name: value}
            assert outcome(rows.row_of, fields) == outcome(lambda given: new_row(rules.key_of(given)), fields), fields


@given(some.dictionaries(some.sampled_from([*FIELDS, "other"]), some.sampled_from([*ODD, "a", {"b": "c"}]), max_size=4))
def test_a_line_is_read_as_json_reads_it(fields: dict[str, Any]) -> None:
    [*found] = a_file(json.dumps(fields))
    if "other" in fields:
        assert isinstance(found[0], BadLine)
    else:
        assert [entry.fields for entry in found if isinstance(entry, Entry)] == [fields]


@pytest.mark.parametrize(
    "line",
    [
        '{"hash": "a", "name": "b", "name": "c"}',
        '{"plan": 1, "plan": 1}',
        '{"name": "b", "metadata": {"a": "b", "a": "c"}}',
        '{"scopes": [1, 2], "scopes": ["b"]}',
        '{"quotas": {"a": 1, "a": 2}}',
        '{"name": "a\\"", "name": "b"}',
    ],
)
def test_a_repeated_name_is_not_a_field(line: str) -> None:
    rules = line_rules()
    [found] = a_file(line)
    if isinstance(found, Entry):
        with pytest.raises(InvalidLine):
            rules.key_of(found.fields)
    else:
        assert found.problem.endswith("occurs twice")


def test_ids_hold_every_letter_equally_often_and_no_two_are_alike() -> None:
    ids = new_ids(lambda count: bytes(range(256)) * (count // 256))
    letters = "".join(next(ids)[4:] for _ in range(198))
    assert {letters.count(letter) for letter in ALPHABET} <= {63, 64}
    source = itertools.count()
    ids = new_ids(lambda count: sha256(bytes([next(source)])).digest() * (count // 32))
    assert next(ids) != next(ids)


def schema(path: str) -> set[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return set(connection.execute("SELECT name, sql FROM sqlite_schema"))


async def test_an_import_changes_no_schema_so_other_processes_keep_working(store: SqliteStore, path: str) -> None:
    """Each statement of another process is prepared anew once the schema has changed, and may fail meanwhile."""

    def version() -> object:
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute("PRAGMA schema_version").fetchone()

    before = version()
    file = a_file(*(a_line(f"sk_live_{number}", id=f"key_{number:020}") for number in range(900_000, 900_010)))
    await taken_in(store, file, line_rules())
    assert version() == before


@pytest.mark.parametrize("stored", [0, 3, 30])
async def test_the_store_has_its_indexes_and_triggers_after_an_import(
    store: SqliteStore, path: str, stored: int
) -> None:
    before = schema(path)
    await store.keys.add([a_key() for _ in range(stored + 1)], actor=ANN)
    file = a_file(*(a_line(f"sk_live_{number}", id=f"key_{number:020}") for number in range(900_000, 900_010)))
    await taken_in(store, file, line_rules())
    assert schema(path) == before
    assert len(await store.keys.list(KeyFilter(search="old key", environment="live"))) == 10
    assert len(await store.audit.rows(AuditFilter(action="import"))) == 10
    assert (await store.audit.verify()).problem is None


async def test_a_key_that_is_already_stored_is_reported_even_on_a_late_line(store: SqliteStore, path: str) -> None:
    before = schema(path)
    await store.keys.add([a_key("sk_live_4500")], actor=ANN)
    lines = [a_line(f"sk_live_{number}", id=f"key_{number:020}") for number in range(1_000_000, 1_020_500)]
    file = a_file(*lines, a_line("sk_live_4500"))
    with pytest.raises(InvalidFile) as caught:
        async with store.imports.intake(at=NOW_US, actor=ANN) as intake:
            await import_keys(file, line_rules(), intake, lambda _: None)
    assert [problem.line for problem in caught.value.problems] == [20_501]
    assert schema(path) == before
    assert len(await store.keys.list(KeyFilter())) == 1
