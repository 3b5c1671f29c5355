"""A replaced key that nobody uses any more may retire before its overlap ends. Times in microseconds."""

from dataclasses import replace
from typing import Final

from sidecar.core.model import ApiKey
from sidecar.keys.ports import Actor, KeyConflict, KeyRegistry
from sidecar.keys.records import standing

_ACTOR: Final = Actor(name="sidecar", source="unused")


def unused_since(key: ApiKey) -> int:
    """When a key that was replaced was last used, or else replaced."""
    return max(key.replaced_at or 0, key.last_used_at or 0)


def retired_unused(key: ApiKey, unused: int, now: int) -> ApiKey:
    """The key with its overlap ended at `now`. Raises KeyConflict where it has not been unused in it for `unused`."""
    if key.replaced_at is None or key.retires_at is None or standing(key, now) != "active":
        raise KeyConflict(f"key {key.id!r} is not in the overlap of a rotation")
    # After a clock was set back this is less than nothing, and the key stays.
    if now - unused_since(key) < unused:
        raise KeyConflict(f"key {key.id!r} was used or replaced too lately")
    return replace(key, retires_at=now)


async def retire_unused(store: KeyRegistry, key_id: str, unused: int, now: int) -> ApiKey:
    """End the key's overlap, if it still is unused. Raises KeyConflict where it is not, and StoreUnavailable."""
    return await store.change(
        key_id, lambda key: retired_unused(key, unused, now), action="retire", at=now, actor=_ACTOR
    )
