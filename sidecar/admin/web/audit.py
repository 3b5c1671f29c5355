"""The audit page, and audit rows as text."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode

from aiohttp import web

from sidecar.admin.api.routes import service_of
from sidecar.admin.web.formatting import MICROSECONDS, TEMPLATES, moment
from sidecar.admin.web.view_models import AuditEntry, AuditPage, Change, Option
from sidecar.keys.ports import AuditFilter, AuditRow

PAGE_SIZE: Final = 50
_ACTIONS: Final = {
    "issue": "Issued",
    "rotate": "Rotated",
    "change": "Changed",
    "disable": "Disabled",
    "enable": "Enabled",
    "revoke": "Revoked",
    "import": "Imported",
    "retire": "Retired",
    "rehash": "Rehashed",
}
_LABELS: Final = {
    "name": "Name",
    "tenant": "Tenant",
    "environment": "Environment",
    "scopes": "Scopes",
    "plan": "Plan",
    "quotas": "Own limits",
    "metadata": "Metadata",
    "status": "Status",
    "expires_at": "Expires",
    "retires_at": "Retires",
    "replaces": "Replaces",
}
_NEW_KEY_FIELDS: Final = ("tenant", "scopes", "plan", "expires_at", "replaces")


async def list_audit(request: web.Request) -> web.Response:
    """Show the changes that match the filters, newest first."""
    service, query = service_of(request), _query(request)
    rows = await service.audit(_filter(query), key_name=query["name"] or None)
    page = rows[:PAGE_SIZE]
    more = {name: value for name, value in query.items() if name != "before" and value}
    view = AuditPage(
        entries=entries_of(page, service.now),
        key=query["key"],
        actor=query["actor"],
        name=query["name"],
        tenant=query["tenant"],
        one_tenant=service.admin.tenant is not None,
        since=query["since"],
        until=query["until"],
        actions=_actions(query["action"]),
        filtered=any(query.values()),
        first=_address(more) if query["before"] else None,
        next=_address({**more, "before": str(page[-1].id)}) if len(rows) > PAGE_SIZE else None,
    )
    return request.app[TEMPLATES].page(request, "audit.html", here="audit", view=view)


def entries_of(rows: Sequence[AuditRow], now: int) -> tuple[AuditEntry, ...]:
    return tuple(_entry(row, now) for row in rows)


def _entry(row: AuditRow, now: int) -> AuditEntry:
    known = row.after or row.before or {}
    return AuditEntry(
        action=_ACTIONS.get(row.action, row.action.capitalize()),
        actor=row.actor,
        source=row.source,
        moment=moment(row.at, now),
        key_id=row.key_id,
        key_name=str(known.get("name") or ""),
        changes=tuple(_changes(row.before, row.after)),
    )


def _changes(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> Iterator[Change]:
    if after is None:
        return
    if before is None:
        for name in _NEW_KEY_FIELDS:
            if text := _text_of(name, after.get(name)):
                yield Change(label=_LABELS[name], before=None, after=text)
        return
    for name, label in _LABELS.items():
        if before.get(name) != after.get(name):
            yield Change(label=label, before=_text_of(name, before.get(name)), after=_text_of(name, after.get(name)))


def _text_of(name: str, value: Any) -> str:
    """Format a stored value. Lists and maps may still be the JSON text that the store holds."""
    if value is None or value in ("", [], {}):
        return ""
    if name.endswith("_at"):
        return moment(int(value), int(value)).exact
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={part}" for key, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _query(request: web.Request) -> dict[str, str]:
    names = ("key", "name", "tenant", "actor", "action", "since", "until", "before")
    return {name: request.query.get(name, "").strip() for name in names}


def _filter(query: Mapping[str, str]) -> AuditFilter:
    return AuditFilter(
        key_id=query["key"] or None,
        actor=query["actor"] or None,
        action=query["action"] or None,
        tenant=query["tenant"] or None,
        since=_day(query["since"]),
        until=_day(query["until"], days=1),
        before_id=int(query["before"]) if query["before"].isdecimal() and len(query["before"]) < 19 else None,
        limit=PAGE_SIZE + 1,
    )


def _day(text: str, *, days: int = 0) -> int | None:
    """Return the start of the day, or of so many days later."""
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
        return int((day + timedelta(days=days)).timestamp()) * MICROSECONDS
    except (ValueError, OverflowError):
        return None


def _actions(chosen: str) -> tuple[Option, ...]:
    every = Option(value="", label="Any action")
    return every, *(Option(value=name, label=label, chosen=name == chosen) for name, label in _ACTIONS.items())


def _address(fields: Mapping[str, str]) -> str:
    return f"/audit?{urlencode(fields)}" if fields else "/audit"
