"""A key as a row of the store, as what the audit says of it, and as what a person is shown."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

from sidecar.core.model import ApiKey, KeyStatus
from sidecar.keys.store import StoreUnavailable

COLUMNS = tuple(field.name for field in fields(ApiKey))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def row_of(key: ApiKey) -> tuple[Any, ...]:
    """The values of COLUMNS, in their order."""
    values: dict[str, Any] = {name: getattr(key, name) for name in COLUMNS}
    values["status"] = key.status.value
    for name in ("scopes", "quotas", "metadata"):
        values[name] = _json(values[name])
    return tuple(values[name] for name in COLUMNS)


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
    return _json({name: value for name, value in zip(COLUMNS, row_of(key), strict=True) if name != "digest"})


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
        **times,
    }


def standing(key: ApiKey, now: int) -> str:
    """The status, or `expired` or `retired` for an active key whose time is over at `now` (microseconds)."""
    if key.status is KeyStatus.ACTIVE and key.expires_at is not None and key.expires_at <= now:
        return "expired"
    if key.status is KeyStatus.ACTIVE and key.retires_at is not None and key.retires_at <= now:
        return "retired"
    return key.status.value


def rfc3339(at: int | None) -> str | None:
    """Microseconds of UTC as RFC 3339 with `Z`, in whole seconds where they are whole."""
    if at is None:
        return None
    return (_EPOCH + timedelta(microseconds=at)).isoformat().replace("+00:00", "Z")


def _json(value: Mapping[str, object] | Sequence[str]) -> str:
    plain = dict(value) if isinstance(value, Mapping) else list(value)
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
