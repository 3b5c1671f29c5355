"""Keys whose hash is of an older kind are rehashed when they are used, outside of the request."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

from sidecar.core.model import ApiKey
from sidecar.core.units import Clock
from sidecar.keys.ports import Actor, KeyReader, StoreUnavailable

_BATCH: Final = 1_000
"""Keys of one transaction, so that no other writer waits long."""
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

A key whose digest is not the old one any more stays as it is, and so does one whose new digest another key has.
"""


class Rehashing:
    """A KeyReader that notes such keys, and returns them as they will be once `flush` has written them.

    So a stream that began before the flush is found after it as well. `newest` is the algorithm of new keys, whose
    digest is the first candidate of a lookup. At most `size` keys wait; each is tried once, because two processes
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

    async def find(self, digests: Mapping[bytes, str]) -> ApiKey | None:
        """As KeyReader.find."""
        first, algorithm = next(iter(digests.items()))
        if (waiting := self._waiting.get(first)) is not None:
            digests = {**digests, waiting.old: waiting.old_algorithm}
        key = await self._reader.find(digests)
        if key is None or key.algorithm == self._newest or algorithm != self._newest:
            return key
        return self._noted(key, first)

    async def flush(self, rehash: Rehash) -> None:
        """Write what waits. Raises StoreUnavailable; the rest is kept for the next call."""
        while batch := list(islice(self._waiting.values(), _BATCH)):
            await rehash(batch, self._clock.micros(), _ACTOR)
            for written in batch:
                self._waiting.pop(written.digest, None)
                self._tried[written.key_id] = None
            while len(self._tried) > 10 * self._size:
                del self._tried[next(iter(self._tried))]

    async def finish(self, rehash: Rehash) -> None:
        """The last flush. Keys that cannot be written now are noted again at their next use."""
        with suppress(StoreUnavailable):
            await self.flush(rehash)

    def _noted(self, key: ApiKey, digest: bytes) -> ApiKey:
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
