"""The overview: traffic of the last day, and what needs attention."""

from collections.abc import Sequence
from typing import Final
from urllib.parse import urlencode

from aiohttp import web

from sidecar.admin.api.routes import service_of
from sidecar.admin.problems import Problem
from sidecar.admin.reading import DUE_WITHIN_SECONDS
from sidecar.admin.running import NEARLY, NearlyUsedUp
from sidecar.admin.service import AdminService
from sidecar.admin.web.charts import CLASSES
from sidecar.admin.web.formatting import MICROSECONDS, TEMPLATES, moment, moment_or_none, share_text, span_of
from sidecar.admin.web.key import quota_row
from sidecar.admin.web.stats import class_of, count_rows, last_day, latest_refusals, slot_of, usage_chart
from sidecar.admin.web.view_models import CountRow, DueRow, Event, Overview, QuotaRow, State, Tile
from sidecar.core.model import ApiKey
from sidecar.core.units import counted
from sidecar.keys.ports import KeyFilter
from sidecar.telemetry.refusals import Refusal
from sidecar.usage.anomalies import Anomaly, AnomalyKind
from sidecar.usage.recorder import UsageRow

_MAX_ROWS: Final = 6
"""Rows of each list on this page."""
_RECENT_SECONDS: Final = 60
"""An upstream that failed within this time is shown as failing."""
_WHY: Final = {
    "expires": "Expires",
    "retires": "Retires: another key replaces it",
    "max_age": "Older than keys.max_age: rotate it",
}
_UNUSUAL: Final = {
    AnomalyKind.UNUSED_KEY: "Used again after a long time",
    AnomalyKind.NEW_NETWORK: "First use from a new network",
    AnomalyKind.REFUSALS: "Many refusals",
    AnomalyKind.REVOKED_KEY: "Revoked key still in use",
    AnomalyKind.RETIRED_KEY: "Retired key still in use",
    AnomalyKind.OLD_KEY: "Key past its age",
}


async def show_overview(request: web.Request) -> web.Response:
    """Show the numbers of the last day, and lists of what needs attention."""
    service = service_of(request)
    wanted = last_day(service.now)
    rows = await service.usage(None, wanted)
    due, slot = await _due(service), slot_of(request, wanted)
    view = Overview(
        intro=_intro(service),
        first_steps=not (await service.list(KeyFilter(limit=1))).keys,
        tiles=tuple(await _tiles(service, rows, len(due))),
        chart=usage_chart(rows, wanted, "24 hours", link=lambda at: f"/?at={at}#latest", slot=slot) if rows else None,
        unusual=await _unusual(service),
        due=due[:_MAX_ROWS],
        due_within=span_of(DUE_WITHIN_SECONDS),
        states=await _states(service),
        refusals=_counts(service),
        refusals_since=f"Since this process started ({_since(service)}), with and without a key.",
        latest=latest_refusals(service, request, key_id=None, slot=slot),
        quotas=await _nearly_used_up(service),
        near_percent=round(NEARLY * 100),
    )
    return request.app[TEMPLATES].page(request, "overview.html", here="overview", view=view)


def _intro(service: AdminService) -> str:
    routes = counted(len(service.config.routes), "route")
    tenants = "every tenant" if service.admin.tenant is None else f"tenant {service.admin.tenant}"
    return f"{routes} in force. You see the keys of {tenants}."


async def _tiles(service: AdminService, rows: Sequence[UsageRow], due: int) -> list[Tile]:
    by_class = {name: sum(row.count for row in rows if class_of(row.status_class) == name) for name in CLASSES}
    total = sum(by_class.values())
    client, server = by_class["4xx"], by_class["5xx"]
    tiles = [
        Tile(name="Requests", value=f"{total:,}", note="with a key, last 24 hours", link="/#traffic"),
        Tile(name="4xx responses", value=f"{client:,}", note=share_text(client, total), link="/#refusals"),
        Tile(name="5xx responses", value=f"{server:,}", note=share_text(server, total), link="/#latest"),
    ]
    counts = await service.counts()
    if counts is None:
        return [
            *tiles,
            Tile(name="Keys due", value=f"{due:,}", note=f"within {span_of(DUE_WITHIN_SECONDS)}", link="/#due"),
        ]
    others = sum(counts.values()) - counts.get("active", 0)
    note = f"{others:,} disabled, expired or revoked" if others else "no other keys"
    return [
        *tiles,
        Tile(name="Active keys", value=f"{counts.get('active', 0):,}", note=note, link="/keys?standing=active"),
    ]


async def _due(service: AdminService) -> tuple[DueRow, ...]:
    return tuple(
        DueRow(
            key_id=one.key.id,
            key_name=one.key.name,
            reason=_WHY.get(one.why, one.why),
            moment=moment(one.at, service.now),
            last_used=moment_or_none(one.key.last_used_at, service.now),
        )
        for one in await service.upcoming()
    )


async def _unusual(service: AdminService) -> tuple[Event, ...]:
    return tuple([await _event(service, event) for event in await service.unusual(limit=_MAX_ROWS)])


async def _event(service: AdminService, event: Anomaly) -> Event:
    key = await _key_or_none(service, event.key_id) if event.key_id else None
    return Event(
        title=_UNUSUAL[event.kind],
        detail=event.detail[:1].upper() + event.detail[1:],
        moment=moment(event.at, service.now),
        key_id=key.id if key else "",
        key_name=key.name if key else "",
    )


async def _key_or_none(service: AdminService, key_id: str) -> ApiKey | None:
    try:
        return await service.get(key_id)
    except Problem:
        return None


def _since(service: AdminService) -> str:
    return moment(service.running_since, service.now).relative


def _counts(service: AdminService) -> tuple[CountRow, ...] | None:
    counts = service.counts_by_reason()
    if counts is None:
        return None
    return count_rows(counts, lambda reason: f"/?{urlencode({'reason': reason})}#latest")


async def _nearly_used_up(service: AdminService) -> tuple[QuotaRow, ...]:
    near = (await service.nearly_used_up())[:_MAX_ROWS]
    return tuple(_near(one, service.now) for one in near)


def _near(one: NearlyUsedUp, now: int) -> QuotaRow:
    if one.of_environment:
        link = f"/keys?{urlencode({'environment': one.key.environment or ''})}"
        return quota_row(one.usage, now, subject=f"Environment {one.key.environment}", link=link)
    if not one.of_tenant:
        return quota_row(one.usage, now, subject=one.key.name, link=f"/keys/{one.key.id}")
    link = f"/keys?{urlencode({'tenant': one.key.tenant or ''})}"
    return quota_row(one.usage, now, subject=f"Tenant {one.key.tenant}", link=link)


async def _states(service: AdminService) -> tuple[State, ...]:
    health = await service.health()
    store, config = health.of("store"), health.of("config")
    takes = "Reads a file" if service.reads_file else "Takes reads and writes"
    age = moment(int(health.config_since * MICROSECONDS), service.now).relative
    return (
        State(name="Readiness", good=health.ready, value="Ready" if health.ready else "; ".join(health.problems)),
        _upstream(health.upstream_failed, service.now),
        State(name="Store", good=not store, value=store or takes),
        State(
            name="Configuration",
            good=not config,
            value=config or f"{service.config.sha256[:12]}, loaded {age}",
            link="/policy",
        ),
    )


def _upstream(failed: Refusal | None, now: int) -> State:
    if failed is None:
        return State(name="Upstream", good=True, value="No failure since the start")
    cause = (failed.cause or "").replace("_", " ")
    recent = now - failed.at < _RECENT_SECONDS * MICROSECONDS
    link = f"/?{urlencode({'reason': failed.reason.value})}#latest"
    return State(
        name="Upstream", good=not recent, value=f"Failed {moment(failed.at, now).relative}: {cause}", link=link
    )
