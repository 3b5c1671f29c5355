"""The audit trail, and its rows in words."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlencode

from aiohttp import web

from sidecar.admin.server import service_of
from sidecar.admin.web.formatting import MICROSECONDS, moment
from sidecar.admin.web.rendering import TEMPLATES
from sidecar.admin.web.view_models import AuditEntry, AuditPage, Change, Option
from sidecar.keys.ports import AuditFilter, AuditRow

PAGE_SIZE: Final = 50
_SAID: Final = {
    "issue": "Issued",
    "rotate": "Rotated",
    "change": "Changed",
    "disable": "Disabled",
    "enable": "Enabled",
    "revoke": "Revoked",
    "import": "Imported",
    "retire": "Retired",
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
    "replaces": "In place of",
}
_TOLD_OF_NEW: Final = ("tenant", "scopes", "plan", "expires_at", "replaces")


async def list_audit(request: web.Request) -> web.Response:
    """Changes that fit the filters, the newest first."""
    service, asked = service_of(request), _asked(request)
    rows = await service.audit(_filter(asked))
    page = rows[:PAGE_SIZE]
    more = {name: value for name, value in asked.items() if name != "before" and value}
    view = AuditPage(
        entries=entries_of(page, service.now),
        key=asked["key"],
        actor=asked["actor"],
        since=asked["since"],
        actions=_actions(asked["action"]),
        filtered=any(asked.values()),
        first=_address(more) if asked["before"] else None,
        next=_address({**more, "before": str(page[-1].id)}) if len(rows) > PAGE_SIZE else None,
    )
    return request.app[TEMPLATES].page(request, "audit.html", here="audit", view=view)


def entries_of(rows: Sequence[AuditRow], now: int) -> tuple[AuditEntry, ...]:
    return tuple(_entry(row, now) for row in rows)


def _entry(row: AuditRow, now: int) -> AuditEntry:
    known = row.after or row.before or {}
    return AuditEntry(
        said=_SAID.get(row.action, row.action.capitalize()),
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
        for name in _TOLD_OF_NEW:
            if said := _said(name, after.get(name)):
                yield Change(label=_LABELS[name], before=None, after=said)
        return
    for name, label in _LABELS.items():
        if before.get(name) != after.get(name):
            yield Change(label=label, before=_said(name, before.get(name)), after=_said(name, after.get(name)))


def _said(name: str, value: Any) -> str:
    """A stored value for people. Lists and maps may still be the JSON text that the store holds."""
    if value is None or value in ("", [], {}):
        return ""
    if name.endswith("_at"):
        return moment(int(value), int(value)).exact
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={part}" for key, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _asked(request: web.Request) -> dict[str, str]:
    names = ("key", "actor", "action", "since", "before")
    return {name: request.query.get(name, "").strip() for name in names}


def _filter(asked: Mapping[str, str]) -> AuditFilter:
    return AuditFilter(
        key_id=asked["key"] or None,
        actor=asked["actor"] or None,
        action=asked["action"] or None,
        since=_day(asked["since"]),
        before_id=int(asked["before"]) if asked["before"].isdecimal() and len(asked["before"]) < 19 else None,
        limit=PAGE_SIZE + 1,
    )


def _day(text: str) -> int | None:
    try:
        return int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()) * MICROSECONDS
    except (ValueError, OverflowError):
        return None


def _actions(chosen: str) -> tuple[Option, ...]:
    every = Option(value="", label="Any action")
    return every, *(Option(value=name, label=said, chosen=name == chosen) for name, said in _SAID.items())


def _address(query: Mapping[str, str]) -> str:
    return f"/audit?{urlencode(query)}" if query else "/audit"
