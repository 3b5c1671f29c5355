import re
import secrets
from dataclasses import replace
from typing import Any

import pytest

from sidecar.core.apikey import Hasher, KeyFormat, Pepper
from sidecar.core.model import KeyStatus
from sidecar.core.policy import Catalogue
from sidecar.keys.lifecycle import Lifecycle, MissingPepper, check_peppers
from sidecar.keys.ports import KeyConflict, KeyFilter
from sidecar.keys.transitions import KeyChange
from sidecar.keys.validation import InvalidKey, KeyRules, NewKey, Violation
from sidecar.store.store import SqliteStore
from tests.unit.keys.making import ANN, NOW_US, Clock, a_key

ONE, TWO = Pepper.of(b"the first pepper of all"), Pepper.of(b"the second pepper")


def with_peppers(store: SqliteStore, *peppers: Pepper) -> Lifecycle:
    return Lifecycle(store.keys, Hasher(peppers), clock=Clock(), randbelow=secrets.randbelow)


async def test_an_issued_key_is_what_was_asked_for(lifecycle: Lifecycle, rules: KeyRules, store: SqliteStore) -> None:
    wanted = NewKey(
        name="CI, nightly",
        scopes=("streams:write", "streams:*", "streams:write"),
        tenant="acme",
        environment="test",
        plan="pro",
        quotas={"general": 5},
        metadata={"user_id": "7"},
        expires_at=NOW_US + 1,
    )
    issued = await lifecycle.issue(wanted, rules, actor=ANN)
    key, text = issued.key, issued.secret.text
    assert rules.format.check(text, ["hv_test_"])
    assert key.prefix == text[:12]
    assert re.fullmatch("key_[0-9A-Za-z]{20}", key.id)
    assert key.scopes == ("streams:write", "streams:*")
    assert (key.name, key.tenant, key.environment, key.plan) == ("CI, nightly", "acme", "test", "pro")
    assert (key.quotas, key.metadata, key.expires_at) == ({"general": 5}, {"user_id": "7"}, NOW_US + 1)
    assert (key.status, key.created_at, key.created_by) == (KeyStatus.ACTIVE, NOW_US, "ann")
    assert await store.keys.list(KeyFilter()) == [key]
    assert text not in repr(issued)


async def test_omitted_fields_have_the_configured_defaults(lifecycle: Lifecycle, rules: KeyRules) -> None:
    key = (await lifecycle.issue(NewKey(name="CI"), rules, actor=ANN)).key
    assert (key.environment, key.scopes, key.tenant, key.expires_at) == ("live", ("streams:read",), None, None)


async def test_a_key_without_a_plan_has_the_default_one(lifecycle: Lifecycle, rules: KeyRules) -> None:
    rules = replace(rules, plans={"free", "pro"}, default_plan="free")
    issued = await lifecycle.issue(NewKey(name="CI"), rules, actor=ANN)
    assert issued.key.plan == "free"
    assert (await lifecycle.issue(NewKey(name="CI", plan="pro"), rules, actor=ANN)).key.plan == "pro"


async def test_a_key_for_every_environment_has_the_first_one_s_prefix(lifecycle: Lifecycle, rules: KeyRules) -> None:
    issued = await lifecycle.issue(NewKey(name="CI", environment="*", tenant="*"), rules, actor=ANN)
    assert issued.key.environment == "*"
    assert issued.secret.text.startswith("hv_live_")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": "a\r\nSet-Cookie: x"}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"scopes": ("stream:read",)}, r"unknown scope 'stream:read' \(did you mean 'streams:read'\?\)"),
        ({"scopes": ("r*",)}, r"unknown scope 'r\*' \(known: "),
        ({"environment": "prod"}, "unknown environment 'prod'"),
        ({"plan": "prp"}, "did you mean 'pro'"),
        ({"quotas": {"genral": 1}}, "did you mean 'general'"),
        ({"quotas": {"general": 0}}, "limit of quota"),
        ({"quotas": {"general": 2**60}}, "limit of quota"),
        ({"expires_at": NOW_US}, "future"),
        ({"expires_at": 2**62}, "year 9999"),
        ({"tenant": ""}, "tenant"),
        ({"tenant": "a b"}, "tenant"),
        ({"tenant": "a/b"}, "tenant"),
        ({"tenant": "ä"}, "tenant"),
        ({"tenant": "a\n"}, "tenant"),
        ({"tenant": "x" * 201}, "tenant"),
        ({"metadata": {"a b": "c"}}, "metadata name"),
        ({"metadata": {"a\n": "c"}}, "metadata name"),
        ({"metadata": {"x" * 65: "c"}}, "metadata name"),
        ({"metadata": {"a": "c\x00"}}, "value of metadata"),
        ({"metadata": {"a": "c" * 1025}}, "value of metadata"),
        ({"metadata": {str(number): "" for number in range(65)}}, "at most 64"),
    ],
)
async def test_invalid_values_are_refused_and_nothing_is_stored(
    lifecycle: Lifecycle, rules: KeyRules, store: SqliteStore, change: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidKey, match=problem):
        await lifecycle.issue(replace(NewKey(name="CI"), **change), rules, actor=ANN)
    assert await store.keys.list(KeyFilter()) == []


def test_all_problems_are_reported_at_once(rules: KeyRules) -> None:
    with pytest.raises(InvalidKey) as refused:
        rules.check(NewKey(name="", plan="x", environment="y", scopes=("z",)), NOW_US)
    assert len(refused.value.problems) == 4


REQUIRED = ("tenant", "plan", "expires_at", "environment", "metadata.user_id")
COMPLETE = NewKey(
    name="CI",
    tenant="acme",
    plan="pro",
    environment="test",
    scopes=("streams:read",),
    metadata={"user_id": "usr_1"},
    expires_at=NOW_US + 1,
)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"tenant": None}, ("tenant",)),
        ({"plan": None}, ("plan",)),
        ({"expires_at": None}, ("expires_at",)),
        ({"environment": None}, ("environment",)),
        ({"metadata": {"user_id": "", "x": "y"}}, ("metadata", "user_id")),
        ({"metadata": {"user_id": "  "}}, ("metadata", "user_id")),
        ({"scopes": ()}, ("scopes",)),
        ({"scopes": ("streams:read", "streams:write")}, ("scopes",)),
        ({"scopes": ("*",)}, ("scopes",)),
        ({"scopes": ("streams:*",)}, ("scopes",)),
    ],
)
async def test_a_key_is_issued_with_all_that_is_required(
    lifecycle: Lifecycle, rules: KeyRules, store: SqliteStore, change: dict[str, Any], where: tuple[str, ...]
) -> None:
    strict = replace(rules, required=REQUIRED, scopes_per_key=1)
    with pytest.raises(InvalidKey) as refused:
        await lifecycle.issue(replace(COMPLETE, **change), strict, actor=ANN)
    assert [problem.path for problem in refused.value.problems if isinstance(problem, Violation)] == [where]
    assert await store.keys.list(KeyFilter()) == []
    await lifecycle.issue(replace(COMPLETE, scopes=("streams:read",) * 2), strict, actor=ANN)
    await lifecycle.issue(replace(COMPLETE, scopes=None), strict, actor=ANN)


async def test_a_change_cannot_remove_a_required_field(lifecycle: Lifecycle, rules: KeyRules) -> None:
    strict = replace(rules, required=REQUIRED, scopes_per_key=1)
    key = (await lifecycle.issue(COMPLETE, strict, actor=ANN)).key
    for change in (
        KeyChange(plan=None),
        KeyChange(expires_at=None),
        KeyChange(metadata={}),
        KeyChange(scopes=("streams:read", "streams:write")),
    ):
        with pytest.raises(InvalidKey):
            await lifecycle.change(key.id, change, strict, actor=ANN)
    assert (await lifecycle.change(key.id, KeyChange(scopes=("streams:write",)), strict, actor=ANN)).plan == "pro"
    older = (await lifecycle.issue(NewKey(name="Older"), rules, actor=ANN)).key
    assert (await lifecycle.change(older.id, KeyChange(name="Old"), strict, actor=ANN)).name == "Old"


@pytest.mark.parametrize("prefix_length", [40, 33])
def test_a_stored_prefix_that_would_reveal_too_much_is_refused(prefix_length: int) -> None:
    with pytest.raises(ValueError, match="prefix_length"):
        KeyRules(format=KeyFormat(), environments={"live": "hv_"}, prefix_length=prefix_length, catalogue=Catalogue())


@pytest.mark.parametrize(("prefix_length", "stored"), [(None, len("shop_live_") + 4), (12, 12)])
async def test_the_stored_prefix_distinguishes_keys_of_one_environment(
    lifecycle: Lifecycle, prefix_length: int | None, stored: int
) -> None:
    rules = KeyRules(
        format=KeyFormat(),
        environments={"live": "shop_live_"},
        prefix_length=prefix_length,
        catalogue=Catalogue(),
    )
    issued = await lifecycle.issue(NewKey(name="CI"), rules, actor=ANN)
    assert issued.key.prefix == issued.secret.text[:stored]


async def test_a_key_is_found_by_id_prefix_and_plaintext(lifecycle: Lifecycle, rules: KeyRules) -> None:
    issued = await lifecycle.issue(NewKey(name="CI"), rules, actor=ANN)
    for text in (issued.key.id, issued.key.prefix, issued.secret.text):
        assert await lifecycle.find_by(text) == issued.key
    for text in ("", "key_" + "0" * 20, "hv_live_", issued.secret.text + "0", "é" * 60):
        assert await lifecycle.find_by(text) is None


async def test_a_key_lives_through_disable_enable_and_revoke(lifecycle: Lifecycle, rules: KeyRules) -> None:
    key = (await lifecycle.issue(NewKey(name="CI"), rules, actor=ANN)).key
    assert (await lifecycle.disable(key.id, actor=ANN)).status is KeyStatus.DISABLED
    assert (await lifecycle.disable(key.id, actor=ANN)).status is KeyStatus.DISABLED
    assert (await lifecycle.enable(key.id, actor=ANN)).status is KeyStatus.ACTIVE
    revoked = await lifecycle.revoke(key.id, actor=ANN)
    assert (revoked.status, revoked.revoked_at) == (KeyStatus.REVOKED, NOW_US)
    with pytest.raises(KeyConflict, match="final: issue a new one"):
        await lifecycle.enable(key.id, actor=ANN)


async def test_a_key_issued_before_a_pepper_was_set_keeps_working(store: SqliteStore, rules: KeyRules) -> None:
    issued = await with_peppers(store).issue(NewKey(name="CI"), rules, actor=ANN)
    assert await with_peppers(store, ONE).find_by_secret(issued.secret.text) == issued.key
    await check_peppers(store.statistics, Hasher([ONE]))


async def test_a_pepper_is_rotated_with_two_loaded(store: SqliteStore, rules: KeyRules) -> None:
    old = await with_peppers(store, ONE).issue(NewKey(name="old"), rules, actor=ANN)
    new = await with_peppers(store, TWO, ONE).issue(NewKey(name="new"), rules, actor=ANN)
    assert new.key.algorithm == f"hmac-sha256:{TWO.id}"
    for issued in (old, new):
        assert await with_peppers(store, TWO, ONE).find_by_secret(issued.secret.text) == issued.key
    await check_peppers(store.statistics, Hasher([TWO, ONE]))
    assert await with_peppers(store, TWO).find_by_secret(old.secret.text) is None


@pytest.mark.parametrize("loaded", [(), (TWO,)])
async def test_a_missing_or_wrong_pepper_is_an_error_that_names_the_one_needed(
    store: SqliteStore, rules: KeyRules, loaded: tuple[Pepper, ...]
) -> None:
    await with_peppers(store).issue(NewKey(name="plain"), rules, actor=ANN)
    issued = await with_peppers(store, ONE).issue(NewKey(name="CI"), rules, actor=ANN)
    with pytest.raises(MissingPepper, match=rf"1 key hashed with pepper {ONE.id}.*SIDECAR_PEPPER_PREVIOUS"):
        await check_peppers(store.statistics, Hasher(loaded))
    await with_peppers(store).revoke(issued.key.id, actor=ANN)
    await check_peppers(store.statistics, Hasher(loaded))


async def test_a_digest_of_an_unknown_kind_is_an_error(store: SqliteStore) -> None:
    await store.keys.add([a_key(algorithm="blake9")], actor=ANN)
    with pytest.raises(MissingPepper, match="newer sidecar"):
        await check_peppers(store.statistics, Hasher())
