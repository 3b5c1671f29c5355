"""A key as a row of the store, as JSON in the audit, and as the public fields that people and clients read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from hashlib import sha256
from json.encoder import encode_basestring
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final

import msgspec

from sidecar.core.model import ApiKey, KeyStatus
from sidecar.core.units import rfc3339
from sidecar.keys.ports import RESTORE, Standing, StoreUnavailable

COLUMNS = tuple(field.name for field in fields(ApiKey))
_VALUES = attrgetter(*COLUMNS)
# Takes a third of the time of json.loads, which dominated an export of many keys.
_SCOPES: Final = msgspec.json.Decoder(tuple[str, ...])
_KEPT_SCOPES: Final = 1_000
# Many keys have the same ones.
_scopes_from: Final = lru_cache(_KEPT_SCOPES)(_SCOPES.decode)
_QUOTAS: Final = msgspec.json.Decoder(dict[str, int])
_METADATA: Final = msgspec.json.Decoder(dict[str, str])
_STATUSES: Final = {status.value: status for status in KeyStatus}
# One encoder for all: an import encodes a million times.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def row_of(key: ApiKey) -> tuple[Any, ...]:
    """The values of COLUMNS, in their order."""
    return tuple(_stored(key).values())


def key_of(row: Sequence[Any]) -> ApiKey:
    """The key in a row of COLUMNS. Raises StoreUnavailable for a damaged row."""
    values = _decoded(row)
    values["quotas"] = MappingProxyType(values["quotas"])
    values["metadata"] = MappingProxyType(values["metadata"])
    return ApiKey(**values)


def _decoded(row: Sequence[Any]) -> dict[str, Any]:
    values = dict(zip(COLUMNS, row, strict=True))
    try:
        values["status"] = _STATUSES[values["status"]]
        values["scopes"] = _scopes_from(values["scopes"])
        quotas, metadata = values["quotas"], values["metadata"]
        values["quotas"] = {} if quotas == "{}" else _QUOTAS.decode(quotas)
        values["metadata"] = {} if metadata == "{}" else _METADATA.decode(metadata)
    except (KeyError, ValueError, TypeError, msgspec.DecodeError) as error:
        raise StoreUnavailable(f"the row of key {values['id']!r} is damaged: {RESTORE}") from error
    return values


def audited(key: ApiKey) -> str:
    """The key as JSON for the audit, without its digest."""
    return _ENCODER.encode(_audited(key))


def audited_part(key: ApiKey, columns: Sequence[str]) -> str:
    """Some columns of `audited`, without the braces."""
    values = _audited(key)
    return _ENCODER.encode({name: values[name] for name in columns})[1:-1]


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


class PublicKey(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a key except its secret and its hash. Times are RFC 3339, in UTC."""

    id: str
    prefix: str
    name: str
    tenant: str | None
    environment: str | None
    scopes: tuple[str, ...]
    plan: str | None
    quotas: dict[str, int]
    metadata: dict[str, str]
    status: Standing
    created_at: str
    created_by: str
    expires_at: str | None
    disabled_at: str | None
    revoked_at: str | None
    replaced_at: str | None
    retires_at: str | None
    replaces: str | None
    last_used_at: str | None
    last_used_address: str | None
    last_used_agent: str | None


PUBLIC_FIELDS: Final = PublicKey.__struct_fields__
"""The fields that the admin API, the command line and exports show, in the order of the API and of exports."""
_TIMES: Final = tuple(name for name in PUBLIC_FIELDS if name.endswith("_at"))
_LAST_USE: Final = frozenset({"last_used_at", "last_used_address", "last_used_agent"})


def public_key(key: ApiKey, now: int | None = None) -> PublicKey:
    """The key with its status at `now` (microseconds), or with its stored status if `now` is None."""
    return PublicKey(
        id=key.id,
        prefix=key.prefix,
        name=key.name,
        tenant=key.tenant,
        environment=key.environment,
        scopes=key.scopes,
        plan=key.plan,
        quotas=dict(key.quotas),
        metadata=dict(key.metadata),
        status=key.status.value if now is None else effective_status(key, now),
        created_at=rfc3339(key.created_at),
        created_by=key.created_by,
        expires_at=rfc3339(key.expires_at),
        disabled_at=rfc3339(key.disabled_at),
        revoked_at=rfc3339(key.revoked_at),
        replaced_at=rfc3339(key.replaced_at),
        retires_at=rfc3339(key.retires_at),
        replaces=key.replaces,
        last_used_at=rfc3339(key.last_used_at),
        last_used_address=key.last_used_address,
        last_used_agent=key.last_used_agent,
    )


def public_row(row: Sequence[Any], now: int) -> PublicKey:
    """`public_key` of a row of COLUMNS, in half the time of `key_of` and `public_key`. Raises StoreUnavailable."""
    values = _decoded(row)
    del values["digest"], values["algorithm"]
    values["status"] = _status_at(values["status"], values["expires_at"], values["retires_at"], now)
    for name in _TIMES:
        if values[name] is not None:
            values[name] = rfc3339(values[name])
    return PublicKey(**values)


def public_fields(key: ApiKey, now: int | None = None) -> dict[str, Any]:
    """The values of PUBLIC_FIELDS by name, in their order, ready for JSON; `now` as in `public_key`."""
    fields: dict[str, Any] = msgspec.to_builtins(public_key(key, now))
    return fields


def etag_of(key: ApiKey) -> str:
    """An entity tag (RFC 9110 section 8.8.3, without its quotes) of all public fields except the last use."""
    # The last use changes with every request, and no change of a key could overwrite it.
    tagged = {name: value for name, value in public_fields(key).items() if name not in _LAST_USE}
    return sha256(_json(tagged).encode()).hexdigest()[:32]


def effective_status(key: ApiKey, now: int) -> Standing:
    """The status; `expired` or `retired` for an active key that has ended at `now` (microseconds)."""
    return _status_at(key.status, key.expires_at, key.retires_at, now)


def _status_at(status: KeyStatus, expires_at: int | None, retires_at: int | None, now: int) -> Standing:
    if status is KeyStatus.ACTIVE and expires_at is not None and expires_at <= now:
        return "expired"
    if status is KeyStatus.ACTIVE and retires_at is not None and retires_at <= now:
        return "retired"
    return status.value


def _json(value: Mapping[str, object] | Sequence[str]) -> str:
    return _ENCODER.encode(dict(value) if isinstance(value, Mapping) else list(value))


# Rows of many new keys: shared values are encoded only once.


_LAST: Final = COLUMNS.index("disabled_at")
_SHARED: Final = slice(COLUMNS.index("environment"), COLUMNS.index("metadata"))
NEW_COLUMNS: Final = COLUMNS[: _LAST + 1]
"""Columns that a new key fills; the others are null."""
_AUDITED: Final = tuple(name for name in NEW_COLUMNS if name != "digest")


class NewRow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A new key: its values of NEW_COLUMNS, and its JSON in the audit."""

    id: str
    digest: bytes
    tenant: str | None
    values: Sequence[Any]
    after: str


class Batch(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Rows that are added together, and their audit rows, chained to the previous rows."""

    rows: Sequence[NewRow]
    audit_rows: Sequence[tuple[Any, ...]] = ()


class RowValues(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The values that are specific to a key. All texts are printable; times in microseconds."""

    id: str
    name: str
    prefix: str
    digest: bytes
    tenant: str | None
    metadata: Mapping[str, str]
    created_at: int
    expires_at: int | None


def new_row(key: ApiKey) -> NewRow:
    """The row of a key that was never used or changed."""
    values = row_of(key)[: len(NEW_COLUMNS)]
    after = f"{{{audited_part(key, _AUDITED)}}}"
    return NewRow(id=key.id, digest=key.digest, tenant=key.tenant, values=values, after=after)


class RowTemplate:
    """Makes rows of keys that differ from `key` only in their RowValues."""

    def __init__(self, key: ApiKey) -> None:
        self.prefix = key.prefix
        self._algorithm, self._by, self._status = key.algorithm, key.created_by, key.status.value
        self._shared = row_of(key)[_SHARED]
        self._audited = tuple(
            audited_part(key, columns) for columns in (("algorithm",), COLUMNS[_SHARED], ("created_by",))
        )

    def row(self, own: RowValues) -> NewRow:
        """The row that `new_row` would make of the whole key."""
        metadata = msgspec.json.encode(own.metadata).decode() if own.metadata else "{}"
        tenant = "null" if own.tenant is None else encode_basestring(own.tenant)
        algorithm, shared, by = self._audited
        values = (own.id, own.name, own.prefix, own.digest, self._algorithm, own.tenant, *self._shared, metadata)
        after = (
            f'{{"id":"{own.id}","name":{encode_basestring(own.name)},"prefix":{encode_basestring(own.prefix)},'
            f'{algorithm},"tenant":{tenant},{shared},"metadata":{metadata},"status":"{self._status}",'
            f'"created_at":{own.created_at},{by},'
            f'"expires_at":{"null" if own.expires_at is None else own.expires_at},"disabled_at":null}}'
        )
        return NewRow(
            id=own.id,
            digest=own.digest,
            tenant=own.tenant,
            values=(*values, self._status, own.created_at, self._by, own.expires_at, None),
            after=after,
        )
