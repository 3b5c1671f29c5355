"""Keys in memory, valid only while the store's generation is the same."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final, Literal, TypeVar

from sidecar.core.model import ApiKey
from sidecar.keys.ports import KeyReader, StoreUnavailable


class CacheEntry:
    """A key in memory, read when the store was at `generation`. Compared by identity."""

    __slots__ = ("generation", "key")

    def __init__(self, key: ApiKey, generation: int) -> None:
        self.key, self.generation = key, generation


class Miss(Enum):
    """The cache does not know. A type of its own, because None means that there is no such key."""

    MISS = "miss"


MISS: Final = Miss.MISS

T = TypeVar("T")
_Outcome = CacheEntry | StoreUnavailable | Literal[Miss.MISS] | None


class KeyCache:
    """Bounded memory of keys and of unknown secrets, by the SHA-256 of the secret.

    Each entry holds the generation from before its read, and is valid only while the store has the same one. Unknown
    secrets have a memory of their own, so that strangers cannot push keys out.
    """

    def __init__(self, reader: KeyReader, *, size: int, unknown_size: int = 10_000) -> None:
        """Must be created in a running event loop."""
        self._reader = reader
        self._call_soon = asyncio.get_running_loop().call_soon
        self._turn: int | None = None
        """The generation read in this turn of the loop; None before that."""
        self._size, self._crowded = size, size // 2
        self._unknown_size = unknown_size
        self._known: OrderedDict[bytes, CacheEntry] = OrderedDict()
        self._unknown: OrderedDict[bytes, int] = OrderedDict()
        """The generation in which each secret was unknown."""
        self._flights: dict[tuple[bytes, int], asyncio.Future[_Outcome]] = {}
        self.hits = 0
        self.misses = 0
        self.negative_hits = 0

    def __len__(self) -> int:
        return len(self._known) + len(self._unknown)

    def peek(self, secret_digest: bytes) -> CacheEntry | Literal[Miss.MISS] | None:
        """The key, None for a secret known to be unknown, or MISS, also where only `find` can tell the generation.

        The store's generation is read once in a turn of the loop. Every request of the turn was received before the
        turn began, so it sees each change that was acknowledged before the request was sent. Raises StoreUnavailable.
        """
        generation = self._turn
        if generation is None:
            generation = self._reader.generation()
            if generation is None:
                return MISS
            self._turn = generation
            self._call_soon(self._end_turn)
        return self._look(secret_digest, generation)

    def remembers(self, secret_digest: bytes) -> bool:
        """Whether it is a key's that was here, out of date or not, or the store is being asked for it."""
        return secret_digest in self._known or (secret_digest, self._turn) in self._flights

    async def find(self, secret_digest: bytes, candidates: Callable[[], Mapping[bytes, str]]) -> CacheEntry | None:
        """The key, or None. `candidates` returns the digests to look up in the store. Raises StoreUnavailable.

        The result includes each change that was acknowledged before the call.
        """
        while True:
            # Read before the key: after a change in between, the entry is out of date at once.
            generation = self._reader.generation()
            if generation is None:
                generation = await self._reader.read_generation()
            outcome: _Outcome = self._look(secret_digest, generation)
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

    def _look(self, secret_digest: bytes, generation: int) -> CacheEntry | Literal[Miss.MISS] | None:
        known = self._known.get(secret_digest)
        if known is not None and known.generation == generation:
            # While half of the memory is free, nothing is pushed out, and the order does not matter.
            if len(self._known) > self._crowded:
                self._known.move_to_end(secret_digest)
            self.hits += 1
            return known
        if self._unknown.get(secret_digest) == generation:
            self._unknown.move_to_end(secret_digest)
            self.negative_hits += 1
            return None
        return MISS

    async def _read(
        self, secret_digest: bytes, generation: int, candidates: Callable[[], Mapping[bytes, str]]
    ) -> CacheEntry | None:
        flight: asyncio.Future[_Outcome] = asyncio.get_running_loop().create_future()
        self._flights[secret_digest, generation] = flight
        # Where this reader is cancelled, MISS sends the waiting ones back to the start, and one of them reads.
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
        if key is None:
            self._known.pop(secret_digest, None)
            _put(self._unknown, secret_digest, generation, most=self._unknown_size)
            return None
        self._unknown.pop(secret_digest, None)
        known = CacheEntry(key, generation)
        _put(self._known, secret_digest, known, most=self._size)
        return known


def _put(entries: OrderedDict[bytes, T], secret_digest: bytes, entry: T, *, most: int) -> None:
    entries[secret_digest] = entry
    entries.move_to_end(secret_digest)
    if len(entries) > most:
        entries.popitem(last=False)
