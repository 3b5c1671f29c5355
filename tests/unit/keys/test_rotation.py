"""Keys that get a successor, change, or are due."""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sidecar.core.apikey import Hasher, Pepper
from sidecar.core.model import ApiKey, KeyStatus
from sidecar.keys.lifecycle import Lifecycle, upcoming_keys
from sidecar.keys.ports import (
    IDEMPOTENCY_SECONDS,
    AlreadyProcessed,
    AuditFilter,
    IdempotencyKey,
    IdempotencyKeyReused,
    KeyChanged,
    KeyConflict,
    KeyFilter,
    UnknownKey,
)
from sidecar.keys.records import effective_status, etag_of
from sidecar.keys.transitions import AlreadyReplaced, KeyChange, Rotation
from sidecar.keys.validation import InvalidKey, KeyRules, NewKey
from sidecar.store.store import SqliteStore
from tests.unit.keys.making import ANN, BOB, NOW_US, Clock, used_at

DAY, DAY_US = 86_400, 86_400_000_000
FULL = NewKey(
    name="CI",
    scopes=("streams:write",),
    tenant="acme",
    environment="test",
    plan="pro",
    quotas={"general": 5},
    metadata={"user_id": "7"},
    expires_at=NOW_US + 30 * DAY_US,
)


@pytest.fixture
async def key(lifecycle: Lifecycle, rules: KeyRules) -> ApiKey:
    return (await lifecycle.issue(FULL, rules, actor=ANN)).key


async def test_a_successor_may_do_what_the_key_may_and_both_work_during_the_overlap(
    lifecycle: Lifecycle, rules: KeyRules, store: SqliteStore, key: ApiKey, clock: Clock
) -> None:
    await store.usage.touch({key.id: used_at(NOW_US)})
    clock.now += 60
    rotated = await lifecycle.rotate(key.id, Rotation(), rules, actor=BOB)
    new, text = rotated.new.key, rotated.new.secret.text
    own = {name: getattr(new, name) for name in ("id", "prefix", "digest")}
    assert new == replace(key, **own, created_at=NOW_US + 60_000_000, created_by="bob", replaces=key.id)
    assert new.id != key.id
    assert rules.format.check(text, ["hv_test_"])
    assert rotated.old == replace(
        key, replaced_at=NOW_US + 60_000_000, retires_at=NOW_US + 60_000_000 + DAY_US, last_used_at=NOW_US
    )
    assert await lifecycle.find_by_secret(text) == new
    assert await store.keys.get(key.id) == rotated.old
    now = NOW_US + 61_000_000
    assert (effective_status(rotated.old, now), effective_status(rotated.old, now + DAY_US)) == ("active", "retired")
    assert text not in repr(rotated)


async def test_without_overlap_the_old_key_ends_at_once(lifecycle: Lifecycle, rules: KeyRules, key: ApiKey) -> None:
    rotated = await lifecycle.rotate(key.id, Rotation(overlap_seconds=0), rules, actor=ANN)
    assert effective_status(rotated.old, NOW_US) == "retired"


async def test_the_old_key_never_outlives_its_own_expiry(lifecycle: Lifecycle, rules: KeyRules, key: ApiKey) -> None:
    rotation = Rotation(overlap_seconds=60 * DAY, expires_at=NOW_US + 90 * DAY_US)
    rotated = await lifecycle.rotate(key.id, rotation, rules, actor=ANN)
    assert rotated.old.retires_at == rotated.old.expires_at == key.expires_at
    assert rotated.new.key.expires_at == NOW_US + 90 * DAY_US


async def test_an_expiry_within_the_overlap_is_not_inherited_silently(
    lifecycle: Lifecycle, rules: KeyRules, store: SqliteStore, key: ApiKey
) -> None:
    with pytest.raises(InvalidKey, match=r"within the overlap.*--expires") as refused:
        await lifecycle.rotate(key.id, Rotation(overlap_seconds=30 * DAY), rules, actor=ANN)
    assert [problem.path for problem in refused.value.problems] == [("expires_at",)]  # type: ignore[attr-defined]
    assert await store.keys.list(KeyFilter()) == [key]
    for_ever = await lifecycle.rotate(key.id, Rotation(overlap_seconds=30 * DAY, expires_at=None), rules, actor=ANN)
    assert for_ever.new.key.expires_at is None


async def test_an_expiry_in_the_past_is_refused(lifecycle: Lifecycle, rules: KeyRules, key: ApiKey) -> None:
    with pytest.raises(InvalidKey, match="future"):
        await lifecycle.rotate(key.id, Rotation(expires_at=NOW_US), rules, actor=ANN)


async def test_a_successor_is_hashed_with_the_current_pepper(store: SqliteStore, rules: KeyRules, key: ApiKey) -> None:
    pepper = Pepper.of(b"a pepper that came later")
    lifecycle = Lifecycle(store.keys, Hasher([pepper]), clock=Clock(), randbelow=secrets.randbelow)
    rotated = await lifecycle.rotate(key.id, Rotation(), rules, actor=ANN)
    assert rotated.new.key.algorithm == f"hmac-sha256:{pepper.id}"


@pytest.mark.parametrize("verb", ["disable", "revoke"])
async def test_a_key_that_is_refused_cannot_be_rotated(
    lifecycle: Lifecycle, rules: KeyRules, key: ApiKey, verb: str
) -> None:
    await getattr(lifecycle, verb)(key.id, actor=ANN)
    with pytest.raises(KeyConflict, match=f"is {verb}d and cannot be rotated"):
        await lifecycle.rotate(key.id, Rotation(), rules, actor=ANN)


async def test_an_expired_key_cannot_be_rotated(
    lifecycle: Lifecycle, rules: KeyRules, key: ApiKey, clock: Clock
) -> None:
    clock.now += 30 * DAY
    with pytest.raises(KeyConflict, match="is expired and cannot be rotated: issue a new one"):
        await lifecycle.rotate(key.id, Rotation(expires_at=None), rules, actor=ANN)


async def test_one_of_two_concurrent_rotations_wins_and_the_other_learns_the_successor(
    lifecycle: Lifecycle, rules: KeyRules, store: SqliteStore, key: ApiKey
) -> None:
    both = [lifecycle.rotate(key.id, Rotation(), rules, actor=actor) for actor in (ANN, BOB)]
    outcomes = await asyncio.gather(*both, return_exceptions=True)
    [refused] = [outcome for outcome in outcomes if isinstance(outcome, AlreadyReplaced)]
    new = await lifecycle.successor(key.id)
    assert new is not None
    assert new.id in str(refused)
    assert len(await store.keys.list(KeyFilter())) == 2


async def test_a_rotation_has_an_audit_row_for_each_of_the_two_keys(
    lifecycle: Lifecycle, rules: KeyRules, store: SqliteStore, key: ApiKey
) -> None:
    rotated = await lifecycle.rotate(key.id, Rotation(), rules, actor=BOB)
    new, old, _ = await store.audit.rows(AuditFilter())
    assert [(row.action, row.actor, row.key_id) for row in (old, new)] == [
        ("rotate", "bob", key.id),
        ("rotate", "bob", rotated.new.key.id),
    ]
    assert old.before is not None
    assert old.after is not None
    assert (old.before["retires_at"], old.after["retires_at"]) == (None, NOW_US + DAY_US)
    assert new.before is None


CHANGES: list[tuple[dict[str, Any], str, Any]] = [
    ({"name": "CD"}, "name", "CD"),
    ({"scopes": ("streams:read", "streams:read")}, "scopes", ("streams:read",)),
    ({"scopes": ()}, "scopes", ()),
    ({"plan": None}, "plan", None),
    ({"quotas": {}}, "quotas", {}),
    ({"metadata": {"a": "b"}}, "metadata", {"a": "b"}),
    ({"expires_at": None}, "expires_at", None),
    ({"expires_at": NOW_US + 1}, "expires_at", NOW_US + 1),
]


@pytest.mark.parametrize(("change", "name", "value"), CHANGES)
async def test_one_field_of_a_key_changes_and_the_rest_stays(
    lifecycle: Lifecycle,
    rules: KeyRules,
    store: SqliteStore,
    key: ApiKey,
    change: dict[str, Any],
    name: str,
    value: Any,
) -> None:
    changed = await lifecycle.change(key.id, KeyChange(**change), rules, actor=BOB)
    assert changed == replace(key, **{name: value})
    assert await store.keys.get(key.id) == changed
    [row, _] = await store.audit.rows(AuditFilter(key_id=key.id))
    assert (row.action, row.actor, row.source, row.tenant) == ("change", "bob", "", "acme")
    assert row.before is not None
    assert row.after is not None
    assert [column for column in row.after if row.after[column] != row.before[column]] == [name]


async def test_every_problem_of_a_change_is_reported_and_nothing_changes(
    lifecycle: Lifecycle, rules: KeyRules, store: SqliteStore, key: ApiKey
) -> None:
    wrong = KeyChange(name="", scopes=("stream:read",), plan="prp", expires_at=NOW_US)
    with pytest.raises(InvalidKey) as refused:
        await lifecycle.change(key.id, wrong, rules, actor=ANN)
    assert len(refused.value.problems) == 4
    assert await store.keys.get(key.id) == key


async def test_unchanged_values_need_not_match_the_configuration(
    lifecycle: Lifecycle, rules: KeyRules, key: ApiKey
) -> None:
    smaller = replace(rules, plans=(), quotas=())
    same = KeyChange(name="CD", plan=key.plan, quotas=dict(key.quotas))
    assert (await lifecycle.change(key.id, same, smaller, actor=ANN)).plan == "pro"


async def test_a_revoked_key_is_not_changed(lifecycle: Lifecycle, rules: KeyRules, key: ApiKey) -> None:
    await lifecycle.revoke(key.id, actor=ANN)
    with pytest.raises(KeyConflict, match="final"):
        await lifecycle.change(key.id, KeyChange(name="CD"), rules, actor=ANN)


async def test_an_unknown_key_can_be_neither_changed_nor_rotated(lifecycle: Lifecycle, rules: KeyRules) -> None:
    with pytest.raises(UnknownKey):
        await lifecycle.change("key_none", KeyChange(name="CD"), rules, actor=ANN)
    with pytest.raises(UnknownKey):
        await lifecycle.rotate("key_none", Rotation(), rules, actor=ANN)


async def test_a_change_of_a_concurrently_changed_key_is_refused(
    lifecycle: Lifecycle, rules: KeyRules, store: SqliteStore, key: ApiKey
) -> None:
    read = etag_of(key)
    await store.usage.touch({key.id: used_at(NOW_US)})
    await lifecycle.change(key.id, KeyChange(name="CD"), rules, actor=BOB, expected_etag=read)
    with pytest.raises(KeyChanged):
        await lifecycle.change(key.id, KeyChange(plan=None), rules, actor=ANN, expected_etag=read)
    with pytest.raises(KeyChanged):
        await lifecycle.rotate(key.id, Rotation(), rules, actor=ANN, expected_etag=read)
    with pytest.raises(KeyChanged):
        await lifecycle.revoke(key.id, actor=ANN, expected_etag=read)
    found = await store.keys.get(key.id)
    assert found is not None
    assert (found.name, found.plan, found.status) == ("CD", "pro", KeyStatus.ACTIVE)


def idempotency_key(key: str = "r1", fingerprint: str = "f", whose: str = "ops") -> IdempotencyKey:
    return IdempotencyKey(token=whose, key=key, fingerprint=fingerprint)


async def test_a_request_sent_twice_is_carried_out_once(
    lifecycle: Lifecycle, rules: KeyRules, store: SqliteStore
) -> None:
    issued = await lifecycle.issue(FULL, rules, actor=ANN, idempotency_key=idempotency_key())
    with pytest.raises(AlreadyProcessed) as repeated:
        await lifecycle.issue(FULL, rules, actor=ANN, idempotency_key=idempotency_key())
    assert repeated.value.key_id == issued.key.id
    rotated = await lifecycle.rotate(issued.key.id, Rotation(), rules, actor=ANN, idempotency_key=idempotency_key("r2"))
    with pytest.raises(AlreadyProcessed) as repeated:
        await lifecycle.rotate(issued.key.id, Rotation(), rules, actor=ANN, idempotency_key=idempotency_key("r2"))
    assert repeated.value.key_id == rotated.new.key.id
    assert len(await store.keys.list(KeyFilter())) == 2


async def test_the_name_of_a_request_is_not_used_for_another(lifecycle: Lifecycle, rules: KeyRules) -> None:
    await lifecycle.issue(FULL, rules, actor=ANN, idempotency_key=idempotency_key())
    with pytest.raises(IdempotencyKeyReused):
        await lifecycle.issue(FULL, rules, actor=ANN, idempotency_key=idempotency_key(fingerprint="other"))
    await lifecycle.issue(FULL, rules, actor=ANN, idempotency_key=idempotency_key(whose="dev"))


async def test_requests_are_remembered_for_a_day(lifecycle: Lifecycle, rules: KeyRules, clock: Clock) -> None:
    await lifecycle.issue(FULL, rules, actor=ANN, idempotency_key=idempotency_key())
    clock.now += IDEMPOTENCY_SECONDS
    await lifecycle.issue(FULL, rules, actor=ANN, idempotency_key=idempotency_key())


Due = Callable[..., Any]


async def test_keys_are_due_that_are_too_old_expire_or_retire(
    lifecycle: Lifecycle, store: SqliteStore, rules: KeyRules, clock: Clock
) -> None:
    async def issued(name: str, days: int | None = None, tenant: str = "acme") -> str:
        expires_at = None if days is None else int(clock.now * 1_000_000) + days * DAY_US
        wanted = NewKey(name=name, tenant=tenant, expires_at=expires_at)
        return (await lifecycle.issue(wanted, rules, actor=ANN)).key.id

    old, gone = await issued("old"), await issued("gone", 50)
    replaced, refused = await issued("replaced"), await issued("refused")
    clock.now += 100 * DAY
    soon, _later, other = await issued("soon", 3), await issued("later", 30), await issued("other", 4, "other")
    await lifecycle.disable(refused, actor=ANN)
    await lifecycle.rotate(replaced, Rotation(), rules, actor=ANN)
    now = int(clock.now * 1_000_000)

    async def due(**changes: Any) -> list[tuple[str, str, int]]:
        limits = {"max_age_seconds": 90 * DAY, "within_seconds": 14 * DAY, **changes}
        found = await upcoming_keys(store.statistics, now, **limits)
        return [(one.key.id, one.why, (one.at - now) // DAY_US) for one in found]

    everything = [(old, "max_age", -10), (replaced, "retires", 1), (soon, "expires", 3), (other, "expires", 4)]
    assert await due() == everything
    assert gone not in {key_id for key_id, _, _ in everything}
    assert await due(max_age_seconds=None) == everything[1:]
    assert await due(tenant="other") == everything[3:]
    assert await due(within_seconds=2 * DAY) == everything[:2]
