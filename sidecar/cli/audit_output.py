"""Rows of the audit, one line each."""

import json
from collections.abc import Mapping
from typing import Any

from sidecar.cli.output import harmless
from sidecar.core.times import rfc3339
from sidecar.keys.ports import AuditRow


def audit_as_json(row: AuditRow) -> dict[str, Any]:
    """The row, with times in RFC 3339."""
    return {
        "id": row.id,
        "at": rfc3339(row.at),
        "actor": row.actor,
        "source": row.source,
        "action": row.action,
        "key_id": row.key_id,
        "tenant": row.tenant,
        "before": _timed(row.before),
        "after": _timed(row.after),
    }


def audit_line(row: AuditRow) -> str:
    """`TIME ACTOR@SOURCE ACTION KEY: field before -> after, …`, with nothing in it that speaks to a terminal."""
    place = f"@{row.source}" if row.source else ""
    what = ", ".join(_changes(row.before, row.after))
    line = f"{rfc3339(row.at)} {row.actor}{place} {row.action} {row.key_id}{': ' if what else ''}{what}"
    return harmless(line)


def _changes(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> list[str]:
    old, new = _timed(before) or {}, _timed(after) or {}
    if not old:
        return [f"{name} {_value(new[name])}" for name in ("name", "tenant", "scopes", "replaces") if new.get(name)]
    return [
        f"{name} {_value(old.get(name))} -> {_value(new.get(name))}" for name in new if old.get(name) != new.get(name)
    ]


def _timed(key: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if key is None:
        return None
    return {name: rfc3339(value) if name.endswith("_at") else value for name, value in key.items()}


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
