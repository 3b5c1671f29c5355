"""Issues, rotates, changes, disables, enables and revokes keys, and rehashes keys with an outdated hash."""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final, Literal

from sidecar.core.apikey import ALPHABET, Hasher, Secret, base62, looks_secret, pepper_id
from sidecar.core.model import EVERY, ApiKey, KeyStatus
from sidecar.core.units import Clock, counted
from sidecar.keys.ports import Actor, IdempotencyKey, KeyReader, KeyRegistry, KeyStatistics, StoreUnavailable
from sidecar.keys.transitions import (
    AlreadyReplaced,
    Generated,
    expect,
    expiry_after,
    retired,
    successor_of,
    unused_since,
    with_change,
    with_status,
)
from sidecar.keys.transitions import KeyChange as KeyChange
from sidecar.keys.transitions import Rotation as Rotation
from sidecar.keys.validation import InvalidKey, KeyRules, NewKey, Violation

# Keys that need attention: too old, about to expire, or about to retire.


Why = Literal["max_age", "expires", "retires"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """An active key that needs attention: why, and when it is or was due (microseconds)."""

    key: ApiKey
    why: Why
    at: int
    unless_used_at: int | None = None
    """When it retires early unless it is used before."""


async def upcoming_keys(
    statistics: KeyStatistics,
    now: int,
    *,
    max_age_seconds: float | None,
    within_seconds: float,
    retire_unused_seconds: float | None = None,
    tenant: str | None = None,
    limit: int = 1_000,
) -> Sequence[Due]:
    """Keys older than `max_age_seconds` (None: any age), or that expire or retire `within_seconds`, earliest first.

    At most `limit` for each reason. A key that retires is listed for that reason only. Raises StoreUnavailable.
    """
    end = now + int(within_seconds * 1_000_000)
    retiring = await statistics.keys_between("retires", since=now + 1, until=end, tenant=tenant, limit=limit)
    expiring = await statistics.keys_between("expires", since=now + 1, until=end, tenant=tenant, limit=limit)
    found = [
        Due(key=key, why="retires", at=key.retires_at or 0, unless_used_at=_unless_used_at(key, retire_unused_seconds))
        for key in retiring
    ]
    found += [Due(key=key, why="expires", at=key.expires_at or 0) for key in expiring if key.retires_at is None]
    if max_age_seconds is not None:
        age = int(max_age_seconds * 1_000_000)
        old = await statistics.keys_between("created", since=0, until=now - age, tenant=tenant, limit=limit)
        alive = [key for key in old if key.expires_at is None or key.expires_at > now]
        found += [Due(key=key, why="max_age", at=key.created_at + age) for key in alive]
    return sorted(found, key=lambda one: (one.at, one.key.id))


def _unless_used_at(key: ApiKey, seconds: float | None) -> int | None:
    if seconds is None or key.replaced_at is None or key.retires_at is None:
        return None
    at = unused_since(key) + int(seconds * 1_000_000)
    return at if at < key.retires_at else None


_ACTIONS: Final = {KeyStatus.ACTIVE: "enable", KeyStatus.DISABLED: "disable", KeyStatus.REVOKED: "revoke"}
_ID_LENGTH: Final = 20
"""Fewer than the random characters of any plaintext, so that an id is never taken for one."""
_ID_BYTES: Final = 4_096
_LEFT_OUT: Final = bytes(range(256 - 256 % len(ALPHABET), 256))
_LETTERS: Final = bytes(ord(ALPHABET[byte % len(ALPHABET)]) for byte in range(256))


class MissingPepper(Exception):
    """The store holds keys that cannot be verified, because their pepper is not loaded. The message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A new key and its plaintext, which is not stored."""

    key: ApiKey
    secret: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotated:
    """The old key and the new one."""

    old: ApiKey
    new: Issued


class KeyMaker:
    """Makes keys without storing them. randbelow: as `secrets.randbelow`."""

    def __init__(self, hasher: Hasher, *, clock: Clock, randbelow: Callable[[int], int]) -> None:
        self._hasher = hasher
        self._clock = clock
        self._randbelow = randbelow

    def prepare(self, wanted: NewKey, rules: KeyRules, *, actor: Actor) -> Issued:
        """Make a key without storing it. Raises InvalidKey with every problem of `wanted`."""
        now = self._now()
        rules.check_new(wanted, now)
        environment = rules.environment_of(wanted)
        scopes = rules.default_scopes if wanted.scopes is None else wanted.scopes
        generated = self._generate(environment, rules, now, actor)
        key = ApiKey(
            id=generated.id,
            prefix=generated.prefix,
            digest=generated.digest,
            algorithm=generated.algorithm,
            created_at=generated.created_at,
            created_by=generated.created_by,
            name=wanted.name,
            tenant=wanted.tenant,
            environment=environment,
            scopes=tuple(dict.fromkeys(scopes)),
            plan=rules.plan_of(wanted),
            quotas=dict(wanted.quotas),
            metadata=dict(wanted.metadata),
            expires_at=wanted.expires_at,
        )
        return Issued(key=key, secret=generated.secret)

    def _generate(self, environment: str, rules: KeyRules, at: int, actor: Actor) -> Generated:
        prefix = rules.prefix_of(environment)
        text = rules.format.make(prefix, self._randbelow)
        digest, algorithm = self._hasher.for_new(text)
        return Generated(
            secret=Secret(text=text),
            id=new_id(self._randbelow),
            prefix=text[: rules.stored_length(prefix)],
            digest=digest,
            algorithm=algorithm,
            created_at=at,
            created_by=actor.name,
        )

    def _now(self) -> int:
        return self._clock.micros()


class Lifecycle(KeyMaker):
    """Changes keys on behalf of an actor. randbelow: as `secrets.randbelow`.

    Every method raises StoreUnavailable. Those that change a key raise UnknownKey, and KeyChanged if `expected_etag` is
    given and the key no longer has it.
    """

    def __init__(self, store: KeyRegistry, hasher: Hasher, *, clock: Clock, randbelow: Callable[[int], int]) -> None:
        super().__init__(hasher, clock=clock, randbelow=randbelow)
        self._store = store

    async def issue(
        self, wanted: NewKey, rules: KeyRules, *, actor: Actor, idempotency_key: IdempotencyKey | None = None
    ) -> Issued:
        """Raises InvalidKey with every problem of `wanted`; AlreadyProcessed and IdempotencyKeyReused."""
        issued = self.prepare(wanted, rules, actor=actor)
        await self._store.add([issued.key], actor=actor, once=idempotency_key)
        return issued

    async def rotate(
        self,
        key_id: str,
        rotation: Rotation,
        rules: KeyRules,
        *,
        actor: Actor,
        expected_etag: str | None = None,
        idempotency_key: IdempotencyKey | None = None,
    ) -> Rotated:
        """Issue a new key with the scopes, plan and limits of this one, which retires after the overlap.

        Raises InvalidKey, AlreadyProcessed, IdempotencyKeyReused, and KeyConflict for a key that is not active or that
        was replaced before.
        """
        at, secrets = self._now(), list[Secret]()

        def edit(key: ApiKey) -> tuple[ApiKey, ApiKey]:
            expect(key, expected_etag)
            old = retired(key, rotation, at)
            generated = self._generate(_environment_of(key, rules), rules, at, actor)
            # A store that runs the edit again keeps the key of the last run.
            secrets.append(generated.secret)
            return old, successor_of(key, generated, expiry_after(key, rotation, rules, at))

        try:
            old, new = await self._store.replace(
                key_id, edit, action="rotate", at=at, actor=actor, once=idempotency_key
            )
        except AlreadyReplaced as error:
            raise await self._naming_successor(error, key_id) from error
        return Rotated(old=old, new=Issued(key=new, secret=secrets[-1]))

    async def change(
        self, key_id: str, change: KeyChange, rules: KeyRules, *, actor: Actor, expected_etag: str | None = None
    ) -> ApiKey:
        """Raises InvalidKey with every problem of `change`, KeyConflict for a revoked key."""
        at = self._now()

        def edit(key: ApiKey) -> ApiKey:
            expect(key, expected_etag)
            return with_change(key, change, rules, at)

        return await self._store.change(key_id, edit, action="change", at=at, actor=actor)

    async def disable(self, key_id: str, *, actor: Actor, expected_etag: str | None = None) -> ApiKey:
        """Disable the key until it is enabled again. Raises KeyConflict for a revoked key."""
        return await self._set_status(key_id, KeyStatus.DISABLED, actor, expected_etag)

    async def enable(self, key_id: str, *, actor: Actor, expected_etag: str | None = None) -> ApiKey:
        """Re-enable the key. Raises KeyConflict for a revoked key."""
        return await self._set_status(key_id, KeyStatus.ACTIVE, actor, expected_etag)

    async def revoke(self, key_id: str, *, actor: Actor, expected_etag: str | None = None) -> ApiKey:
        """Revoke the key, which is final. A revoked key stays unchanged."""
        return await self._set_status(key_id, KeyStatus.REVOKED, actor, expected_etag)

    async def find_by(self, text: str) -> ApiKey | None:
        """The key with this id, stored prefix or plaintext. Raises KeyConflict for a prefix that several keys share."""
        # A plaintext must not reach the store as a name, even if no key has it.
        return await self.find_by_secret(text) if looks_secret(text) else await self._store.get(text)

    async def find_by_secret(self, text: str) -> ApiKey | None:
        """The key with this plaintext. Only its digests reach the store."""
        return await self._store.find(self._hasher.candidates(text)) if text.isascii() else None

    async def successor(self, key_id: str) -> ApiKey | None:
        """The key that replaces this one."""
        return await self._store.successor(key_id)

    async def _set_status(self, key_id: str, status: KeyStatus, actor: Actor, etag: str | None) -> ApiKey:
        at = self._now()

        def edit(key: ApiKey) -> ApiKey:
            expect(key, etag)
            return with_status(key, status, at)

        return await self._store.change(key_id, edit, action=_ACTIONS[status], at=at, actor=actor)

    async def _naming_successor(self, error: AlreadyReplaced, key_id: str) -> AlreadyReplaced:
        new = await self.successor(key_id)
        return AlreadyReplaced(f"{error} by {new.id!r}: rotate that one") if new is not None else error


def new_id(randbelow: Callable[[int], int]) -> str:
    """The id of a new key."""
    return f"key_{base62(randbelow(len(ALPHABET) ** _ID_LENGTH), _ID_LENGTH)}"


def new_ids(urandom: Callable[[int], bytes]) -> Iterator[str]:
    """Any number of ids, each at a tenth of the cost of `new_id`. urandom: as `os.urandom`."""
    while True:
        # Each letter stands for the same number of byte values, so all are equally likely; other bytes are dropped.
        letters = urandom(_ID_BYTES).translate(_LETTERS, _LEFT_OUT).decode("ascii")
        for start in range(0, len(letters) - _ID_LENGTH + 1, _ID_LENGTH):
            yield f"key_{letters[start : start + _ID_LENGTH]}"


def _environment_of(key: ApiKey, rules: KeyRules) -> str:
    environment = rules.environment_of(NewKey(name=key.name, environment=key.environment))
    if environment != EVERY and environment not in rules.environments:
        text = f"the environment {environment!r} of key {key.id} is no longer configured"
        raise InvalidKey([Violation(text, "environment")])
    return environment


async def check_peppers(statistics: KeyStatistics, hasher: Hasher) -> None:
    """Raises MissingPepper if `hasher` cannot compute the hashes of all keys that are not revoked."""
    for algorithm, count in (await statistics.algorithms()).items():
        if algorithm in hasher.algorithms:
            continue
        keys = f"the store has {counted(count, 'key')} hashed with"
        missing = pepper_id(algorithm)
        if missing is None:
            raise MissingPepper(f"{keys} {algorithm!r}: use a newer sidecar")
        raise MissingPepper(
            f"{keys} pepper {missing}, which is not loaded: set SIDECAR_PEPPER or SIDECAR_PEPPER_PREVIOUS to it, "
            "or, if they were made elsewhere, name it in keys.imported"
        )


_BATCH: Final = 1_000
"""Keys in one transaction, so that no other writer waits long."""
_ACTOR: Final = Actor(name="sidecar", source="first use")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewHash:
    """The digest that replaces a key's digest, if that is still `old`."""

    key_id: str
    old: bytes = field(repr=False)
    old_algorithm: str
    digest: bytes = field(repr=False)
    algorithm: str


Rehash = Callable[[Sequence[NewHash], int, Actor], Awaitable[None]]
"""Replaces digests at a time in microseconds, each with an audit row, in one transaction. Raises StoreUnavailable.

Skips a key whose digest is no longer the old one, or whose new digest belongs to another key.
"""


class Rehashing:
    """A KeyReader that collects keys to rehash, and returns them as they will be once `flush` has written them.

    So the key of a stream that began before the flush is still found afterwards. `newest` is the algorithm of new keys,
    whose digest is the first candidate of a lookup. At most `size` keys wait; each is tried once, because two processes
    with different peppers must not rehash it back and forth.
    """

    def __init__(self, reader: KeyReader, newest: str, *, clock: Clock, size: int = 10_000) -> None:
        self._reader = reader
        self._newest = newest
        self._clock = clock
        self._size = size
        self._waiting: dict[bytes, NewHash] = {}
        self._tried: dict[str, None] = {}
        self.generation, self.read_generation = reader.generation, reader.read_generation
        self.changes_since = reader.changes_since

    async def find(self, digests: Mapping[bytes, str]) -> ApiKey | None:
        """As KeyReader.find."""
        first, algorithm = next(iter(digests.items()))
        if (waiting := self._waiting.get(first)) is not None:
            digests = {**digests, waiting.old: waiting.old_algorithm}
        key = await self._reader.find(digests)
        if key is None or key.algorithm == self._newest or algorithm != self._newest:
            return key
        return self._collect(key, first)

    async def flush(self, rehash: Rehash) -> None:
        """Write the pending digests. Raises StoreUnavailable; the rest is kept for the next call."""
        while batch := list(islice(self._waiting.values(), _BATCH)):
            await rehash(batch, self._clock.micros(), _ACTOR)
            for written in batch:
                self._waiting.pop(written.digest, None)
                self._tried[written.key_id] = None
            while len(self._tried) > 10 * self._size:
                del self._tried[next(iter(self._tried))]

    async def finish(self, rehash: Rehash) -> None:
        """The last flush. Keys that cannot be written now are collected again at their next use."""
        with suppress(StoreUnavailable):
            await self.flush(rehash)

    def _collect(self, key: ApiKey, digest: bytes) -> ApiKey:
        if digest not in self._waiting:
            if key.id in self._tried or len(self._waiting) >= self._size:
                return key
            self._waiting[digest] = NewHash(
                key_id=key.id,
                old=key.digest,
                old_algorithm=key.algorithm,
                digest=digest,
                algorithm=self._newest,
            )
        return replace(key, digest=digest, algorithm=self._newest)
