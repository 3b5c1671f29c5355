"""A key as a row of the store, as what the audit says of it, and as what a person is shown."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from hashlib import sha256
from json.encoder import encode_basestring
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final

import msgspec

from sidecar.core.model import ApiKey, KeyStatus
from sidecar.core.units import rfc3339
from sidecar.keys.ports import Standing, StoreUnavailable

COLUMNS = tuple(field.name for field in fields(ApiKey))
_VALUES = attrgetter(*COLUMNS)
# One encoder for all, because an import encodes a million times.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def row_of(key: ApiKey) -> tuple[Any, ...]:
    """The values of COLUMNS, in their order."""
    return tuple(_stored(key).values())


def key_of(row: Sequence[Any]) -> ApiKey:
    """The key that a row of COLUMNS holds. Raises StoreUnavailable for one that this program cannot have written."""
    values = dict(zip(COLUMNS, row, strict=True))
    try:
        values["status"] = KeyStatus(values["status"])
        values["scopes"] = tuple(json.loads(values["scopes"]))
        for name in ("quotas", "metadata"):
            values[name] = MappingProxyType(dict(json.loads(values[name])))
    except (ValueError, TypeError) as error:
        raise StoreUnavailable(
            f"the row of key {values['id']!r} is damaged: restore the store from a backup"
        ) from error
    return ApiKey(**values)


def audited(key: ApiKey) -> str:
    """The key as JSON, without its digest."""
    return _ENCODER.encode(_audited(key))


def audited_part(key: ApiKey, columns: Sequence[str]) -> str:
    """What `audited` says of some columns, without its braces."""
    said = _audited(key)
    return _ENCODER.encode({name: said[name] for name in columns})[1:-1]


def _audited(key: ApiKey) -> dict[str, Any]:
    values = dict(zip(COLUMNS, _VALUES(key), strict=True))
    del values["digest"]
    plain = {"scopes": list(key.scopes), "quotas": dict(key.quotas), "metadata": dict(key.metadata)}
    return {**values, **plain, "status": key.status.value}


def _stored(key: ApiKey) -> dict[str, Any]:
    """Values by column, in the order of COLUMNS."""
    values = dict(zip(COLUMNS, _VALUES(key), strict=True))
    values["status"] = key.status.value
    values["scopes"] = _json(key.scopes)
    values["quotas"] = _json(key.quotas)
    values["metadata"] = _json(key.metadata)
    return values


def shown(key: ApiKey) -> dict[str, Any]:
    """What anyone who manages keys may read, ready for JSON; times in RFC 3339."""
    times = {name: rfc3339(getattr(key, name)) for name in COLUMNS if name.endswith("_at")}
    return {
        "id": key.id,
        "prefix": key.prefix,
        "name": key.name,
        "tenant": key.tenant,
        "environment": key.environment,
        "scopes": list(key.scopes),
        "plan": key.plan,
        "quotas": dict(key.quotas),
        "metadata": dict(key.metadata),
        "status": key.status.value,
        "created_by": key.created_by,
        "replaces": key.replaces,
        "last_used_address": key.last_used_address,
        "last_used_agent": key.last_used_agent,
        **times,
    }


def shown_at(key: ApiKey, now: int) -> dict[str, Any]:
    """The same, with the status as it stands at `now` (microseconds)."""
    return {**shown(key), "status": effective_status(key, now)}


def etag_of(key: ApiKey) -> str:
    """An entity tag (RFC 9110 section 8.8.3, without its quotes) of all that is shown of a key but its last use."""
    lasting = {name: value for name, value in shown(key).items() if not name.startswith("last_used_")}
    return sha256(_json(lasting).encode()).hexdigest()[:32]


def effective_status(key: ApiKey, now: int) -> Standing:
    """The status, or `expired` or `retired` for an active key whose time is over at `now` (microseconds)."""
    if key.status is KeyStatus.ACTIVE and key.expires_at is not None and key.expires_at <= now:
        return "expired"
    if key.status is KeyStatus.ACTIVE and key.retires_at is not None and key.retires_at <= now:
        return "retired"
    return key.status.value


def _json(value: Mapping[str, object] | Sequence[str]) -> str:
    return _ENCODER.encode(dict(value) if isinstance(value, Mapping) else list(value))


# New keys as rows of the store, many at once: what they have in common is written once.


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
    """Rows that are added together, and their audit rows, linked to the ones before."""

    rows: Sequence[NewRow]
    audit_rows: Sequence[tuple[Any, ...]] = ()


class RowValues(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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


class RowTemplate:
    """Makes the rows of keys that are like `key` but for what is their own."""

    def __init__(self, key: ApiKey) -> None:
        self.prefix = key.prefix
        self._algorithm, self._by, self._status = key.algorithm, key.created_by, key.status.value
        self._shared = row_of(key)[_SHARED]
        self._said = tuple(
            audited_part(key, columns) for columns in (("algorithm",), COLUMNS[_SHARED], ("created_by",))
        )

    def row(self, own: RowValues) -> NewRow:
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
