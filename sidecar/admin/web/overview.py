"""The overview: traffic of the last day, and what needs attention."""

import asyncio
from collections.abc import Sequence
from typing import Final

from aiohttp import web

from sidecar.admin.problems import Problem
from sidecar.admin.server import service_of
from sidecar.admin.service import DUE_WITHIN_SECONDS, AdminService
from sidecar.admin.web.charts import CLASSES
from sidecar.admin.web.formatting import MICROSECONDS, moment, moment_or_none, percent, share_text, span_of
from sidecar.admin.web.key import quota_row, usage_chart
from sidecar.admin.web.rendering import TEMPLATES
from sidecar.admin.web.stats import INSTRUMENTS, Instruments, class_of, last_day, quota_usage_of
from sidecar.admin.web.view_models import CountRow, DueRow, Event, Overview, QuotaRow, Tile
from sidecar.core.model import ApiKey
from sidecar.core.units import counted
from sidecar.gate.explain import allowed_routes
from sidecar.keys.ports import KeyFilter
from sidecar.usage.anomalies import Anomaly, AnomalyKind
from sidecar.usage.ports import UsageRow

_MAX_ROWS: Final = 6
"""Rows of each list on this page."""
_NEAR_PERCENT: Final = 80
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
}


async def show_overview(request: web.Request) -> web.Response:
    """Show the numbers of the last day, and lists of what needs attention."""
    service, instruments = service_of(request), request.app[INSTRUMENTS]
    wanted = last_day(service.now)
    rows = await service.usage(None, wanted)
    due = await _due(service)
    view = Overview(
        intro=_intro(service),
        first_steps=not (await service.list(KeyFilter(limit=1))).keys,
        tiles=tuple(await _tiles(service, rows, len(due))),
        chart=usage_chart(rows, wanted, "24 hours") if rows else None,
        unusual=await _unusual(service),
        due=due[:_MAX_ROWS],
        due_within=span_of(DUE_WITHIN_SECONDS),
        refusals=_refusals(service, instruments),
        refusals_since=f"Since this process started ({_since(service, instruments)}), with and without a key.",
        quotas=await _nearly_used_up(service, instruments),
        near_percent=_NEAR_PERCENT,
    )
    return request.app[TEMPLATES].page(request, "overview.html", here="overview", view=view)


def _since(service: AdminService, instruments: Instruments) -> str:
    return moment(int(instruments.since * MICROSECONDS), service.now).relative


def _intro(service: AdminService) -> str:
    routes = counted(len(service.config.routes), "route")
    tenants = "every tenant" if service.admin.tenant is None else f"tenant {service.admin.tenant}"
    return f"{routes} in force. You see the keys of {tenants}."


async def _tiles(service: AdminService, rows: Sequence[UsageRow], due: int) -> list[Tile]:
    by_class = {name: sum(row.count for row in rows if class_of(row.status_class) == name) for name in CLASSES}
    total = sum(by_class.values())
    client, server = by_class["4xx"], by_class["5xx"]
    tiles = [
        Tile(name="Requests", value=f"{total:,}", note="with a key, last 24 hours"),
        Tile(name="4xx responses", value=f"{client:,}", note=share_text(client, total)),
        Tile(name="5xx responses", value=f"{server:,}", note=share_text(server, total)),
    ]
    counts = await service.counts()
    if counts is None:
        return [*tiles, Tile(name="Keys due", value=f"{due:,}", note=f"within {span_of(DUE_WITHIN_SECONDS)}")]
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


def _refusals(service: AdminService, instruments: Instruments) -> tuple[CountRow, ...] | None:
    if service.admin.tenant is not None:
        return None
    counts = {reason: count for reason, count in instruments.refusals().items() if count}
    largest = max(counts.values(), default=0)
    most_first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(
        CountRow(name=reason, count=f"{count:,}", percent=percent(count, largest)) for reason, count in most_first
    )


async def _nearly_used_up(service: AdminService, instruments: Instruments) -> tuple[QuotaRow, ...]:
    """Return the quotas that are used by 80% or more, the fullest first."""
    rows: list[QuotaRow] = []
    for key_id in dict.fromkeys(await asyncio.to_thread(instruments.fullest)):
        key = await _key_or_none(service, key_id)
        if key is not None:
            left = await quota_usage_of(
                instruments.limiter,
                service.config,
                key,
                allowed_routes(service.config, key),
                now=service.now / MICROSECONDS,
            )
            rows += [quota_row(one, service.now, key=key) for one in left]
    near = [row for row in rows if row.percent >= _NEAR_PERCENT]
    return tuple(sorted(near, key=lambda row: -row.percent)[:_MAX_ROWS])
