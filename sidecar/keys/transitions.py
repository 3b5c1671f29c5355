"""The changes of a key as pure functions, which define what each state allows. Times in microseconds."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeVar, assert_never

from msgspec import UNSET as UNSET
from msgspec import UnsetType as UnsetType

from sidecar.core.apikey import Secret
from sidecar.core.model import ApiKey, KeyStatus
from sidecar.core.units import rfc3339
from sidecar.keys.ports import Actor, Edit, KeyChanged, KeyConflict, KeyRegistry
from sidecar.keys.records import effective_status, etag_of
from sidecar.keys.validation import InvalidKey, KeyRules, NewKey, Violation

# A replaced key that is no longer used may retire before its overlap ends.


_ACTOR: Final = Actor(name="sidecar", source="unused")
_UNCHANGED: Final = "unchanged"
"""A valid name, in place of the key's own."""


def unused_since(key: ApiKey) -> int:
    """When a replaced key was last used, or when it was replaced if that is later."""
    return max(key.replaced_at or 0, key.last_used_at or 0)


def retired_unused(key: ApiKey, unused: int, now: int) -> ApiKey:
    """The key, retired at `now`. Raises KeyConflict if it is not in an overlap, or was used in the last `unused`."""
    if key.replaced_at is None or key.retires_at is None or effective_status(key, now) != "active":
        raise KeyConflict(f"key {key.id!r} is not in the overlap of a rotation")
    # If the clock was set back, the difference is negative, and the key stays.
    if now - unused_since(key) < unused:
        raise KeyConflict(f"key {key.id!r} was used or replaced too recently")
    return replace(key, retires_at=now)


async def retire_unused(store: KeyRegistry, key_id: str, unused: int, now: int) -> ApiKey:
    """Retire the key if it is still unused. Raises KeyConflict if it was used, and StoreUnavailable."""
    return await store.change(
        key_id, lambda key: retired_unused(key, unused, now), action="retire", at=now, actor=_ACTOR
    )


T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChange:
    """New values of a key; a field that is UNSET keeps its value. `plan` None: no plan. `expires_at` None: never."""

    name: str | UnsetType = UNSET
    scopes: tuple[str, ...] | UnsetType = UNSET
    plan: str | UnsetType | None = UNSET
    quotas: Mapping[str, int] | UnsetType = UNSET
    metadata: Mapping[str, str] | UnsetType = UNSET
    expires_at: int | UnsetType | None = UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """How to replace a key: how long the old key stays valid, and when the new one expires.

    `expires_at` UNSET: when the old key does. None: never.
    """

    overlap_seconds: float = 86_400
    expires_at: int | UnsetType | None = UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """A new plaintext, and the fields of its key that follow from it and from the time of issue."""

    secret: Secret
    id: str
    prefix: str
    digest: bytes
    algorithm: str
    created_at: int
    created_by: str


class AlreadyReplaced(KeyConflict):
    """The key was replaced before."""


def expect(key: ApiKey, etag: str | None) -> None:
    """Raises KeyChanged if the key does not have `etag`; None matches every key."""
    if etag is not None and etag_of(key) != etag:
        raise KeyChanged(f"key {key.id!r} was changed since it was read: read it again")


def with_status(key: ApiKey, status: KeyStatus, at: int) -> ApiKey:
    """The key after disable, enable or revoke at `at`; unchanged if it already has the status.

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


ManyAction = Literal["disable", "revoke"]
"""What can be done to many keys at once."""
_STATUS_AFTER: Final[Mapping[ManyAction, KeyStatus]] = {"disable": KeyStatus.DISABLED, "revoke": KeyStatus.REVOKED}


def is_open_to(action: ManyAction, key: ApiKey) -> bool:
    """Whether the action would change the key."""
    return key.status is KeyStatus.ACTIVE or (action == "revoke" and key.status is KeyStatus.DISABLED)


def changed_alike(action: ManyAction, at: int, *, unused_since: int | None) -> Edit:
    """Apply the action to many keys. Skips keys that it no longer applies to, and keys used after `unused_since`."""

    def edit(key: ApiKey) -> ApiKey:
        was_used = unused_since is not None and (key.last_used_at or key.created_at) > unused_since
        return key if was_used or not is_open_to(action, key) else with_status(key, _STATUS_AFTER[action], at)

    return edit


def with_change(key: ApiKey, change: KeyChange, rules: KeyRules, now: int) -> ApiKey:
    """The key after `change`. Values that do not change are not checked: `rules` may no longer allow them.

    Raises KeyConflict for a revoked key, InvalidKey with every problem.
    """
    _refuse_revoked(key)
    scopes = change.scopes if change.scopes is UNSET else tuple(dict.fromkeys(change.scopes))
    changed = replace(
        key,
        name=_value_after(change.name, key.name),
        scopes=_value_after(scopes, key.scopes),
        plan=_value_after(change.plan, key.plan),
        quotas=_value_after(change.quotas, key.quotas),
        metadata=_value_after(change.metadata, key.metadata),
        expires_at=_value_after(change.expires_at, key.expires_at),
    )
    rules.check(_changed_values(key, changed), now)
    _check_lacking(key, changed, rules)
    return changed


def _check_lacking(old: ApiKey, new: ApiKey, rules: KeyRules) -> None:
    """A change must not remove what a key must be issued with. A key that already lacks it may still be changed."""
    problems = [
        problem for problem in _lacking(new, rules) if getattr(old, problem.path[0]) != getattr(new, problem.path[0])
    ]
    if problems:
        raise InvalidKey(problems)


def _lacking(key: ApiKey, rules: KeyRules) -> Iterator[Violation]:
    return rules.lacking(
        NewKey(
            name=key.name,
            scopes=key.scopes,
            tenant=key.tenant,
            environment=key.environment,
            plan=key.plan,
            metadata=key.metadata,
            expires_at=key.expires_at,
        )
    )


def _value_after(new: T | UnsetType, old: T) -> T:
    """The value of a field after a change; the old object if nothing changes."""
    return old if new is UNSET or new == old else new


def _changed_values(old: ApiKey, new: ApiKey) -> NewKey:
    """Those values of `new` that differ from `old`, in the form that the rules check; the others are valid defaults."""
    return NewKey(
        name=_UNCHANGED if new.name == old.name else new.name,
        scopes=None if new.scopes == old.scopes else new.scopes,
        plan=None if new.plan == old.plan else new.plan,
        quotas={} if new.quotas == old.quotas else new.quotas,
        metadata={} if new.metadata == old.metadata else new.metadata,
        expires_at=None if new.expires_at == old.expires_at else new.expires_at,
    )


def retired(key: ApiKey, rotation: Rotation, now: int) -> ApiKey:
    """The key, to retire at the end of the overlap or at its own expiry, whichever is earlier.

    Raises AlreadyReplaced, and KeyConflict for a key that is not active.
    """
    if key.retires_at is not None and key.status is KeyStatus.ACTIVE:
        raise AlreadyReplaced(f"key {key.id!r} is replaced already")
    if (status := effective_status(key, now)) != "active":
        advice = "enable it first" if status == "disabled" else "issue a new one"
        raise KeyConflict(f"key {key.id!r} is {status} and cannot be rotated: {advice}")
    end = now + int(rotation.overlap_seconds * 1_000_000)
    return replace(key, replaced_at=now, retires_at=end if key.expires_at is None else min(end, key.expires_at))


def expiry_after(key: ApiKey, rotation: Rotation, rules: KeyRules, now: int) -> int | None:
    """When the successor of `key` expires: at the time of `rotation`, or by default when `key` does.

    Raises InvalidKey if the default is before the end of the overlap, or if the given time is not valid for a new key.
    """
    if rotation.expires_at is not UNSET:
        rules.check(NewKey(name=_UNCHANGED, expires_at=rotation.expires_at), now)
        return rotation.expires_at
    if key.expires_at is not None and key.expires_at <= now + int(rotation.overlap_seconds * 1_000_000):
        text = f"key {key.id} expires at {rfc3339(key.expires_at)}, and so would the new one, within the overlap"
        raise InvalidKey([Violation(f"{text}: say when the new one expires (--expires, expires_at)", "expires_at")])
    return key.expires_at


def successor_of(key: ApiKey, generated: Generated, expires_at: int | None) -> ApiKey:
    """A new key with the tenant, scopes, plan, limits and metadata of `key`."""
    return replace(
        key,
        id=generated.id,
        prefix=generated.prefix,
        digest=generated.digest,
        algorithm=generated.algorithm,
        created_at=generated.created_at,
        created_by=generated.created_by,
        expires_at=expires_at,
        replaces=key.id,
        last_used_at=None,
        last_used_address=None,
        last_used_agent=None,
    )


def _refuse_revoked(key: ApiKey) -> None:
    if key.status is KeyStatus.REVOKED:
        raise KeyConflict(f"key {key.id!r} is revoked, which is final: issue a new one")
