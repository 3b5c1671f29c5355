"""Keys in memory, each valid until the store reports a change of it."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final, Literal, Protocol

from sidecar.core.model import ApiKey
from sidecar.keys.grace import Grace
from sidecar.keys.ports import KeyReader, StoreUnavailable

MOST_CHANGES: Final = 1_000
"""Most changes of keys that are tracked one by one; if there are more, every key is reread."""


class KeyChanges:
    """Which keys changed from one generation of the store to the next; written by the store, read by caches.

    Every change must lead to another generation, and no generation may come twice.
    """

    def __init__(self) -> None:
        self.generation = 0
        """The newest generation."""
        self._steps: deque[tuple[int, frozenset[str]]] = deque()
        """Steps, oldest first: a generation, and the ids of the keys that changed between it and the next step."""
        self._tracked = 0
        """Ids in all steps."""

    def add(self, generation: int, changed: frozenset[str] | None) -> None:
        """The store is now at `generation`, and these keys changed since the one before; None: perhaps all."""
        if changed is None:
            self._steps.clear()
            self._tracked = 0
        elif generation != self.generation:
            self._steps.append((self.generation, changed))
            self._tracked += len(changed)
        while self._tracked > MOST_CHANGES or len(self._steps) > MOST_CHANGES:
            self._tracked -= len(self._steps.popleft()[1])
        self.generation = generation

    def since(self, generation: int) -> frozenset[str] | None:
        """As KeyReader.changes_since."""
        changed: frozenset[str] = frozenset()
        if generation == self.generation:
            return changed
        for before, ids in reversed(self._steps):
            changed |= ids
            if before == generation:
                return changed
        return None


class CacheEntry:
    """A key in memory, valid while `epoch` is its cache's. Compared by identity."""

    __slots__ = ("epoch", "key")

    def __init__(self, key: ApiKey, epoch: int) -> None:
        self.key, self.epoch = key, epoch


class Miss(Enum):
    """The cache does not know. A separate type, because None means that there is no such key."""

    MISS = "miss"


MISS: Final = Miss.MISS

Found = CacheEntry | Literal[Miss.MISS] | None
"""What the cache knows about a secret."""
_OUT_OF_DATE: Final = -1
"""An epoch that no cache has."""
_Outcome = CacheEntry | StoreUnavailable | Literal[Miss.MISS] | None


class KeyFinder(Protocol):
    """Finds keys: a cache over a store or, for `explain`, one made-up key. Raises StoreUnavailable."""

    def peek(self, secret_digest: bytes) -> CacheEntry | Literal[Miss.MISS] | None: ...

    def uncount(self, found: Found) -> None:
        """Undo the count of `peek`, because the same key is about to be looked up again."""

    def remembers(self, secret_digest: bytes) -> bool: ...

    async def find(self, secret_digest: bytes, candidates: Callable[[], Mapping[bytes, str]]) -> CacheEntry | None: ...


class KeyCache:
    """Bounded memory of keys and of unknown secrets, by the SHA-256 of the secret.

    When the store's generation changes, changed keys are reread (all keys, if it is unknown which changed), and unknown
    secrets are looked up again. Outdated entries stay, so that `remembers` finds them. Unknown secrets have their own
    memory, so that invalid requests cannot push keys out.

    While `grace` lasts, the store is not needed for keys that were valid when it last answered.
    """

    def __init__(self, reader: KeyReader, *, size: int, unknown_size: int = 10_000, grace: Grace | None = None) -> None:
        """Must be created in a running event loop."""
        loop = asyncio.get_running_loop()
        self._reader = reader
        self._grace = grace or Grace(reader, 0, time=loop.time)
        self._call_soon = loop.call_soon
        self._turn: int | Literal[Miss.MISS] | None = None
        """The generation read in this turn of the loop; None before that, MISS if only `find` can read it."""
        self._generation: int | None = None
        """The newest generation that was read; entries in memory are valid for it."""
        self._epoch = 0
        """How often all keys may have changed at once."""
        self._size, self._crowded = size, size // 2
        self._unknown_size = unknown_size
        self._known: OrderedDict[bytes, CacheEntry] = OrderedDict()
        self._secrets: dict[str, tuple[bytes, ...]] = {}
        """Where each key is in `_known`, by id. Streams also look their key up by its stored digest."""
        self._unknown: OrderedDict[bytes, int] = OrderedDict()
        """The generation in which each secret was unknown."""
        self._flights: dict[tuple[bytes, int], asyncio.Future[_Outcome]] = {}
        self.hits = 0
        self.misses = 0
        self.negative_hits = 0

    def __len__(self) -> int:
        return len(self._known) + len(self._unknown)

    def peek(self, secret_digest: bytes) -> CacheEntry | Literal[Miss.MISS] | None:
        """The key, None for a secret known to be unknown, or MISS, also if only `find` can read the generation.

        The store's generation is read once per turn of the loop. Every request of the turn was received before the turn
        began, so it sees each change that was acknowledged before the request was sent. Raises StoreUnavailable.
        """
        generation = self._turn
        if generation is None:
            try:
                generation = self._reader.generation()
            except StoreUnavailable as error:
                return self._without_store(secret_digest, error)
            if generation is None:
                # No request has to wait for a store that does not respond.
                if self._grace.active:
                    return self._seen(secret_digest)
                # If every key is mistyped, `find` is never called.
                self._turn = MISS
                self._call_soon(self._end_turn)
                return MISS
            self._turn = generation
            self._call_soon(self._end_turn)
            if generation != self._generation:
                self._go_to(generation)
        return MISS if generation is MISS else self._look(secret_digest)

    def uncount(self, found: Found) -> None:
        """As KeyFinder.uncount, in the turn of the loop in which it was found."""
        if found is None:
            self.negative_hits -= 1
        elif found is not MISS:
            self.hits -= 1
            # Where the store answered, its generation is known for the rest of the turn.
            if self._turn is None:
                self._grace.lookups -= 1

    def remembers(self, secret_digest: bytes) -> bool:
        """Whether the secret is of a cached key, even an outdated one, or is being looked up."""
        return secret_digest in self._known or (secret_digest, self._generation) in self._flights

    async def find(self, secret_digest: bytes, candidates: Callable[[], Mapping[bytes, str]]) -> CacheEntry | None:
        """The key, or None. `candidates` returns the digests to look up in the store. Raises StoreUnavailable.

        The result includes each change that was acknowledged before the call, unless the store does not respond.
        """
        while True:
            # Read before the key: after a change in between, the entry is outdated immediately.
            try:
                generation = self._reader.generation()
                if generation is None:
                    if self._grace.active and (known := self._seen(secret_digest)) is not MISS:
                        return known
                    generation = await self._reader.read_generation()
            except StoreUnavailable as error:
                return self._without_store(secret_digest, error)
            if generation != self._generation:
                self._go_to(generation)
            outcome: _Outcome = self._look(secret_digest)
            if outcome is MISS:
                self.misses += 1
                # A read that began under an older generation may have missed a revocation; it is not joined.
                flight = self._flights.get((secret_digest, generation))
                if flight is None:
                    return await self._read(secret_digest, generation, candidates)
                outcome = await asyncio.shield(flight)
            if isinstance(outcome, StoreUnavailable):
                raise StoreUnavailable(str(outcome)) from outcome
            if outcome is not MISS:
                return outcome

    def _end_turn(self) -> None:
        self._turn = None

    def _go_to(self, generation: int) -> None:
        """Move to this generation, and keep entries valid that the store has not changed since."""
        changed = None if self._generation is None else self._reader.changes_since(self._generation)
        self._generation = generation
        if changed is None:
            self._epoch += 1
            return
        for secret_digest in (digest for key_id in changed for digest in self._secrets.get(key_id, ())):
            self._known[secret_digest].epoch = _OUT_OF_DATE

    def _look(self, secret_digest: bytes) -> CacheEntry | Literal[Miss.MISS] | None:
        known = self._known.get(secret_digest)
        if known is not None and known.epoch == self._epoch:
            # While half of the memory is free, nothing is evicted, and the order does not matter.
            if len(self._known) > self._crowded:
                self._known.move_to_end(secret_digest)
            self.hits += 1
            return known
        if secret_digest in self._unknown and self._unknown[secret_digest] == self._generation:
            self._unknown.move_to_end(secret_digest)
            self.negative_hits += 1
            return None
        return MISS

    def _without_store(self, secret_digest: bytes, error: StoreUnavailable) -> CacheEntry:
        """The key, while grace covers it; otherwise raises `error`."""
        known = self._seen(secret_digest) if self._grace.covers(error) else MISS
        if known is MISS:
            raise error
        return known

    def _seen(self, secret_digest: bytes) -> CacheEntry | Literal[Miss.MISS]:
        """The key as it was when the store last responded. A secret that was unknown then may be known now."""
        known = self._known.get(secret_digest)
        if known is None or known.epoch != self._epoch:
            return MISS
        self.hits += 1
        self._grace.lookups += 1
        return known

    async def _read(
        self, secret_digest: bytes, generation: int, candidates: Callable[[], Mapping[bytes, str]]
    ) -> CacheEntry | None:
        flight: asyncio.Future[_Outcome] = asyncio.get_running_loop().create_future()
        self._flights[secret_digest, generation] = flight
        # If this reader is cancelled, MISS makes the waiting ones start over, and one of them reads.
        outcome: _Outcome = MISS
        try:
            key = await self._reader.find(candidates())
            outcome = self._remember(secret_digest, generation, key)
            return outcome
        except StoreUnavailable as error:
            outcome = error
            raise
        finally:
            del self._flights[secret_digest, generation]
            flight.set_result(outcome)

    def _remember(self, secret_digest: bytes, generation: int, key: ApiKey | None) -> CacheEntry | None:
        """generation: the one before the key was read."""
        if key is None:
            self._forget(secret_digest)
            self._unknown[secret_digest] = generation
            self._unknown.move_to_end(secret_digest)
            if len(self._unknown) > self._unknown_size:
                self._unknown.popitem(last=False)
            return None
        self._unknown.pop(secret_digest, None)
        self._forget(secret_digest)
        known = CacheEntry(key, self._epoch if self._is_current(key, generation) else _OUT_OF_DATE)
        self._known[secret_digest] = known
        self._secrets[key.id] = (*self._secrets.get(key.id, ()), secret_digest)
        if len(self._known) > self._size:
            self._forget(next(iter(self._known)))
        return known

    def _is_current(self, key: ApiKey, generation: int) -> bool:
        """Whether the key did not change while it was read."""
        if generation == self._generation:
            return True
        changed = self._reader.changes_since(generation)
        return changed is not None and key.id not in changed

    def _forget(self, secret_digest: bytes) -> None:
        known = self._known.pop(secret_digest, None)
        if known is None:
            return
        others = tuple(digest for digest in self._secrets.pop(known.key.id) if digest != secret_digest)
        if others:
            self._secrets[known.key.id] = others
