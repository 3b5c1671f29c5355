"""What every key store must do. A subclass, named Test…, gives the `store` fixture; it starts out empty."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import pytest

from sidecar.core.model import ApiKey, KeyStatus
from sidecar.keys.ports import KeyConflict, KeyFilter, KeyReader, KeyRegistry
from sidecar.usage.recorder import UsageSink
from tests.unit.keys.making import ANN, BOB, NOW_US, a_key, digest_of, set_status, used_at


class Keys(KeyReader, KeyRegistry, Protocol):
    """Both ports, and pages of keys."""

    async def list(self, wanted: KeyFilter) -> Sequence[ApiKey]: ...


class Parts(Protocol):
    """The parts of a store that the contract is about, by their ports."""

    @property
    def keys(self) -> Keys: ...

    @property
    def usage(self) -> UsageSink: ...


class ReaderContract:
    async def test_a_key_is_found_by_its_digest_with_everything_that_was_stored(self, store: Parts) -> None:
        key = a_key(
            "s1",
            tenant="acme",
            scopes=("a:read", "b:*"),
            plan="pro",
            quotas={"general": 5},
            metadata={"user_id": "ü 7"},
            expires_at=NOW_US + 1,
            retires_at=NOW_US + 2,
            replaces="key_0",
            last_used_at=3,
        )
        await store.keys.add([key], actor=ANN)
        assert await store.keys.find({digest_of("s1"): "sha256"}) == key

    async def test_an_unknown_digest_is_not_found(self, store: Parts) -> None:
        await store.keys.add([a_key("s1")], actor=ANN)
        assert await store.keys.find({digest_of("s2"): "sha256"}) is None

    async def test_one_of_several_candidates_is_found(self, store: Parts) -> None:
        key = a_key("s1", algorithm="hmac-sha256:ab12cd34")
        await store.keys.add([key], actor=ANN)
        candidates = {digest_of("s2"): "hmac-sha256:00000000", digest_of("s1"): "hmac-sha256:ab12cd34"}
        assert await store.keys.find(candidates) == key

    async def test_a_digest_stored_under_another_algorithm_does_not_match(self, store: Parts) -> None:
        await store.keys.add([a_key("s1", algorithm="hmac-sha256:ab12cd34")], actor=ANN)
        assert await store.keys.find({digest_of("s1"): "sha256"}) is None

    async def test_disabled_and_revoked_keys_are_found_too(self, store: Parts) -> None:
        key = a_key("s1")
        await store.keys.add([key], actor=ANN)
        await set_status(store.keys, key.id, KeyStatus.REVOKED, at=NOW_US)
        found = await store.keys.find({digest_of("s1"): "sha256"})
        assert found is not None
        assert found.status is KeyStatus.REVOKED

    async def test_the_generation_is_constant_while_nothing_changes(self, store: Parts) -> None:
        await store.keys.add([a_key("s1")], actor=ANN)
        before = await store.keys.read_generation()
        await store.keys.find({digest_of("s1"): "sha256"})
        assert await store.keys.read_generation() == before

    async def test_the_generation_changes_with_every_change_of_a_key(self, store: Parts) -> None:
        seen = {await store.keys.read_generation()}
        key = a_key()
        await store.keys.add([key], actor=ANN)
        seen.add(await store.keys.read_generation())
        for status in (KeyStatus.DISABLED, KeyStatus.ACTIVE, KeyStatus.REVOKED):
            await set_status(store.keys, key.id, status, at=NOW_US)
            seen.add(await store.keys.read_generation())
        assert len(seen) == 5

    async def test_changed_keys_are_listed_or_may_be_all(self, store: Parts) -> None:
        key, other = a_key(), a_key()
        await store.keys.add([key, other], actor=ANN)
        before = await store.keys.read_generation()
        assert store.keys.changes_since(before) == frozenset()
        await set_status(store.keys, key.id, KeyStatus.REVOKED, at=NOW_US)
        between = await store.keys.read_generation()
        assert store.keys.changes_since(before) in ({key.id}, None)
        await set_status(store.keys, other.id, KeyStatus.REVOKED, at=NOW_US)
        added = a_key()
        await store.keys.add([added], actor=ANN)
        after = await store.keys.read_generation()
        for since, changed in ((before, {key.id, other.id}), (between, {other.id})):
            told = store.keys.changes_since(since)
            assert told is None or told - {added.id} == changed
        assert store.keys.changes_since(after) == frozenset()

    async def test_use_of_a_key_does_not_change_the_generation(self, store: Parts) -> None:
        key = a_key()
        await store.keys.add([key], actor=ANN)
        before = await store.keys.read_generation()
        await store.usage.touch({key.id: used_at(NOW_US)})
        assert await store.keys.read_generation() == before


class RegistryContract:
    async def test_an_id_is_taken_once(self, store: Parts) -> None:
        key = a_key("s1")
        await store.keys.add([key], actor=ANN)
        with pytest.raises(KeyConflict):
            await store.keys.add([replace(key, digest=digest_of("s2"))], actor=ANN)
        assert await store.keys.list(KeyFilter()) == [key]

    async def test_a_digest_is_taken_once(self, store: Parts) -> None:
        await store.keys.add([a_key("s1")], actor=ANN)
        with pytest.raises(KeyConflict):
            await store.keys.add([a_key("s1")], actor=ANN)

    async def test_get_takes_an_id_or_a_stored_prefix(self, store: Parts) -> None:
        key = a_key(prefix="hv_live_abcd")
        await store.keys.add([key], actor=ANN)
        assert await store.keys.get(key.id) == key
        assert await store.keys.get("hv_live_abcd") == key
        assert await store.keys.get("hv_live_") is None
        assert await store.keys.get("schlüssel\ud800") is None

    async def test_a_prefix_that_several_keys_share_is_a_conflict_that_names_them(self, store: Parts) -> None:
        twins = [a_key(prefix="hv_live_abcd"), a_key(prefix="hv_live_abcd")]
        for key in twins:
            await store.keys.add([key], actor=ANN)
        with pytest.raises(KeyConflict, match=twins[0].id):
            await store.keys.get("hv_live_abcd")

    async def test_list_shows_the_newest_first_and_is_paginated(self, store: Parts) -> None:
        keys = [a_key() for _ in range(5)]
        for key in reversed(keys):
            await store.keys.add([key], actor=ANN)
        assert await store.keys.list(KeyFilter()) == keys
        assert await store.keys.list(KeyFilter(limit=2)) == keys[:2]
        assert await store.keys.list(KeyFilter(after=keys[1].id, limit=2)) == keys[2:4]

    async def test_list_filters_by_tenant_environment_and_status(self, store: Parts) -> None:
        acme = a_key(tenant="acme", environment="live")
        acme_test = a_key(tenant="acme", environment="test")
        other = a_key(tenant="other", environment="test")
        for key in (acme, acme_test, other):
            await store.keys.add([key], actor=ANN)
        disabled = await set_status(store.keys, other.id, KeyStatus.DISABLED, at=NOW_US)
        assert await store.keys.list(KeyFilter(tenant="acme")) == [acme_test, acme]
        assert await store.keys.list(KeyFilter(environment="test")) == [disabled, acme_test]
        assert await store.keys.list(KeyFilter(effective_status="disabled")) == [disabled]
        assert await store.keys.list(KeyFilter(tenant="acme", environment="test")) == [acme_test]
        assert await store.keys.list(KeyFilter(tenant="' OR 1=1 --")) == []

    async def test_list_filters_by_what_became_of_a_key(self, store: Parts) -> None:
        active, expired = a_key(expires_at=NOW_US + 1), a_key(tenant="acme", expires_at=NOW_US)
        retired, both = a_key(tenant="acme", retires_at=NOW_US), a_key(retires_at=NOW_US, expires_at=NOW_US)
        refused = a_key(expires_at=NOW_US)
        await store.keys.add([active, expired, retired, both, refused], actor=ANN)
        revoked = await set_status(store.keys, refused.id, KeyStatus.REVOKED)
        assert await store.keys.list(KeyFilter(effective_status="active")) == [active]
        assert await store.keys.list(KeyFilter(effective_status="expired")) == [both, expired]
        assert await store.keys.list(KeyFilter(effective_status="expired", limit=1)) == [both]
        assert await store.keys.list(KeyFilter(effective_status="expired", after=both.id)) == [expired]
        assert await store.keys.list(KeyFilter(effective_status="retired")) == [retired]
        assert await store.keys.list(KeyFilter(effective_status="revoked")) == [revoked]
        assert await store.keys.list(KeyFilter(effective_status="expired", tenant="acme")) == [expired]
        assert await store.keys.list(KeyFilter(effective_status="retired", search="key")) == [retired]

    async def test_list_finds_replaced_keys_that_still_work(self, store: Parts) -> None:
        later = NOW_US + 1
        active, retiring = a_key(expires_at=later), a_key(tenant="acme", retires_at=later)
        ends_first, retired = a_key(retires_at=later, expires_at=NOW_US), a_key(retires_at=NOW_US)
        disabled = a_key(retires_at=later)
        await store.keys.add([active, retiring, ends_first, retired, disabled], actor=ANN)
        await set_status(store.keys, disabled.id, KeyStatus.DISABLED, at=NOW_US)
        wanted = KeyFilter(effective_status="retiring")
        assert await store.keys.list(wanted) == [retiring]
        assert await store.keys.list(replace(wanted, search="acme", limit=5)) == [retiring]
        assert await store.keys.list(replace(wanted, sort="ends", tenant="acme")) == [retiring]
        assert await store.keys.list(KeyFilter(effective_status="active")) == [retiring, active]

    async def test_search_finds_words_and_what_begins_an_id_or_prefix(self, store: Parts) -> None:
        nightly = a_key(name="CI, nightly Übung", tenant="acme-corp")
        other = a_key(name="CI weekly", environment="test", prefix="hv_test_zzzz")
        await store.keys.add([nightly, other], actor=ANN)

        async def found(search: str, **more: Any) -> Sequence[ApiKey]:
            return await store.keys.list(KeyFilter(search=search, **more))

        for search in ("nightly", "NIGHT", "ci night", "nightly ci", "übung", "ubung", "corp", "acme-co", nightly.id):
            assert await found(search) == [nightly], search
        for search in ("ci", "  CI ", other.id[:15], "c", "", " "):
            assert await found(search) == [other, nightly], search
        strange = (
            "nigh ci",
            "ightly",
            "xyz",
            "*",
            '"',
            "ci OR weekly",
            "words:ci",
            "' OR 1=1",
            "\ue000slive",
            "\ud800",
        )
        for search in strange:
            assert await found(search) == [], search
        assert await found("hv_test_") == [other]
        assert await found("ci", environment="test") == [other]
        assert await found("ci", limit=1) == [other]
        assert await found("ci", after=other.id) == [nightly]
        assert await found(nightly.id, effective_status="revoked") == []

    async def test_search_follows_what_changes(self, store: Parts) -> None:
        key = a_key(name="old", tenant="acme")
        await store.keys.add([key], actor=ANN)

        def rename(before: ApiKey) -> ApiKey:
            return replace(before, name="new")

        renamed = await store.keys.change(key.id, rename, action="change", at=NOW_US, actor=ANN)
        assert await store.keys.list(KeyFilter(search="old")) == []
        assert await store.keys.list(KeyFilter(search="new", effective_status="active")) == [renamed]
        disabled = await set_status(store.keys, key.id, KeyStatus.DISABLED)
        assert await store.keys.list(KeyFilter(search="new", effective_status="active")) == []
        assert await store.keys.list(KeyFilter(tenant="acme", effective_status="disabled")) == [disabled]

    async def test_many_keys_are_added_completely_or_not_at_all(self, store: Parts) -> None:
        key = a_key("s1")
        await store.keys.add([key], actor=ANN)
        with pytest.raises(KeyConflict):
            await store.keys.add([a_key(), a_key(), a_key("s1")], actor=ANN)
        assert await store.keys.list(KeyFilter()) == [key]

    async def test_an_edit_that_raises_or_changes_nothing_leaves_no_trace(self, store: Parts) -> None:
        key = a_key()
        await store.keys.add([key], actor=ANN)
        before = await store.keys.read_generation()

        def refused(key: ApiKey) -> ApiKey:
            raise KeyConflict("no")

        with pytest.raises(KeyConflict, match="no"):
            await store.keys.change(key.id, refused, action="change", at=NOW_US, actor=ANN)
        assert await store.keys.change(key.id, lambda key: key, action="change", at=NOW_US, actor=ANN) == key
        assert await store.keys.read_generation() == before

    async def test_a_key_is_disabled_and_enabled(self, store: Parts) -> None:
        key = a_key()
        await store.keys.add([key], actor=ANN)
        disabled = await set_status(store.keys, key.id, KeyStatus.DISABLED, at=NOW_US + 5)
        assert disabled == replace(key, status=KeyStatus.DISABLED, disabled_at=NOW_US + 5)
        assert await store.keys.get(key.id) == disabled
        assert await set_status(store.keys, key.id, KeyStatus.ACTIVE, at=NOW_US + 6) == key
        assert await store.keys.get(key.id) == key

    async def test_setting_the_current_status_is_not_a_change(self, store: Parts) -> None:
        key = a_key()
        await store.keys.add([key], actor=ANN)
        first = await set_status(store.keys, key.id, KeyStatus.REVOKED, at=NOW_US + 5)
        before = await store.keys.read_generation()
        assert await set_status(store.keys, key.id, KeyStatus.REVOKED, at=NOW_US + 9, actor=BOB) == first
        assert await store.keys.read_generation() == before

    @pytest.mark.parametrize("status", [KeyStatus.ACTIVE, KeyStatus.DISABLED])
    async def test_revoked_is_final(self, store: Parts, status: KeyStatus) -> None:
        key = a_key()
        await store.keys.add([key], actor=ANN)
        revoked = await set_status(store.keys, key.id, KeyStatus.REVOKED, at=NOW_US)
        with pytest.raises(KeyConflict, match="final"):
            await set_status(store.keys, key.id, status, at=NOW_US)
        assert await store.keys.get(key.id) == revoked

    async def test_an_unknown_id_cannot_be_changed(self, store: Parts) -> None:
        with pytest.raises(KeyConflict):
            await set_status(store.keys, "key_none", KeyStatus.REVOKED, at=NOW_US)

    async def test_last_used_never_decreases(self, store: Parts) -> None:
        key = a_key()
        await store.keys.add([key], actor=ANN)
        for at in (NOW_US - 3, NOW_US - 5):
            await store.usage.touch({key.id: used_at(at), "key_gone": used_at(at)})
        found = await store.keys.get(key.id)
        assert found is not None
        assert found.last_used_at == NOW_US - 3

    async def test_changes_at_the_same_time_do_not_disturb_each_other(self, store: Parts) -> None:
        keys = [a_key(f"parallel {number}") for number in range(20)]
        twice = [store.keys.add([key], actor=ANN) for key in keys] + [store.keys.add([key], actor=BOB) for key in keys]
        outcomes = await asyncio.gather(*twice, return_exceptions=True)
        assert sum(isinstance(outcome, KeyConflict) for outcome in outcomes) == 20
        assert sorted(await store.keys.list(KeyFilter()), key=lambda key: key.id) == keys


class StoreContract(ReaderContract, RegistryContract):
    """Both."""
