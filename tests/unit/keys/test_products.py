"""Lists of other products become keys, and the keys in such lists are hashed before anything else."""

import io
import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import pytest

from sidecar.core.apikey import ForeignKeys, Hasher, Pepper
from sidecar.keys.transfer.fields import InvalidLine, LineRules, Origin
from sidecar.keys.transfer.formats import BadLine, Entry, KeyFile
from sidecar.keys.transfer.plaintexts import Plaintexts, hashed
from sidecar.keys.transfer.products import LeftOut, Product, product_entries
from sidecar.keys.validation import KeyRules
from tests.unit.keys.making import NOW_US
from tests.unit.keys.test_importing import ANN

KEY = "k3pzXq81LmVtR0sWcYb5NdHe"
SHA = sha256(KEY.encode()).hexdigest()
LISTS: tuple[tuple[Product, Any, dict[str, Any]], ...] = (
    (
        "kong",
        {"data": [{"key": KEY, "consumer": {"id": "c-1"}, "created_at": 1704067200, "ttl": None}], "next": None},
        {"name": "c-1", "created_at": 1704067200, "metadata": {"consumer": "c-1"}},
    ),
    (
        "kong",
        {
            "consumers": [
                {"username": "ann", "custom_id": "7", "keyauth_credentials": [{"key": KEY, "tags": ["a", "b"]}]}
            ]
        },
        {"name": "ann", "metadata": {"custom_id": "7", "tags": "a,b"}},
    ),
    (
        "aws",
        f"Name,key,description,Enabled,usageplanIds,Other\nMobile,{KEY},A key,FALSE,c7y23b,x\n",
        {"name": "Mobile", "enabled": False, "metadata": {"description": "A key", "usage_plans": "c7y23b"}},
    ),
    (
        "aws",
        {"items": [{"id": "a1", "value": KEY, "name": "Mobile", "enabled": True, "createdDate": 1704067200}]},
        {"name": "Mobile", "enabled": True, "created_at": 1704067200, "metadata": {"aws_id": "a1"}},
    ),
    (
        "apisix",
        {
            "total": 2,
            "list": [
                {"key": "/apisix/consumers/bob", "value": {"username": "bob", "plugins": {"basic-auth": {}}}},
                {
                    "key": "/apisix/consumers/jack/credentials/one",
                    "value": {"id": "one", "plugins": {"key-auth": {"key": KEY}}, "create_time": 1704067200},
                },
            ],
        },
        {"name": "jack one", "created_at": 1704067200, "metadata": {"consumer": "jack"}},
    ),
    (
        "tyk",
        {"key": KEY, "alias": "Mobile", "expires": 0, "is_inactive": True, "org_id": "o1"},
        {"name": "Mobile", "enabled": False, "metadata": {"org_id": "o1"}},
    ),
    (
        "unkey",
        {
            "data": [
                {
                    "keyId": "key_1",
                    "start": "k3p",
                    "plaintext": KEY,
                    "name": "Mobile",
                    "enabled": True,
                    "createdAt": 1704067200000,
                    "expires": 4070908800000,
                    "meta": {"seats": 3},
                    "identity": {"externalId": "acme"},
                    "permissions": ["streams:read"],
                }
            ]
        },
        {
            "name": "Mobile",
            "enabled": True,
            "created_at": 1704067200000,
            "expires_at": 4070908800000,
            "scopes": ["streams:read"],
            "metadata": {"seats": "3", "unkey_id": "key_1", "external_id": "acme"},
        },
    ),
)


def entries_of(document: Any, product: Product, left_out: LeftOut | None = None) -> Iterator[Entry | BadLine]:
    text = document if isinstance(document, str) else json.dumps(document)
    return product_entries(io.BytesIO(text.encode()), product, left_out or LeftOut())


def plaintexts(rules: KeyRules, *foreign: ForeignKeys, pepper: bytes | None = None) -> tuple[Plaintexts, LineRules]:
    hasher = Hasher((Pepper.of(pepper),) if pepper else (), foreign)
    origin = Origin(own=rules.environments, foreign=foreign, algorithms=hasher.algorithms)
    lines = LineRules(rules, origin, now=NOW_US, actor=ANN, new_id=lambda: "key_" + "0" * 20)
    return Plaintexts(rules, origin, hasher), lines


@pytest.mark.parametrize(
    ("product", "document", "told"), LISTS, ids=[f"{one[0]}-{place}" for place, one in enumerate(LISTS)]
)
def test_a_list_of_another_product_becomes_keys_that_the_gate_finds(
    rules: KeyRules, product: Product, document: Any, told: dict[str, Any]
) -> None:
    plain, lines = plaintexts(rules, ForeignKeys(prefix=""))
    [raw] = entries_of(document, product)
    assert isinstance(raw, Entry)
    assert {**told, "key": KEY} == raw.fields
    [entry] = hashed([raw], plain)
    assert isinstance(entry, Entry)
    assert KEY not in repr(entry)
    key = lines.key_of(entry.fields)
    assert (key.digest.hex(), key.prefix, key.status) == (
        SHA,
        "k3pz",
        "disabled" if told.get("enabled") is False else "active",
    )


def of_kong(**more: Any) -> dict[str, Any]:
    return {"consumers": [{"username": "ann", "keyauth_credentials": [{"key": KEY, "id": "1"}], **more}]}


LEFT: tuple[tuple[Product, Any, list[str]], ...] = (
    (
        "unkey",
        [
            {"keyId": "1", "plaintext": KEY, "credits": None, "ratelimits": [], "lastUsedAt": 1},
            {"keyId": "2", "plaintext": KEY, "credits": {"remaining": 5}, "ratelimits": [{"limit": 9}]},
            {"keyId": "3", "plaintext": KEY, "credits": {"remaining": 5}, "identity": {"id": "i", "ratelimits": [1]}},
        ],
        [
            "2: 2 keys have `credits`, which is not imported",
            "2: 1 key has `ratelimits`, which is not imported",
            "3: 1 key has `identity.ratelimits`, which is not imported",
        ],
    ),
    (
        "kong",
        of_kong(acls=[{"group": "gold"}], jwt_secrets=[], plugins=[{"name": "rate-limiting"}]),
        [
            "1: 1 key has `consumer.acls`, which is not imported",
            "1: 1 key has `consumer.plugins`, which is not imported",
        ],
    ),
    (
        "kong",
        {"consumers": [{"username": "bob", "jwt_secrets": [{"key": "x"}]}, {"username": "eve"}]},
        ["0: 1 consumer is left out: their credentials are no API keys"],
    ),
    (
        "aws",
        [{"value": KEY, "name": "a", "stageKeys": ["x/prod"], "tags": {"team": "a"}, "lastUpdatedDate": 1}],
        ["1: 1 key has `stageKeys`, which is not imported", "1: 1 key has `tags`, which is not imported"],
    ),
    ("aws", f"Name,key,Team\nA,{KEY},\nB,{KEY},x\n", ["3: 1 key has `team`, which is not imported"]),
    (
        "apisix",
        [
            {
                "value": {
                    "username": "a",
                    "group_id": "g",
                    "plugins": {"key-auth": {"key": KEY}, "limit-count": {"n": 1}},
                }
            },
            {"value": {"username": "b", "plugins": {"jwt-auth": {"key": "x"}}}},
            {"value": {"username": "c"}},
        ],
        [
            "1: 1 key has `group_id`, which is not imported",
            "1: 1 key has `plugins.limit-count`, which is not imported",
            "0: 1 consumer is left out: their credentials are no API keys",
        ],
    ),
    (
        "tyk",
        {
            "key": KEY,
            "alias": "a",
            "rate": 1000,
            "per": 60,
            "quota_max": -1,
            "allowance": 1000,
            "hmac_enabled": False,
            "access_rights": {"api": {"api_id": "api"}},
            "basic_auth_data": {"password": "", "hash_type": ""},
        },
        ["1: 1 key has `rate`, which is not imported", "1: 1 key has `access_rights`, which is not imported"],
    ),
    (
        "unkey",
        [{"keyId": "1", "plaintext": KEY, **{f"{KEY}{place}": 1 for place in range(21)}}],
        [
            *["1: 1 key has `k3pzXq81LmVt…`, which is not imported"] * 20,
            "0: 1 other field of its keys is not imported either",
        ],
    ),
)


@pytest.mark.parametrize(
    ("product", "document", "notes"), LEFT, ids=[f"{one[0]}-{place}" for place, one in enumerate(LEFT)]
)
def test_what_a_key_here_cannot_have_is_counted_with_its_first_key(
    product: Product, document: Any, notes: list[str]
) -> None:
    left_out = LeftOut()
    for entry in entries_of(document, product, left_out):
        assert isinstance(entry, Entry)
    assert [f"{first}: {note}" for first, note in left_out.notes()] == notes


REFUSED: tuple[tuple[Product, Any, str], ...] = (
    ("kong", {"data": [{"key": KEY, "ttl": 60}]}, "1: ttl: does not say when this key expires"),
    ("kong", "{", "1: from here on, the file is not JSON"),
    ("aws", f"name,value\nMobile,{KEY}\n", "1: the header row has no column 'key'"),
    ("aws", {"items": [{"name": "Mobile"}]}, "1: value: is missing: list keys with --include-values"),
    ("apisix", {"value": {"plugins": {"key-auth": {"key": "$secret://vault/1/a"}}}}, "1: key: is a reference"),
    ("tyk", {"alias": "Mobile"}, "1: add the key to each session object"),
    ("tyk", {"hash": "5ffb3f1d", "alias": "Mobile"}, "1: hash: is a Murmur hash"),
    ("unkey", {"data": [{"keyId": "key_1", "name": "Mobile"}]}, "1: plaintext: is missing"),
    ("kong", [KEY], "1: does not look like a key in such a list"),
    ("kong", {"consumers": [5, {"keyauth_credentials": [KEY]}]}, "1: does not look like a key in such a list"),
    ("apisix", {"list": [7]}, "1: does not look like a key in such a list"),
    ("apisix", {"list": [{"value": {"plugins": 1}}, None]}, "1: does not look like a key in such a list"),
    ("tyk", ["x"], "1: does not look like a key in such a list"),
)


@pytest.mark.parametrize(
    ("product", "document", "problem"), REFUSED, ids=[f"{one[0]}-{place}" for place, one in enumerate(REFUSED)]
)
def test_what_cannot_be_converted_is_named(product: Product, document: Any, problem: str) -> None:
    [found] = entries_of(document, product)
    assert str(found).startswith(problem)
    assert KEY not in str(found)


def test_one_odd_value_does_not_break_the_list(rules: KeyRules) -> None:
    credentials = [{"key": KEY + str(place), "id": "a", "created_at": at} for place, at in enumerate((1, "soon", 2))]
    assert [entry.line for entry in entries_of({"data": credentials}, "kong")] == [1, 2, 3]


def test_an_unset_time_of_tyk_is_none() -> None:
    [entry] = entries_of({"key": KEY, "alias": "A", "date_created": "0001-01-01T00:00:00Z"}, "tyk")
    assert isinstance(entry, Entry)
    assert "created_at" not in entry.fields


def test_a_prefix_that_the_key_does_not_begin_with_is_refused(rules: KeyRules) -> None:
    keys, _ = plaintexts(rules, ForeignKeys(prefix="k3p"))
    with pytest.raises(InvalidLine, match="prefix: is not what the key begins with"):
        keys.hashed({"key": KEY, "name": "a", "prefix": "k3p_"})


@pytest.mark.parametrize("key", ["", None])
def test_a_line_of_a_list_without_its_key_says_so(rules: KeyRules, key: str | None) -> None:
    keys, _ = plaintexts(rules, ForeignKeys(prefix="k3p"))
    entries = entries_of({"data": [{"key": key, "id": "a"}]}, "kong")
    assert [str(bad) for bad in hashed(entries, keys)] == ["1: key: is required"]


def test_pages_that_follow_each_other_are_one_list() -> None:
    pages = "\n".join(json.dumps({"data": [{"key": KEY + str(page), "consumer": None}]}) for page in range(3))
    assert [entry.line for entry in entries_of(pages, "kong")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("product", "page", "ends", "member"),
    [
        ("kong", {"data": [{"key": KEY}], "next": "/key-auths?offset=1"}, {"next": None}, "next"),
        ("aws", {"items": [{"value": KEY, "name": "a"}], "position": "p"}, {"position": ""}, "position"),
        ("aws", {"items": [{"value": KEY, "name": "a"}], "NextToken": "t"}, {"NextToken": None}, "NextToken"),
        (
            "unkey",
            {"data": [{"plaintext": KEY, "name": "a"}], "pagination": {"hasMore": True}},
            {"pagination": {}},
            "cursor",
        ),
    ],
)
def test_a_list_whose_last_pages_are_missing_is_refused(
    product: Product, page: dict[str, Any], ends: dict[str, Any], member: str
) -> None:
    last = {**page, **ends}
    assert all(isinstance(entry, Entry) for entry in entries_of(f"{json.dumps(page)}{json.dumps(last)}", product))
    *_, missing = entries_of(f"{json.dumps(last)}{json.dumps(page)}", product)
    assert str(missing) == f"2: the list goes on (`{member}`): append its further pages"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "key: must be"),
        (f'"{KEY}"', "key: must be"),
        (f"Bearer {KEY}", "key: must be"),
        (KEY + "\n", "key: must be"),
        ("ключ" * 8, "key: must be"),
        ("k" * 501, "key: must be"),
    ],
)
def test_text_that_no_client_can_send_as_a_key_is_refused_and_not_repeated(
    rules: KeyRules, text: str, problem: str
) -> None:
    plain, _ = plaintexts(rules, ForeignKeys(prefix=""))
    [found] = hashed([Entry(line=7, fields={"key": text, "name": "Old"})], plain)
    assert isinstance(found, BadLine)
    assert found.line == 7
    assert found.problem.startswith(problem)
    assert not text or text not in found.problem


def test_a_key_is_never_accepted_without_the_option(rules: KeyRules) -> None:
    file = KeyFile(io.BytesIO(f"name,key\nA,{KEY}\nB,{KEY}2\n".encode()), "csv")
    [found] = hashed(file, None)
    assert isinstance(found, BadLine)
    assert "--hash-plaintext" in found.problem
    assert KEY not in found.problem


def test_a_key_together_with_a_hash_is_refused(rules: KeyRules) -> None:
    plain, _ = plaintexts(rules, ForeignKeys(prefix=""))
    [found] = hashed([Entry(line=1, fields={"key": KEY, "hash": SHA, "name": "Old"})], plain)
    assert str(found) == "1: key: stands beside hash: give the key, or its hash"


def test_a_key_is_hashed_with_our_pepper_and_one_with_our_prefix_by_its_entry(rules: KeyRules) -> None:
    own = next(iter(rules.environments.values()))
    foreign = (ForeignKeys(prefix="sk_live_"), ForeignKeys(prefix=own, hash="hmac-sha256", pepper=b"old"))
    plain, lines = plaintexts(rules, *foreign, pepper=b"p" * 16)
    hasher = Hasher((Pepper.of(b"p" * 16),), foreign)
    for text in ("sk_live_" + KEY, own + "short-one"):
        key = lines.key_of(plain.hashed({"key": text, "name": "Old"}))
        assert hasher.candidates(text)[key.digest] == key.algorithm
        assert (key.algorithm == hasher.newest) == text.startswith("sk_live_")


def test_a_key_without_an_entry_of_keys_imported_is_refused(rules: KeyRules) -> None:
    plain, lines = plaintexts(rules, ForeignKeys(prefix="sk_live_"))
    with pytest.raises(InvalidLine) as caught:
        lines.key_of(plain.hashed({"key": KEY, "name": "Old"}))
    assert "keys.imported" in str(caught.value)
    assert KEY[:5] not in str(caught.value)
