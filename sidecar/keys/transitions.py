"""Changes of a key as pure functions: which change may follow which. Times in microseconds."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any, Final, Literal, assert_never

from sidecar.core.model import ApiKey, KeyStatus
from sidecar.core.units import rfc3339
from sidecar.keys.ports import Actor, KeyChanged, KeyConflict, KeyRegistry
from sidecar.keys.records import effective_status, etag_of
from sidecar.keys.validation import InvalidKey, KeyRules, NewKey, Violation

# A replaced key that is not used any more may retire before its overlap ends.


_ACTOR: Final = Actor(name="sidecar", source="unused")


def unused_since(key: ApiKey) -> int:
    """When a replaced key was last used or, if it was not used since, replaced."""
    return max(key.replaced_at or 0, key.last_used_at or 0)


def retired_unused(key: ApiKey, unused: int, now: int) -> ApiKey:
    """End the overlap at `now`. Raises KeyConflict for a key that is in no overlap, or was used within `unused`."""
    if key.replaced_at is None or key.retires_at is None or effective_status(key, now) != "active":
        raise KeyConflict(f"key {key.id!r} is not in the overlap of a rotation")
    # Negative after the clock was set back: the key stays.
    if now - unused_since(key) < unused:
        raise KeyConflict(f"key {key.id!r} was used or replaced too recently")
    return replace(key, retires_at=now)


async def retire_unused(store: KeyRegistry, key_id: str, unused: int, now: int) -> ApiKey:
    """End the key's overlap if it is still unused. Raises KeyConflict where it is not, and StoreUnavailable."""
    return await store.change(
        key_id, lambda key: retired_unused(key, unused, now), action="retire", at=now, actor=_ACTOR
    )


class Unset(Enum):
    """A field that was not given. A type of its own, because None is a value."""

    UNSET = "unset"


UNSET: Final = Unset.UNSET
Unasked = Literal[Unset.UNSET]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChange:
    """Fields of a key to change; UNSET stays as it is. `plan` None is no plan, `expires_at` None is never."""

    name: str | Unasked = UNSET
    scopes: tuple[str, ...] | Unasked = UNSET
    plan: str | Unasked | None = UNSET
    quotas: Mapping[str, int] | Unasked = UNSET
    metadata: Mapping[str, str] | Unasked = UNSET
    expires_at: int | Unasked | None = UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """How a key is replaced: how long the old one stays valid, and when the new one expires.

    `expires_at` UNSET is when the old one would have, None is never.
    """

    overlap_seconds: float = 86_400
    expires_at: int | Unasked | None = UNSET


class AlreadyReplaced(KeyConflict):
    """The key has a successor."""


def expect(key: ApiKey, etag: str | None) -> None:
    """Raises KeyChanged where `etag` is not that of the key; None fits every key."""
    if etag is not None and etag_of(key) != etag:
        raise KeyChanged(f"key {key.id!r} was changed since it was read: read it again")


def with_status(key: ApiKey, status: KeyStatus, at: int) -> ApiKey:
    """The key after disable, enable or revoke at `at`; unchanged where it has the status already.

    Raises KeyConflict for a revoked key.
    """
    if key.status is status:
        return key
    _refuse_revoked(key)
    match status:
        case KeyStatus.ACTIVE:
            return replace(key, status=status, disabled_at=None)
        case KeyStatus.DISABLED:
            return replace(key, status=status, disabled_at=at)
        case KeyStatus.REVOKED:
            return replace(key, status=status, revoked_at=at)
        case _:
            assert_never(status)


def with_change(key: ApiKey, change: KeyChange, rules: KeyRules, now: int) -> ApiKey:
    """The key after `change`. Only changed fields must fit `rules`.

    Raises KeyConflict for a revoked key, InvalidKey with every problem.
    """
    _refuse_revoked(key)
    asked: dict[str, Any] = {field.name: getattr(change, field.name) for field in fields(change)}
    if asked["scopes"] is not UNSET:
        asked["scopes"] = tuple(dict.fromkeys(asked["scopes"]))
    new = {name: value for name, value in asked.items() if value is not UNSET and value != getattr(key, name)}
    rules.check(NewKey(**{"name": "as before", **new}), now)
    return replace(key, **new)


def retired(key: ApiKey, rotation: Rotation, now: int) -> ApiKey:
    """The key beside its successor: valid until the overlap ends, and never past its own expiry.

    Raises AlreadyReplaced, and KeyConflict for a key that is not active.
    """
    if key.retires_at is not None and key.status is KeyStatus.ACTIVE:
        raise AlreadyReplaced(f"key {key.id!r} is replaced already")
    if (now_is := effective_status(key, now)) != "active":
        advice = "enable it first" if now_is == "disabled" else "issue a new one"
        raise KeyConflict(f"key {key.id!r} is {now_is} and cannot be rotated: {advice}")
    end = now + int(rotation.overlap_seconds * 1_000_000)
    return replace(key, replaced_at=now, retires_at=end if key.expires_at is None else min(end, key.expires_at))


def expiry_after(key: ApiKey, rotation: Rotation, rules: KeyRules, now: int) -> int | None:
    """When the successor of `key` expires: as the rotation says, or when the key itself would have.

    Raises InvalidKey where the key expires within the overlap and the rotation gives no time, or a wrong one.
    """
    if rotation.expires_at is not UNSET:
        rules.check(NewKey(name="as before", expires_at=rotation.expires_at), now)
        return rotation.expires_at
    if key.expires_at is not None and key.expires_at <= now + int(rotation.overlap_seconds * 1_000_000):
        problem = f"key {key.id} expires at {rfc3339(key.expires_at)}, and so would the new one, within the overlap"
        raise InvalidKey([Violation(f"{problem}: say when the new one expires (--expires, expires_at)", "expires_at")])
    return key.expires_at


def successor_of(key: ApiKey, stored: Mapping[str, Any], expires_at: int | None) -> ApiKey:
    """A new key with the permissions of `key`. `stored` holds the fields that differ."""
    unused = {"last_used_at": None, "last_used_address": None, "last_used_agent": None}
    return replace(key, **{**unused, **stored, "expires_at": expires_at, "replaces": key.id})


def _refuse_revoked(key: ApiKey) -> None:
    if key.status is KeyStatus.REVOKED:
        raise KeyConflict(f"key {key.id!r} is revoked, which is final: issue a new one")
