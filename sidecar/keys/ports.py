"""Ports of the key store. Adapters translate every foreign exception at the call that can raise it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from sidecar.core.model import ApiKey
from sidecar.usage.ports import Earlier
from sidecar.usage.ports import LastUse as LastUse


class StoreUnavailable(Exception):
    """The store cannot answer now (locked, unreadable, corrupt, full). The message says what to do."""


class KeyConflict(Exception):
    """The change does not fit what is stored (revoked key enabled, digest already there)."""


class UnknownKey(KeyConflict):
    """No key has this id."""


class KeyChanged(KeyConflict):
    """Somebody else changed the key since it was read."""


class AlreadyProcessed(KeyConflict):
    """The same request was carried out before; `key_id` is the key that it made."""

    def __init__(self, key_id: str) -> None:
        self.key_id = key_id
        super().__init__(f"this request was carried out before: it made key {key_id!r}")


class IdempotencyKeyReused(KeyConflict):
    """The idempotency key was used before, for another request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Who changes a key (`cli:ann`, `token:ops`) and from where (a host's name or an address, empty if unknown)."""

    name: str
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyKey:
    """A request that is to be carried out once, though it may be sent again within `ONCE_SECONDS`.

    `key` is the sender's own name for the request, `token` whose names these are, `fingerprint` what is asked for.
    """

    token: str
    key: str
    fingerprint: str


ONCE_SECONDS: Final = 86_400

Standing = Literal["active", "disabled", "revoked", "expired", "retired"]
"""The status, or what became of an active key whose time is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFilter:
    """Which keys to list; None is any. `after` is the id that the page before ended with.

    `search`: its words are words of the name or of the tenant, in any case and order, and the last one may be just
    the beginning of one; or it begins the id or the stored prefix of not too many keys (10,000).
    """

    tenant: str | None = None
    environment: str | None = None
    effective_status: Standing | None = None
    search: str | None = None
    replaces: str | None = None
    """Only the key that replaces this one; no other filter goes with it."""
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


Edit = Callable[[ApiKey], ApiKey]
"""A key after a change. May raise KeyConflict, and then nothing is changed."""
Replacement = Callable[[ApiKey], tuple[ApiKey, ApiKey]]
"""A key after it was replaced, and the new one. May raise KeyConflict, and then nothing is changed."""


class KeyRegistry(Protocol):
    """What managing keys needs of the store. Each call is one transaction. All raise StoreUnavailable.

    A change and its audit row are one transaction; `at` is the time of the change in microseconds.
    """

    async def add(self, keys: Sequence[ApiKey], *, actor: Actor, once: IdempotencyKey | None = None) -> None:
        """All or none. Raises KeyConflict when an id or a digest is there already, Repeated and Misused for `once`."""

    async def get(self, name: str) -> ApiKey | None:
        """By id, or by stored prefix. Raises KeyConflict when several keys share the prefix."""

    async def list(self, wanted: KeyFilter) -> Sequence[ApiKey]:
        """The newest first."""

    async def change(self, key_id: str, edit: Edit, *, action: str, at: int, actor: Actor) -> ApiKey:
        """The key after `edit`; an edit that changes nothing is not audited.

        Raises UnknownKey, and what `edit` raises.
        """

    async def replace(
        self, key_id: str, edit: Replacement, *, action: str, at: int, actor: Actor, once: IdempotencyKey | None = None
    ) -> tuple[ApiKey, ApiKey]:
        """The old key and the new one after `edit`. Raises UnknownKey, Repeated, Misused, and what `edit` raises."""

    async def touch(self, last_uses: Mapping[str, LastUse]) -> Mapping[str, Earlier]:
        """Write the last use of each key id, never backwards; what there was before, for every key that is stored."""


class KeyCensus(Protocol):
    """How many keys there are. Both raise StoreUnavailable, and may cost time in proportion to the keys."""

    async def counts(self) -> Mapping[tuple[str, str], int]:
        """Keys by status (`active`, `disabled`, `revoked`, `expired`) and environment (empty for none)."""

    async def algorithms(self) -> Mapping[str, int]:
        """Keys that are not revoked, by the algorithm of their digest."""


Turn = Literal["created", "expires", "retires"]
"""A moment of a key's life."""


class KeyCalendar(Protocol):
    """Which keys have a moment of their life in a span of time, and which nobody needs any more."""

    async def turning(self, turn: Turn, *, since: int, until: int, tenant: str | None, limit: int) -> Sequence[ApiKey]:
        """Active keys whose time lies in `since` <= time <= `until` (microseconds), the earliest first.

        Raises StoreUnavailable.
        """

    async def unused(self, *, before: int, now: int, limit: int) -> Sequence[ApiKey]:
        """Keys in their overlap at `now` that were replaced, and last used, at `before` or earlier (microseconds).

        Those whose overlap ends first come first. Raises StoreUnavailable, and may cost time in proportion to the keys
        in their overlap.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which rows to show; None is any. Times in microseconds, `until` excluded; `before_id` ended the page before."""

    key_id: str | None = None
    tenant: str | None = None
    actor: str | None = None
    action: str | None = None
    since: int | None = None
    until: int | None = None
    before_id: int | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """Who changed which key when and from where, and the key before and after (as stored, without its digest)."""

    id: int
    at: int
    actor: str
    source: str
    action: str
    key_id: str
    tenant: str | None = None
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditState:
    """What a look through the whole trail found. `head` (`rows:hash`) names the state for a later comparison."""

    rows: int
    head: str
    problem: str | None = None


class AuditTrail(Protocol):
    """The changes of keys, chained so that one changed or removed is found. Both raise StoreUnavailable."""

    async def audit(self, wanted: AuditFilter) -> Sequence[AuditRow]:
        """The newest first."""

    async def verify_audit(self, noted: str | None = None) -> AuditState:
        """Look through every row. `noted` is the head of an earlier look, which must still be part of the chain.

        Raises ValueError for a `noted` that is no head.
        """


QuotaRow = tuple[str, str, str, int]
"""Quota name, subject as JSON, state as JSON, and when the row is worth nothing any more (microseconds)."""


class QuotaStates(Protocol):
    """Where quota states outlive a restart. The rows are opaque. Both raise StoreUnavailable."""

    async def load_quota_states(self) -> Sequence[QuotaRow]:
        """Every row that is still worth something."""

    async def save_quota_states(self, rows: Sequence[QuotaRow]) -> None:
        """Put `rows` in the place of those of the same quota and subject; forget what expired. One transaction."""


class KeyStore(KeyReader, KeyRegistry, KeyCalendar, Protocol):
    """A store that can both answer requests and be managed."""
