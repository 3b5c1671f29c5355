"""What every key store must do. A subclass, named Test…, gives the `store` fixture; it starts out empty."""

import asyncio
from dataclasses import replace

import pytest

from sidecar.core.model import KeyStatus
from sidecar.keys.store import KeyConflict, KeyFilter, KeyStore
from tests.keys.making import NOW_US, a_key, digest_of


class ReaderContract:
    async def test_a_key_is_found_by_its_digest_with_everything_that_was_stored(self, store: KeyStore) -> None:
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
        await store.add(key, actor="ann")
        assert await store.find({digest_of("s1"): "sha256"}) == key

    async def test_a_digest_that_nobody_stored_is_none(self, store: KeyStore) -> None:
        await store.add(a_key("s1"), actor="ann")
        assert await store.find({digest_of("s2"): "sha256"}) is None

    async def test_one_of_several_candidates_is_found(self, store: KeyStore) -> None:
        key = a_key("s1", algorithm="hmac-sha256:ab12cd34")
        await store.add(key, actor="ann")
        candidates = {digest_of("s2"): "hmac-sha256:00000000", digest_of("s1"): "hmac-sha256:ab12cd34"}
        assert await store.find(candidates) == key

    async def test_a_digest_stored_under_another_algorithm_is_none(self, store: KeyStore) -> None:
        await store.add(a_key("s1", algorithm="hmac-sha256:ab12cd34"), actor="ann")
        assert await store.find({digest_of("s1"): "sha256"}) is None

    async def test_disabled_and_revoked_keys_are_found_too(self, store: KeyStore) -> None:
        key = a_key("s1")
        await store.add(key, actor="ann")
        await store.set_status(key.id, KeyStatus.REVOKED, at=NOW_US, actor="ann")
        found = await store.find({digest_of("s1"): "sha256"})
        assert found is not None
        assert found.status is KeyStatus.REVOKED

    async def test_the_generation_stands_while_nothing_changes(self, store: KeyStore) -> None:
        await store.add(a_key("s1"), actor="ann")
        before = store.generation()
        await store.find({digest_of("s1"): "sha256"})
        assert store.generation() == before

    async def test_the_generation_changes_with_every_change_of_a_key(self, store: KeyStore) -> None:
        seen = {store.generation()}
        key = a_key()
        await store.add(key, actor="ann")
        seen.add(store.generation())
        for status in (KeyStatus.DISABLED, KeyStatus.ACTIVE, KeyStatus.REVOKED):
            await store.set_status(key.id, status, at=NOW_US, actor="ann")
            seen.add(store.generation())
        assert len(seen) == 5

    async def test_use_of_a_key_does_not_change_the_generation(self, store: KeyStore) -> None:
        key = a_key()
        await store.add(key, actor="ann")
        before = store.generation()
        await store.touch({key.id: NOW_US})
        assert store.generation() == before


class RegistryContract:
    async def test_an_id_is_taken_once(self, store: KeyStore) -> None:
        key = a_key("s1")
        await store.add(key, actor="ann")
        with pytest.raises(KeyConflict):
            await store.add(replace(key, digest=digest_of("s2")), actor="ann")
        assert await store.list(KeyFilter()) == [key]

    async def test_a_digest_is_taken_once(self, store: KeyStore) -> None:
        await store.add(a_key("s1"), actor="ann")
        with pytest.raises(KeyConflict):
            await store.add(a_key("s1"), actor="ann")

    async def test_get_takes_an_id_or_a_stored_prefix(self, store: KeyStore) -> None:
        key = a_key(prefix="hv_live_abcd")
        await store.add(key, actor="ann")
        assert await store.get(key.id) == key
        assert await store.get("hv_live_abcd") == key
        assert await store.get("hv_live_") is None
        assert await store.get("schlüssel\ud800") is None

    async def test_a_prefix_that_several_keys_share_is_a_conflict_that_names_them(self, store: KeyStore) -> None:
        twins = [a_key(prefix="hv_live_abcd"), a_key(prefix="hv_live_abcd")]
        for key in twins:
            await store.add(key, actor="ann")
        with pytest.raises(KeyConflict, match=twins[0].id):
            await store.get("hv_live_abcd")

    async def test_list_is_in_order_of_id_and_comes_in_pages(self, store: KeyStore) -> None:
        keys = [a_key() for _ in range(5)]
        for key in reversed(keys):
            await store.add(key, actor="ann")
        assert await store.list(KeyFilter()) == keys
        assert await store.list(KeyFilter(limit=2)) == keys[:2]
        assert await store.list(KeyFilter(after=keys[1].id, limit=2)) == keys[2:4]

    async def test_list_filters_by_tenant_environment_and_status(self, store: KeyStore) -> None:
        acme = a_key(tenant="acme", environment="live")
        acme_test = a_key(tenant="acme", environment="test")
        other = a_key(tenant="other", environment="test")
        for key in (acme, acme_test, other):
            await store.add(key, actor="ann")
        disabled = await store.set_status(other.id, KeyStatus.DISABLED, at=NOW_US, actor="ann")
        assert await store.list(KeyFilter(tenant="acme")) == [acme, acme_test]
        assert await store.list(KeyFilter(environment="test")) == [acme_test, disabled]
        assert await store.list(KeyFilter(status=KeyStatus.DISABLED)) == [disabled]
        assert await store.list(KeyFilter(tenant="acme", environment="test")) == [acme_test]
        assert await store.list(KeyFilter(tenant="' OR 1=1 --")) == []

    async def test_a_key_is_disabled_and_enabled(self, store: KeyStore) -> None:
        key = a_key()
        await store.add(key, actor="ann")
        disabled = await store.set_status(key.id, KeyStatus.DISABLED, at=NOW_US + 5, actor="ann")
        assert disabled == replace(key, status=KeyStatus.DISABLED, disabled_at=NOW_US + 5)
        assert await store.get(key.id) == disabled
        assert await store.set_status(key.id, KeyStatus.ACTIVE, at=NOW_US + 6, actor="ann") == key
        assert await store.get(key.id) == key

    async def test_a_status_that_a_key_has_already_is_no_change(self, store: KeyStore) -> None:
        key = a_key()
        await store.add(key, actor="ann")
        first = await store.set_status(key.id, KeyStatus.REVOKED, at=NOW_US + 5, actor="ann")
        before = store.generation()
        assert await store.set_status(key.id, KeyStatus.REVOKED, at=NOW_US + 9, actor="bob") == first
        assert store.generation() == before

    @pytest.mark.parametrize("status", [KeyStatus.ACTIVE, KeyStatus.DISABLED])
    async def test_revoked_is_final(self, store: KeyStore, status: KeyStatus) -> None:
        key = a_key()
        await store.add(key, actor="ann")
        revoked = await store.set_status(key.id, KeyStatus.REVOKED, at=NOW_US, actor="ann")
        with pytest.raises(KeyConflict, match="final"):
            await store.set_status(key.id, status, at=NOW_US, actor="ann")
        assert await store.get(key.id) == revoked

    async def test_an_unknown_id_cannot_be_changed(self, store: KeyStore) -> None:
        with pytest.raises(KeyConflict):
            await store.set_status("key_none", KeyStatus.REVOKED, at=NOW_US, actor="ann")

    async def test_last_used_never_goes_backwards(self, store: KeyStore) -> None:
        key = a_key()
        await store.add(key, actor="ann")
        for at in (NOW_US + 5, NOW_US + 3):
            await store.touch({key.id: at, "key_gone": at})
        found = await store.get(key.id)
        assert found is not None
        assert found.last_used_at == NOW_US + 5

    async def test_changes_at_the_same_time_do_not_disturb_each_other(self, store: KeyStore) -> None:
        keys = [a_key(f"parallel {number}") for number in range(20)]
        twice = [store.add(key, actor="ann") for key in keys] + [store.add(key, actor="bob") for key in keys]
        outcomes = await asyncio.gather(*twice, return_exceptions=True)
        assert sum(isinstance(outcome, KeyConflict) for outcome in outcomes) == 20
        assert await store.list(KeyFilter()) == keys


class StoreContract(ReaderContract, RegistryContract):
    """Both."""
