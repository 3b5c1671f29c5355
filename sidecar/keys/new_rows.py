"""New keys as rows of the store, many at once: what they have in common is written once."""

from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring
from typing import Any, Final

import msgspec

from sidecar.core.model import ApiKey
from sidecar.keys.records import COLUMNS, audited_part, row_of

_LAST: Final = COLUMNS.index("expires_at")
_SHARED: Final = slice(COLUMNS.index("environment"), COLUMNS.index("metadata"))
NEW_COLUMNS: Final = COLUMNS[: _LAST + 1]
"""Those that a new key has; the others are empty."""
_AUDITED: Final = tuple(name for name in NEW_COLUMNS if name != "digest")


class NewRow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A new key: its values of NEW_COLUMNS, and what the audit says of it."""

    id: str
    digest: bytes
    tenant: str | None
    values: Sequence[Any]
    after: str


class Batch(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Rows that are added together, and those of the audit that tell so, linked to the ones before."""

    rows: Sequence[NewRow]
    trail: Sequence[tuple[Any, ...]] = ()


class Own(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What no two keys have in common, or need not. All texts are printable; times in microseconds."""

    id: str
    name: str
    prefix: str
    digest: bytes
    tenant: str | None
    metadata: Mapping[str, str]
    created_at: int
    expires_at: int | None


def new_row(key: ApiKey) -> NewRow:
    """The row of a key that was neither used nor changed yet."""
    values = row_of(key)[: len(NEW_COLUMNS)]
    after = f"{{{audited_part(key, _AUDITED)}}}"
    return NewRow(id=key.id, digest=key.digest, tenant=key.tenant, values=values, after=after)


class Alike:
    """Makes the rows of keys that are like `key` but for what is their own."""

    def __init__(self, key: ApiKey) -> None:
        self.prefix = key.prefix
        self._algorithm, self._by, self._status = key.algorithm, key.created_by, key.status.value
        self._shared = row_of(key)[_SHARED]
        self._said = tuple(
            audited_part(key, columns) for columns in (("algorithm",), COLUMNS[_SHARED], ("created_by",))
        )

    def row(self, own: Own) -> NewRow:
        """As `new_row` of the whole key."""
        metadata = msgspec.json.encode(own.metadata).decode() if own.metadata else "{}"
        tenant = "null" if own.tenant is None else encode_basestring(own.tenant)
        algorithm, shared, by = self._said
        values = (own.id, own.name, own.prefix, own.digest, self._algorithm, own.tenant, *self._shared, metadata)
        after = (
            f'{{"id":"{own.id}","name":{encode_basestring(own.name)},"prefix":{encode_basestring(own.prefix)},'
            f'{algorithm},"tenant":{tenant},{shared},"metadata":{metadata},"status":"{self._status}",'
            f'"created_at":{own.created_at},{by},'
            f'"expires_at":{"null" if own.expires_at is None else own.expires_at}}}'
        )
        return NewRow(
            id=own.id,
            digest=own.digest,
            tenant=own.tenant,
            values=(*values, self._status, own.created_at, self._by, own.expires_at),
            after=after,
        )
