"""Ports of the key store. Adapters translate every foreign exception at the call that can raise it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sidecar.core.model import ApiKey, KeyStatus


class StoreUnavailable(Exception):
    """The store cannot answer now (locked, unreadable, corrupt, full). The message says what to do."""


class KeyConflict(Exception):
    """The change does not fit what is stored (unknown id, revoked key enabled, digest already there)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFilter:
    """Which keys to list; None is any. `after` is the id that the page before ended with."""

    tenant: str | None = None
    environment: str | None = None
    status: KeyStatus | None = None
    after: str | None = None
    limit: int | None = None


class KeyReader(Protocol):
    """What a request needs of the store."""

    async def find(self, digests: Mapping[bytes, str]) -> ApiKey | None:
        """The key stored under one of `digests` (digest to algorithm, both must fit), or None.

        Raises StoreUnavailable. The cost does not grow with the number of keys.
        """

    def generation(self) -> int:
        """A number that changes whenever any process has changed a key (use of a key is no change).

        Synchronous and cheap (microseconds). Raises StoreUnavailable.
        """


class KeyRegistry(Protocol):
    """What managing keys needs of the store. Each call is one transaction. All raise StoreUnavailable.

    `actor` is who changes the key; the change and its audit row are one transaction.
    """

    async def add(self, key: ApiKey, *, actor: str) -> None:
        """Raises KeyConflict when the id or the digest is there already."""

    async def get(self, name: str) -> ApiKey | None:
        """By id, or by stored prefix. Raises KeyConflict when several keys share the prefix."""

    async def list(self, wanted: KeyFilter) -> Sequence[ApiKey]:
        """In order of id."""

    async def set_status(self, key_id: str, status: KeyStatus, *, at: int, actor: str) -> ApiKey:
        """The key after the change; a status that it has already is no change, and is not audited.

        Raises KeyConflict for an unknown id, and for any change of a revoked key.
        """

    async def touch(self, last_used_at: Mapping[str, int]) -> None:
        """Write last-used times (key id to microseconds), never backwards."""


class KeyCensus(Protocol):
    """How many keys there are. Both raise StoreUnavailable, and may cost time in proportion to the keys."""

    async def counts(self) -> Mapping[tuple[str, str], int]:
        """Keys by status (`active`, `disabled`, `revoked`, `expired`) and environment (empty for none)."""

    async def algorithms(self) -> Mapping[str, int]:
        """Keys that are not revoked, by the algorithm of their digest."""


QuotaRow = tuple[str, str, str, int]
"""Quota name, subject as JSON, state as JSON, and when the row is worth nothing any more (microseconds)."""


class QuotaStates(Protocol):
    """Where quota states outlive a restart. The rows are opaque. Both raise StoreUnavailable."""

    async def load_quota_states(self) -> Sequence[QuotaRow]:
        """Every row that is still worth something."""

    async def save_quota_states(self, rows: Sequence[QuotaRow]) -> None:
        """Put `rows` in the place of those of the same quota and subject; forget what expired. One transaction."""


class KeyStore(KeyReader, KeyRegistry, Protocol):
    """A store that can both answer requests and be managed."""
