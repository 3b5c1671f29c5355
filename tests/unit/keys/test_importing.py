"""Files of hashes become keys: every line is looked at, and all go in or none."""

import base64
import io
import json
import secrets
from hashlib import sha256
from typing import Any

import pytest

from sidecar.core.apikey import ForeignKeys, Hasher
from sidecar.keys.lifecycle import new_id
from sidecar.keys.ports import Actor, AuditFilter, KeyFilter
from sidecar.keys.transfer.fields import LineRules, Origin, moment
from sidecar.keys.transfer.formats import FileFormat, KeyFile
from sidecar.keys.transfer.importer import InvalidFile, NoIntake, import_keys
from sidecar.keys.validation import KeyRules
from sidecar.store.store import SqliteStore
from tests.unit.keys.making import NOW_US, a_key, digest_of

ANN = Actor(name="ann", source="here")
PLAIN = ForeignKeys(prefix="sk_live_")
SALTED = ForeignKeys(prefix="sk_old_", hash="sha256-pepper-first", pepper=b"salt")


def hash_of(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def a_line(text: str = "sk_live_1", **changes: Any) -> dict[str, Any]:
    return {"hash": hash_of(text), "prefix": "sk_live_ab", "name": "Old key", **changes}


def line_rules(rules: KeyRules, *foreign: ForeignKeys, hash_name: Any = None) -> LineRules:
    foreign = foreign or (PLAIN,)
    algorithms = Hasher((), foreign).algorithms
    origin = Origin(own=rules.environments, foreign=foreign, algorithms=algorithms, hash=hash_name)
    return LineRules(rules, origin, now=NOW_US, actor=ANN, new_id=lambda: new_id(secrets.randbelow))


def a_file(*lines: dict[str, Any] | str, form: FileFormat = "jsonl") -> KeyFile:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    return KeyFile(io.BytesIO(text.encode("utf-8", "surrogateescape")), form)


async def taken_in(store: SqliteStore, file: KeyFile, rules: LineRules) -> int:
    async with store.imports.intake(at=NOW_US, actor=ANN) as intake:
        return await import_keys(file, rules, intake, lambda _: None)


async def problems_in(file: KeyFile, rules: LineRules) -> list[str]:
    with pytest.raises(InvalidFile) as caught:
        await import_keys(file, rules, NoIntake(), lambda _: None)
    return [str(problem) for problem in caught.value.problems]


async def test_a_line_becomes_a_key_with_all_its_fields(store: SqliteStore, rules: KeyRules) -> None:
    more = {
        "tenant": "acme",
        "environment": "test",
        "scopes": ["streams:write"],
        "plan": "pro",
        "quotas": {"general": 5},
    }
    times = {"created_at": "2024-05-01T12:00:00+02:00", "expires_at": "2030-01-31", "metadata": {"user_id": "ü 7"}}
    assert await taken_in(store, a_file(a_line(**more, **times)), line_rules(rules)) == 1
    key = await store.keys.find({digest_of("sk_live_1"): "sha256"})
    assert key is not None
    assert (key.tenant, key.environment, key.scopes, key.plan) == ("acme", "test", ("streams:write",), "pro")
    assert (dict(key.quotas), dict(key.metadata)) == ({"general": 5}, {"user_id": "ü 7"})
    assert (key.prefix, key.name, key.created_by) == ("sk_live_ab", "Old key", "ann")
    assert (key.created_at, key.expires_at) == (1_714_557_600_000_000, 1_896_048_000_000_000)


async def test_csv_has_the_same_content(store: SqliteStore, rules: KeyRules) -> None:
    heading = "\ufeffhash,prefix,name,tenant,scopes,quotas,metadata"
    structured = 'streams:read streams:write,general=5,"{""a"": ""b""}"'
    row = f'{hash_of("sk_live_1")},sk_live_ab,"Two\nlines, no",acme,{structured}'
    problems = await problems_in(a_file(heading, row, "1,2", form="csv"), line_rules(rules))
    assert problems == ["2: a name has 1 to 200 printable characters", "4: has 2 cells, but the header row has 7"]
    file = a_file(heading, row.replace("Two\nlines, no", "One, line"), form="csv")
    await taken_in(store, file, line_rules(rules))
    [key] = await store.keys.list(KeyFilter())
    assert (key.name, key.scopes, dict(key.quotas), dict(key.metadata)) == (
        "One, line",
        ("streams:read", "streams:write"),
        {"general": 5},
        {"a": "b"},
    )


SPREADSHEETS = {
    "semicolons": "hash;prefix;name;tenant\n{};sk_live_ab;A, B;acme\n",
    "semicolons, and a comma in a name of the heading": '"hash";"prefix";"name";"tenant"\r\n{};sk_live_ab;"A, B";acme',
    "tabs": "hash\tprefix\tname\ttenant\n{}\tsk_live_ab\tA, B\tacme\n",
    "a line that names the separator": "sep=;\r\nhash;prefix;name;tenant\r\n{};sk_live_ab;A, B;acme\r\n",
    "empty lines and rows": '\n\nhash,prefix,name,tenant\n\n{},sk_live_ab,"A, B",acme\n,,,\n , ,,\n\n',
    "spaces around cells": "Hash ; PREFIX;name ; tenant\n {} ; sk_live_ab ; A, B; acme\n",
}


@pytest.mark.parametrize("text", SPREADSHEETS.values(), ids=SPREADSHEETS)
async def test_csv_is_read_as_spreadsheets_write_it(store: SqliteStore, rules: KeyRules, text: str) -> None:
    file = KeyFile(io.BytesIO(text.format(hash_of("sk_live_1")).encode()), "csv")
    assert await taken_in(store, file, line_rules(rules)) == 1
    [key] = await store.keys.list(KeyFilter())
    assert (key.name, key.prefix, key.tenant) == ("A, B", "sk_live_ab", "acme")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("hash,name\n".encode("utf-16"), "1: is not UTF-8, but maybe UTF-16"),
        (b"hash,name\rx,y\rz,a\r", "1: its lines end in CR alone"),
        (b"hash,name\n%b,J\xfcrgen\n" % hash_of("a").encode(), "2: is not UTF-8"),
    ],
    ids=["UTF-16", "CR", "Latin-1"],
)
async def test_csv_that_cannot_be_read_says_what_to_save_it_as(rules: KeyRules, content: bytes, problem: str) -> None:
    [told] = await problems_in(KeyFile(io.BytesIO(content), "csv"), line_rules(rules))
    assert told.startswith(problem)


@pytest.mark.parametrize(
    ("written", "at"),
    [
        (1_896_048_000, 1_896_048_000_000_000),
        ("1896048000", 1_896_048_000_000_000),
        (1_896_048_000.25, 1_896_048_000_250_000),
        ("1896048000.1234567", 1_896_048_000_123_456),
        ("1896048000001", 1_896_048_000_001_000),
        ("1896048000000001", 1_896_048_000_000_001),
        ("2030-01-31 00:00:00+00", 1_896_048_000_000_000),
    ],
)
def test_the_unit_of_a_unix_time_follows_from_its_digits(written: str | float, at: int) -> None:
    problems: list[str] = []
    assert moment(written, "expires_at", problems) == at
    assert not problems


async def test_enabled_is_a_word_in_csv(store: SqliteStore, rules: KeyRules) -> None:
    words = dict.fromkeys(("TRUE", "Yes", "1", "active", "on"), "active")
    words |= dict.fromkeys(("FALSE", "no", "0", "Inactive", "off"), "disabled")
    rows = [f"{hash_of(f'sk_live_{word}')},sk_live_ab,{word},{word}" for word in words]
    await taken_in(store, a_file("hash,prefix,name,enabled", *rows, form="csv"), line_rules(rules))
    assert {key.name: key.status for key in await store.keys.list(KeyFilter())} == words


async def test_unknown_names_in_a_csv_heading_are_one_problem(rules: KeyRules) -> None:
    [problem] = await problems_in(a_file("hash,hahs,name,nmae", form="csv"), line_rules(rules))
    assert problem.startswith("1: unknown name in the header row: columns 2, 4 (known: id, hash")


@pytest.mark.parametrize("written", ["hex", "HEX", "base64", "unpadded", "url"])
async def test_a_hash_is_hex_or_base64(store: SqliteStore, rules: KeyRules, written: str) -> None:
    digest = digest_of("sk_live_1")
    text = {
        "hex": digest.hex(),
        "HEX": digest.hex().upper(),
        "base64": base64.b64encode(digest).decode(),
        "unpadded": base64.b64encode(digest).decode().rstrip("="),
        "url": base64.urlsafe_b64encode(digest).decode(),
    }[written]
    await taken_in(store, a_file(a_line(hash=text)), line_rules(rules))
    assert await store.keys.find({digest: "sha256"}) is not None


@pytest.mark.parametrize(
    "secret",
    ["sk_live_51HbTqYx2", "hv_live_dWSCOLa0OrgFhjjo1BhAOBc6K9wz0nBsGhV", "sk_live_51H8xWm1CvXbTqYxZ2sLp0RtUeKd7Jf9GaB"],
)
async def test_a_key_itself_is_refused_and_never_repeated(rules: KeyRules, secret: str) -> None:
    problems = await problems_in(a_file(a_line(hash=secret), a_line(prefix=secret + "x" * 22)), line_rules(rules))
    assert "if it is the key itself, it does not belong in a file" in problems[0]
    assert problems[1].startswith("2: prefix: ")
    assert secret not in "".join(problems)


async def test_a_secret_in_a_wrong_column_is_not_repeated(rules: KeyRules) -> None:
    secret = "dWSCOLa0OrgFhjjo1BhAOBc6K9wz0nBsGhV"
    [problem] = await problems_in(a_file(a_line(plan=secret)), line_rules(rules))
    assert "unknown plan" in problem
    assert secret not in problem
    header = await problems_in(a_file(f"{secret},{hash_of('x')}", form="csv"), line_rules(rules))
    assert not any(secret in problem or hash_of("x") in problem for problem in header)


WRONG = {
    "no JSON": ("{", "1: is not JSON"),
    "a list": ("[]", "1: is not a JSON object: each line holds one key"),
    "not UTF-8": ("\udcff", "1: is not UTF-8"),
    "a deep one": ("[" * 60_000, "1: is not JSON"),
    "a long one": ("x" * 70_000, "1: is longer than 65536 bytes"),
    "an unknown field": (a_line(hahs="x"), "1: unknown field 'hahs' (known: id, hash"),
    "a field twice": ('{"name": "a", "name": "b"}', "1: 'name' occurs twice"),
    "no name": ({"hash": hash_of("x")}, "1: name: is required"),
    "a number for text": (a_line(tenant=5), "1: tenant: must be a string, not a number"),
    "scopes of numbers": (a_line(scopes=[1]), "1: scopes: must be a list of strings"),
    "a quota of words": (a_line(quotas={"general": "5"}), "1: quotas: must map names"),
    "a boolean quota": (a_line(quotas={"general": True}), "1: quotas: must map names"),
    "metadata of numbers": (a_line(metadata={"a": 1}), "1: metadata: must map names"),
    "an unknown scope": (
        a_line(scopes=["streams:raed"]),
        "1: unknown scope 'streams:raed' (did you mean 'streams:read'?)",
    ),
    "a wrong time": (a_line(expires_at="soon"), "1: expires_at: is neither a date"),
    "a time out of range": (a_line(created_at="0001-01-01T00:00:00+23:00"), "1: created_at: is not in the past"),
    "a future birth": (a_line(created_at="2999-01-01"), "1: created_at: is not in the past"),
    "a past end": (a_line(expires_at="2020-01-01"), "1: the expiry is not in the future"),
    "a wrong id": (a_line(id="7"), "1: id: must be key_ and 20 letters or digits"),
    "an unknown algorithm": (a_line(algorithm="md5"), "1: algorithm: is unknown"),
    "an unloaded pepper": (
        a_line(algorithm="hmac-sha256:ab12cd34"),
        "1: algorithm: needs pepper ab12cd34, which is not",
    ),
    "a prefix nobody named": (
        a_line(prefix="pk_"),
        "1: prefix: no entry of keys.imported in the configuration matches it",
    ),
    "ours, without an algorithm": (
        a_line(prefix="hv_live_1"),
        "1: prefix: is that of keys issued here, which need their `algorithm`, as `sidecar keys export` writes it; for "
        "keys made elsewhere, add {prefix: hv_live_} to keys.imported",
    ),
    "the whole key as its prefix": (
        a_line("sk_live_Ab3-_x9Zq1WAb3-_x9Zq1W", prefix="sk_live_Ab3-_x9Zq1WAb3-_x9Zq1W"),
        "1: prefix: must be the first characters of the key, at most 100, and too few to guess the rest",
    ),
    "a prefix that no entry names": (
        a_line(prefix="zzz_abc"),
        "1: prefix: no entry of keys.imported in the configuration matches it, and the key would be refused: add "
        "{prefix: zzz_} to keys.imported",
    ),
    "ours, in letters that we do not use": (
        a_line(prefix="hv_live_a-b", algorithm="sha256"),
        "1: prefix: is that of keys issued here",
    ),
    "a prefix of another environment": (
        a_line(prefix="hv_test_1", environment="live"),
        "1: prefix: belongs to the env",
    ),
    "a half surrogate": (
        '{"hash": "' + hash_of("x") + '", "prefix": "sk_live_", "name": "\\ud800"}',
        "1: a name has 1 to",
    ),
}


@pytest.mark.parametrize(("line", "expected"), WRONG.values(), ids=WRONG)
async def test_an_error_in_a_line_is_reported_with_its_number(
    rules: KeyRules, line: dict[str, Any] | str, expected: str
) -> None:
    [problem] = await problems_in(a_file(line), line_rules(rules))
    assert problem.startswith(expected)


async def test_everything_that_is_wrong_with_a_line_is_told_at_once(rules: KeyRules) -> None:
    bad = {"hash": 5, "tenant": 5, "plan": "gold", "scopes": ["nope"], "quotas": {"general": "5"}, "expires_at": "soon"}
    assert [problem.partition(" (")[0] for problem in await problems_in(a_file(a_line(**bad)), line_rules(rules))] == [
        "1: hash: must be a string, not a number",
        "1: tenant: must be a string, not a number",
        "1: quotas: must map names to whole numbers",
        "1: expires_at: is neither a date",
        "1: unknown scope 'nope'",
        "1: unknown plan 'gold'",
    ]
    untyped = await problems_in(a_file(a_line(name=5, prefix=5, environment=[])), line_rules(rules))
    assert untyped == [
        "1: prefix: must be a string, not a number",
        "1: name: must be a string, not a number",
        "1: environment: must be a string, not a list",
    ]
    bare = await problems_in(a_file({"tenant": "a b"}), line_rules(rules))
    assert [problem[:17] for problem in bare] == ["1: hash: is requi", "1: name: is requi", "1: a tenant has 1"]
    rows = f'hash,name,quotas,metadata,enabled,plan\n{hash_of("a")},a,general:5,"{{""a"": 1, ""a"": 2}}",maybe,gold\n'
    assert [
        problem.partition(" (")[0] for problem in await problems_in(a_file(rows, form="csv"), line_rules(rules))
    ] == [
        "2: quotas: write name=limit, separated by spaces",
        "2: metadata: 'a' occurs twice",
        "2: enabled: write TRUE or FALSE",
        "2: unknown plan 'gold'",
    ]
    unknown = await problems_in(a_file(a_line(hahs="x", naem="y")), line_rules(rules))
    assert unknown[0].startswith("1: unknown fields 'hahs', 'naem' (known: id, hash")


async def test_every_bad_line_is_reported_and_nothing_is_imported(store: SqliteStore, rules: KeyRules) -> None:
    good = [a_line(f"sk_live_{number}") for number in range(2_500)]
    lines = [*good[:1_500], a_line("bad", plan="gold"), "", *good[1_500:], a_line("sk_live_7"), a_line(name="")]
    with pytest.raises(InvalidFile) as caught:
        await taken_in(store, a_file(*lines), line_rules(rules))
    assert [problem.line for problem in caught.value.problems] == [1_501, 2_503, 2_504]
    assert [str(problem) for problem in caught.value.problems][1] == "2503: hash: is the same as on line 8"
    assert await store.keys.list(KeyFilter()) == []
    assert await store.audit.rows(AuditFilter()) == []
    assert (await store.audit.verify()).problem is None


async def test_keys_that_are_stored_already_are_named_by_line(store: SqliteStore, rules: KeyRules) -> None:
    key = a_key("sk_live_1")
    await store.keys.add([key], actor=ANN)
    file = a_file(a_line("sk_live_2"), a_line("sk_live_1"))
    with pytest.raises(InvalidFile) as caught:
        await taken_in(store, file, line_rules(rules))
    assert [str(problem) for problem in caught.value.problems] == [f"2: hash: is stored already, as key {key.id}"]
    assert await store.keys.list(KeyFilter()) == [key]


async def test_each_key_has_its_audit_row_and_is_found_and_noticed(store: SqliteStore, rules: KeyRules) -> None:
    before = await store.keys.read_generation()
    file = a_file(*(a_line(f"sk_live_{number}", name=f"Robot {number}") for number in range(3_000)))
    assert await taken_in(store, file, line_rules(rules)) == 3_000
    assert await store.keys.read_generation() != before
    rows = await store.audit.rows(AuditFilter(action="import", limit=5_000))
    assert len({row.key_id for row in rows}) == 3_000
    assert {(row.actor, row.source, row.before) for row in rows} == {("ann", "here", None)}
    assert (await store.audit.verify()).problem is None
    assert [key.name for key in await store.keys.list(KeyFilter(search="robot 2999"))] == ["Robot 2999"]


async def test_keys_added_after_an_import_are_noticed_and_searched_as_before(
    store: SqliteStore, rules: KeyRules
) -> None:
    await taken_in(store, a_file(a_line()), line_rules(rules))
    with pytest.raises(InvalidFile):
        await taken_in(store, a_file(a_line()), line_rules(rules))
    before = await store.keys.read_generation()
    await store.keys.add([a_key(name="Latecomer")], actor=ANN)
    assert await store.keys.read_generation() != before
    assert [key.name for key in await store.keys.list(KeyFilter(search="latecomer"))] == ["Latecomer"]


async def test_the_prefix_determines_how_a_key_was_hashed(rules: KeyRules, store: SqliteStore) -> None:
    foreign = (PLAIN, SALTED)
    salted = sha256(b"saltsk_old_1").hexdigest()
    await taken_in(store, a_file(a_line(), a_line(hash=salted, prefix="sk_old_1")), line_rules(rules, *foreign))
    for text in ("sk_live_1", "sk_old_1"):
        assert await store.keys.find(Hasher((), foreign).candidates(text)) is not None
    assert await store.keys.find(Hasher((), [PLAIN]).candidates("sk_old_1")) is None


async def test_without_a_prefix_one_entry_is_enough_and_two_need_an_algorithm(rules: KeyRules) -> None:
    line = {"hash": hash_of("x"), "name": "n"}
    [problem] = await problems_in(a_file(line), line_rules(rules, PLAIN, SALTED))
    assert "several entries of keys.imported match it" in problem
    key = line_rules(rules, PLAIN, SALTED, hash_name="sha256-pepper-first").key_of(line)
    assert (key.prefix, key.algorithm) == ("sk_old_", SALTED.algorithm)


def test_foreign_hashes_are_what_their_names_say() -> None:
    # RFC 2104, spelled out.
    inner, outer = (bytes(byte ^ pad for byte in b"salt".ljust(64, b"\0")) for pad in (0x36, 0x5C))
    expected = {
        "sha256-pepper-first": sha256(b"saltkey").digest(),
        "sha256-pepper-last": sha256(b"keysalt").digest(),
        "hmac-sha256": sha256(outer + sha256(inner + b"key").digest()).digest(),
    }
    made = {name: ForeignKeys(prefix="", hash=name, pepper=b"salt").digest(b"key") for name in expected}  # type: ignore[arg-type]
    assert made == expected


def test_no_representation_reveals_an_imported_pepper() -> None:
    assert "salt" not in repr(SALTED) + repr(Hasher((), [SALTED])) + SALTED.algorithm
