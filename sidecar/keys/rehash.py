"""Keys that are not hashed as new ones are get hashed anew when they are used, off the request's way."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final, Protocol

from sidecar.core.model import ApiKey
from sidecar.keys.ports import Actor, KeyReader, StoreUnavailable

_BATCH: Final = 1_000
"""Keys of one transaction, so that nobody waits long for the write lock."""
_ACTOR: Final = Actor(name="sidecar", source="first use")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewHash:
    """What is to stand in place of a key's digest, if that is still `old`."""

    key_id: str
    old: bytes = field(repr=False)
    old_algorithm: str
    digest: bytes = field(repr=False)
    algorithm: str


class Rehashes(Protocol):
    """Where digests are replaced."""

    async def rehash(self, hashes: Sequence[NewHash], *, at: int, actor: Actor) -> None:
        """With an audit row for each, in one transaction; one that does not fit any longer is left out.

        Raises StoreUnavailable.
        """


class Rehashing:
    """A KeyReader that notes such keys, and hands them out as they will be once `flush` has written them.

    So a stream that began before can be looked up afterwards, and while it waits. `newest` is the algorithm of new
    keys, whose digest stands first among those asked for. At most `size` keys wait; each is tried once, for two
    processes with other peppers must not hash it to and fro. `clock` in Unix seconds.
    """

    def __init__(self, reader: KeyReader, newest: str, *, clock: Callable[[], float], size: int = 10_000) -> None:
        self._reader = reader
        self._newest = newest
        self._clock = clock
        self._size = size
        self._waiting: dict[bytes, NewHash] = {}
        self._tried: dict[str, None] = {}
        self.generation = reader.generation

    async def find(self, digests: Mapping[bytes, str]) -> ApiKey | None:
        """As KeyReader.find."""
        first, algorithm = next(iter(digests.items()))
        if (waiting := self._waiting.get(first)) is not None:
            digests = {**digests, waiting.old: waiting.old_algorithm}
        key = await self._reader.find(digests)
        if key is None or key.algorithm == self._newest or algorithm != self._newest:
            return key
        return self._noted(key, first)

    async def flush(self, rehashes: Rehashes) -> None:
        """Raises StoreUnavailable; what was not written then is kept for the next call."""
        while batch := list(islice(self._waiting.values(), _BATCH)):
            await rehashes.rehash(batch, at=int(self._clock() * 1_000_000), actor=_ACTOR)
            for written in batch:
                self._waiting.pop(written.digest, None)
                self._tried[written.key_id] = None
            while len(self._tried) > 10 * self._size:
                del self._tried[next(iter(self._tried))]

    async def finish(self, rehashes: Rehashes) -> None:
        """The last flush; keys that the store does not take now are noted again at their next use."""
        with suppress(StoreUnavailable):
            await self.flush(rehashes)

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
