"""The verbs of a key's life."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sidecar.core.apikey import ALPHABET, Hasher, Secret, base62, looks_secret, pepper_id
from sidecar.core.model import ApiKey, KeyStatus
from sidecar.keys.rules import KeyRules, NewKey
from sidecar.keys.store import KeyCensus, KeyStore

_ID_LENGTH: Final = 20
"""Fewer than the random characters of any plaintext, which tells the two apart."""


class MissingPepper(Exception):
    """The store holds keys that cannot be recognised without a pepper that is not loaded. The message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A new key, and its plaintext for the only time."""

    key: ApiKey
    secret: Secret


class Lifecycle:
    """Changes keys in the name of an actor. `clock` in Unix seconds, `randbelow` as `secrets.randbelow`.

    Every method raises StoreUnavailable.
    """

    def __init__(
        self, store: KeyStore, hasher: Hasher, *, clock: Callable[[], float], randbelow: Callable[[int], int]
    ) -> None:
        self._store = store
        self._hasher = hasher
        self._clock = clock
        self._randbelow = randbelow

    async def issue(self, wanted: NewKey, rules: KeyRules, *, actor: str) -> Issued:
        """Raises UnfitKey with every problem of `wanted`."""
        now = self._now()
        rules.check(wanted, now)
        environment = rules.environment_of(wanted)
        text = rules.format.make(rules.prefix_of(environment), self._randbelow)
        digest, algorithm = self._hasher.for_new(text)
        scopes = rules.default_scopes if wanted.scopes is None else wanted.scopes
        key = ApiKey(
            id=f"key_{base62(self._randbelow(len(ALPHABET) ** _ID_LENGTH), _ID_LENGTH)}",
            name=wanted.name,
            prefix=text[: rules.prefix_length],
            digest=digest,
            algorithm=algorithm,
            tenant=wanted.tenant,
            environment=environment,
            scopes=tuple(dict.fromkeys(scopes)),
            plan=wanted.plan,
            quotas=dict(wanted.quotas),
            metadata=dict(wanted.metadata),
            created_at=now,
            created_by=actor,
            expires_at=wanted.expires_at,
        )
        await self._store.add(key, actor=actor)
        return Issued(key=key, secret=Secret(text=text))

    async def disable(self, key_id: str, *, actor: str) -> ApiKey:
        """Refused until it is enabled again. Raises KeyConflict for an unknown id and a revoked key."""
        return await self._set(key_id, KeyStatus.DISABLED, actor)

    async def enable(self, key_id: str, *, actor: str) -> ApiKey:
        """Raises KeyConflict for an unknown id and a revoked key."""
        return await self._set(key_id, KeyStatus.ACTIVE, actor)

    async def revoke(self, key_id: str, *, actor: str) -> ApiKey:
        """For ever. A key that is revoked already stays as it is. Raises KeyConflict for an unknown id."""
        return await self._set(key_id, KeyStatus.REVOKED, actor)

    async def find_by(self, text: str) -> ApiKey | None:
        """The key with this id, stored prefix or plaintext. Raises KeyConflict for a prefix that several keys share."""
        # A plaintext must not be handed to the store as a name, not even one that is not found.
        return await self.find_by_secret(text) if looks_secret(text) else await self._store.get(text)

    async def find_by_secret(self, text: str) -> ApiKey | None:
        """The key with this plaintext, which goes no further than its digest."""
        return await self._store.find(self._hasher.candidates(text)) if text.isascii() else None

    async def _set(self, key_id: str, status: KeyStatus, actor: str) -> ApiKey:
        return await self._store.set_status(key_id, status, at=self._now(), actor=actor)

    def _now(self) -> int:
        return int(self._clock() * 1_000_000)


async def check_peppers(store: KeyCensus, hasher: Hasher) -> None:
    """Raises MissingPepper when keys that are not revoked are hashed in a way that `hasher` cannot repeat."""
    for algorithm, count in (await store.algorithms()).items():
        if algorithm in hasher.algorithms:
            continue
        keys = f"the store has {count} {'key' if count == 1 else 'keys'} hashed with"
        missing = pepper_id(algorithm)
        if missing is None:
            raise MissingPepper(f"{keys} {algorithm!r}: use a newer sidecar")
        raise MissingPepper(
            f"{keys} pepper {missing}, which is not loaded: set SIDECAR_PEPPER or SIDECAR_PEPPER_PREVIOUS to it"
        )
