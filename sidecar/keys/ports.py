"""What keys need from a store: its ports, and the values that cross them.

An engine translates each foreign exception at the call that can raise it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol

from sidecar.core.model import ApiKey

RESTORE: Final = "stop everything that uses it, then restore a backup with `sidecar store restore FILE`"
"""What to do about a store that is damaged or empty."""
RESTORE_DUMP: Final = "stop everything that uses it, then restore a dump with `pg_restore`, see deploy/guide/stores.md"
"""The same for PostgreSQL."""


class StoreUnavailable(Exception):
    """The store cannot be used now (locked, unreadable, corrupt, full). The message says what to do.

    cause: the same without names of files and hosts, to follow "the key store"; empty where only the message says it.
    """

    def __init__(self, message: str, *, cause: str = "") -> None:
        super().__init__(message)
        self.cause = cause


class NoStore(StoreUnavailable):
    """There is no store, and none was to be created."""


class NotWritten(StoreUnavailable):
    """The store did not accept a change."""


class KeyConflict(Exception):
    """The change does not fit what is stored (revoked key enabled, digest already there)."""


class ReadOnlyStore(KeyConflict):
    """The keys come from a file, which must be changed instead. The message names it."""

    def __init__(self, path: str) -> None:
        super().__init__(f"the keys come from the file {path}, which is read-only here: change the file")


class UnknownKey(KeyConflict):
    """No key has this id."""


class KeyChanged(KeyConflict):
    """The key was changed since it was read."""


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
    """A request that is carried out only once, even if it is sent again within `IDEMPOTENCY_SECONDS`.

    `key` is the sender's name for the request, `token` the admin token that sent it, `fingerprint` a hash of its body.
    """

    token: str
    key: str
    fingerprint: str


IDEMPOTENCY_SECONDS: Final = 86_400

Standing = Literal["active", "disabled", "revoked", "expired", "retired"]
"""The stored status, or the status of an active key after its end."""


StatusFilter = Literal["active", "retiring", "disabled", "revoked", "expired", "retired"]
"""The statuses by which keys are listed: `retiring` are the active keys that were replaced and will retire."""

Sort = Literal["created", "name", "tenant", "used", "unused", "ends"]
"""Orders of a list: newest first; by name; by tenant; latest use first, longest unused first, or soonest end first.

A key ends when it expires or retires.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFilter:
    """Which keys to list, and in which order; None is any. Times in microseconds.

    `search`: words of the name or the tenant, in any case and order, the last one possibly incomplete; or the beginning
    of an id or a stored prefix that at most 10,000 keys have.
    """

    tenant: str | None = None
    environment: str | None = None
    effective_status: StatusFilter | None = None
    search: str | None = None
    unused_since: int | None = None
    """Only keys that were last used, or issued if they were never used, at this time or earlier."""
    sort: Sort = "created"
    after: str | None = None
    """The last id of the previous page."""
    after_at: int | None = None
    """The time by which that key was sorted (`used`, `unused`, `ends`); it may have been used since."""
    limit: int | None = None


def sort_time(key: ApiKey, sort: Sort) -> int | None:
    """The time by which the key is sorted (`KeyFilter.after_at`), or None if its order has no time."""
    if sort in ("used", "unused"):
        return key.last_used_at or 0
    if sort == "ends":
        return min(key.expires_at or NO_END, key.retires_at or NO_END)
    return None


def cursor_of(key: ApiKey, sort: Sort) -> str:
    """The cursor of the page after this key: its id, and the time by which it is sorted, if any."""
    at = sort_time(key, sort)
    return key.id if at is None else f"{key.id}@{at}"


def after_cursor(wanted: KeyFilter, cursor: str | None) -> KeyFilter:
    """The filter, for the page after the cursor."""
    key_id, _, at = (cursor or "").partition("@")
    # Clients may send any text as a cursor; a store accepts no larger number.
    is_time = (
        wanted.sort in _SORTED_BY_TIME and at.isascii() and at.isdigit() and len(at) < _DIGITS and int(at) <= NO_END
    )
    return replace(wanted, after=key_id or None, after_at=int(at) if is_time else None)


_DIGITS: Final = 20
_SORTED_BY_TIME: Final = frozenset({"used", "unused", "ends"})

NO_END: Final = 2**63 - 1
"""Stands for a key that never ends, in the order of ends."""


class KeyReader(Protocol):
    """What a request needs from the store. Every method raises StoreUnavailable, unless it says otherwise."""

    async def find(self, digests: Mapping[bytes, str]) -> ApiKey | None:
        """The key stored under one of `digests` (digest to algorithm, both must match), or None.

        The cost does not grow with the number of keys.
        """

    def generation(self) -> int | None:
        """A number that changes whenever any process changes a key (using a key is not a change).

        Takes microseconds and never waits. None if the number is not known without waiting.
        """

    async def read_generation(self) -> int:
        """The same number, as of the call or later; waits for the store, but only briefly."""

    def changes_since(self, generation: int) -> frozenset[str] | None:
        """Ids of keys that changed or were removed between that number and the newest one that was returned.

        Never waits or raises. None if that is unknown (too long ago, too many): every key may have changed. Added keys
        need not be included: they only make unknown secrets known.
        """


Edit = Callable[[ApiKey], ApiKey]
"""A key after a change. May raise KeyConflict; then nothing changes."""
Replacement = Callable[[ApiKey], tuple[ApiKey, ApiKey]]
"""A key after it was replaced, and the new one. May raise KeyConflict; then nothing changes."""


class KeyRegistry(Protocol):
    """What changing keys needs from the store. Every method raises StoreUnavailable.

    A change and its audit row are one transaction; `at` is the time of the change in microseconds.
    """

    async def find(self, digests: Mapping[bytes, str]) -> ApiKey | None:
        """As KeyReader.find."""

    async def get(self, name: str) -> ApiKey | None:
        """By id or stored prefix. Raises KeyConflict if several keys share the prefix."""

    async def successor(self, key_id: str) -> ApiKey | None:
        """The key that replaces this one."""

    async def add(self, keys: Sequence[ApiKey], *, actor: Actor, once: IdempotencyKey | None = None) -> None:
        """Add all or none.

        Raises KeyConflict if an id or a digest is already stored; AlreadyProcessed and IdempotencyKeyReused for `once`.
        """

    async def change(self, key_id: str, edit: Edit, *, action: str, at: int, actor: Actor) -> ApiKey:
        """The key after `edit`; an edit that changes nothing is not audited.

        Raises UnknownKey, and what `edit` raises.
        """

    async def replace(
        self, key_id: str, edit: Replacement, *, action: str, at: int, actor: Actor, once: IdempotencyKey | None = None
    ) -> tuple[ApiKey, ApiKey]:
        """The old key and the new one after `edit`.

        Raises UnknownKey, AlreadyProcessed, IdempotencyKeyReused, and what `edit` raises.
        """


KeyDate = Literal["created", "expires", "retires"]
"""A date in the life of a key."""


class KeyStatistics(Protocol):
    """How many keys there are, and which have a date in a period. Every method raises StoreUnavailable."""

    async def counts(self) -> Mapping[tuple[str, str], int]:
        """Keys by status (`active`, `disabled`, `revoked`, `expired`) and environment (empty for none).

        The time may grow with the number of keys.
        """

    async def algorithms(self) -> Mapping[str, int]:
        """Keys that are not revoked, by the algorithm of their digest. The time may grow with the number of keys."""

    async def keys_between(
        self, date: KeyDate, *, since: int, until: int, tenant: str | None, limit: int
    ) -> Sequence[ApiKey]:
        """Active keys with the date in `since` <= date <= `until` (microseconds), the earliest first."""

    async def unused(self, *, before: int, now: int, limit: int) -> Sequence[ApiKey]:
        """Keys in their overlap at `now` that were replaced, and last used, at `before` or earlier (microseconds).

        The earliest end of overlap first. The time may grow with the number of keys in their overlap.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which rows to show; None is any. Times in microseconds, `until` excluded.

    `before_id` is the last id of the previous page.
    """

    key_id: str | None = None
    key_ids: tuple[str, ...] | None = None
    """Rows of any of these keys."""
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
    """Result of checking the whole trail. `head` (`rows:hash`) names the state for a later comparison."""

    rows: int
    head: str
    problem: str | None = None


QuotaRow = tuple[str, str, str, int]
"""Quota name, subject as JSON, state as JSON, and when the row expires (microseconds)."""
