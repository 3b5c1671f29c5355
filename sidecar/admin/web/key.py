"""The page of one key."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from aiohttp import web

from sidecar.admin.server import service_of
from sidecar.admin.service import AdminService
from sidecar.admin.web.audit import entries_of
from sidecar.admin.web.charts import Chart, chart
from sidecar.admin.web.formatting import (
    MICROSECONDS,
    effective_status,
    moment,
    moment_or_none,
    percent,
    quota_said,
    standing_note,
)
from sidecar.admin.web.issue import conflict_said, once_of, sent_before, show_secret
from sidecar.admin.web.key_form import Form, form_of
from sidecar.admin.web.rendering import TEMPLATES
from sidecar.admin.web.route_access import charges, needs, opened
from sidecar.admin.web.stats import INSTRUMENTS, Left, class_of, last_day, last_days, left_of, points_of, totals_by_key
from sidecar.admin.web.view_models import AuditEntry, Confirm, Fact, KeyPage, Option, QuotaRow, RouteRow, UsageByRoute
from sidecar.core.model import ApiKey, KeyStatus, Route
from sidecar.core.units import counted
from sidecar.keys.ports import AlreadyProcessed, AuditFilter, IdempotencyKeyReused, KeyChanged, KeyConflict
from sidecar.keys.records import etag_of
from sidecar.keys.transitions import Rotation
from sidecar.keys.validation import InvalidKey
from sidecar.usage.ports import UsageFilter, UsageRow

# Rotate, disable, enable, revoke: what will happen, and then it happens.


_TITLES: Final = {
    "rotate": ("Rotate this key", "Rotate key"),
    "disable": ("Disable this key", "Disable key"),
    "enable": ("Enable this key", "Enable key"),
    "revoke": ("Revoke this key for ever", "Revoke key"),
}
VERBS: Final = "|".join(_TITLES)
_OVERLAPS: Final = (
    (0, "No time: it is refused at once"),
    (3_600, "1 hour"),
    (86_400, "24 hours"),
    (604_800, "7 days"),
    (2_592_000, "30 days"),
)
_USUAL_OVERLAP: Final = 86_400


def possible(key: ApiKey, now: int) -> tuple[str, ...]:
    """What can be done to the key as it stands."""
    if key.status is KeyStatus.REVOKED:
        return ()
    over = effective_status(key, now).kind in ("expired", "retired")
    rotating = () if over or key.retires_at is not None or key.status is KeyStatus.DISABLED else ("rotate",)
    return "change", *rotating, "enable" if key.status is KeyStatus.DISABLED else "disable", "revoke"


async def confirm(request: web.Request) -> web.Response:
    """What will happen, and a button."""
    return await _show(request, "", 200, request.app[INSTRUMENTS].new_token())


async def carry_out(request: web.Request) -> web.Response:
    """Back to the key (rotate: to the new key, shown this once); or the question again, with what is in the way."""
    service, form = service_of(request), await form_of(request)
    try:
        return await _done(request, service, form)
    except (AlreadyProcessed, IdempotencyKeyReused):
        raise sent_before() from None
    except KeyChanged:
        said = "Somebody has changed this key meanwhile. Look at what is told of it here, and then go on."
        return await _show(request, said, 409, form.get("once", ""))
    except InvalidKey as unfit:
        return await _show(request, "; ".join(unfit.problems), 409, form.get("once", ""))
    except KeyConflict as conflict:
        return await _show(request, conflict_said(conflict), 409, form.get("once", ""))


async def _done(request: web.Request, service: AdminService, form: Form) -> web.Response:
    key_id, verb, etag = request.match_info["id"], request.match_info["verb"], form.get("etag", "")
    match verb:
        case "rotate":
            rotation = Rotation(overlap_seconds=_overlap(form))
            rotated = await service.rotate(key_id, rotation, etag=etag, idempotency_key=once_of(service, form))
            return show_secret(request, service, rotated.new, replaced=rotated.old)
        case "disable":
            await service.disable(key_id, etag=etag)
        case "enable":
            await service.enable(key_id, etag=etag)
        case "revoke":
            await service.revoke(key_id, etag=etag)
    raise web.HTTPSeeOther(f"/keys/{key_id}?done={verb}")


def _overlap(form: Form) -> int:
    offered = {str(seconds): seconds for seconds, _ in _OVERLAPS}
    return offered.get(form.get("overlap", ""), _USUAL_OVERLAP)


async def _show(request: web.Request, problem: str, status: int, once: str) -> web.Response:
    service, verb = service_of(request), request.match_info["verb"]
    service.must_write()
    key = await service.get(request.match_info["id"])
    if verb not in possible(key, service.now):
        raise web.HTTPSeeOther(f"/keys/{key.id}")
    title, button = _TITLES[verb]
    totals = await totals_by_key(service, [key])
    view = Confirm(
        id=key.id,
        name=key.name,
        prefix=key.prefix,
        tenant=key.tenant or "",
        verb=verb,
        title=title,
        button=button,
        grave=verb == "revoke",
        effects=tuple(_effects(key, verb, service.now)),
        last_used=moment_or_none(key.last_used_at, service.now),
        requests=counted(sum(totals[key.id]), "request"),
        overlaps=_overlaps() if verb == "rotate" else (),
        etag=etag_of(key),
        once=once,
        problem=problem,
    )
    return request.app[TEMPLATES].page(request, "confirm.html", status=status, view=view)


def _overlaps() -> tuple[Option, ...]:
    return tuple(
        Option(value=str(seconds), label=label, chosen=seconds == _USUAL_OVERLAP) for seconds, label in _OVERLAPS
    )


def _effects(key: ApiKey, verb: str, now: int) -> Iterator[str]:
    match verb:
        case "rotate":
            yield "A new key is issued, and shown once. Name, tenant, scopes, plan, limits and metadata stay the same."
            yield "Both keys work until the old one retires. Until then its answers say so (Deprecation, Sunset)."
            if key.expires_at is not None:
                yield f"The new key expires when this one would have, {moment(key.expires_at, now).exact}."
        case "disable":
            yield "From the next request on, every request with it is refused with 401."
            yield "Streams and tunnels that it has open are closed within seconds."
            yield "Nothing else changes, and it can be enabled again at any time."
        case "enable":
            yield "From the next request on, this key is taken again, with the scopes and limits that it has."
        case "revoke":
            yield "From the next request on, every request with it is refused with 401."
            yield "Streams and tunnels that it has open are closed within seconds."
            yield "This is final: a revoked key cannot be enabled, changed or rotated. Issue a new one instead."
            if key.last_used_at is not None and now - key.last_used_at < 86_400 * MICROSECONDS:
                said = moment(key.last_used_at, now).said
                yield f"It is in use: the last request came {said}. To replace it without an outage, rotate it."


_AUDIT_ROWS: Final = 10
_SPANS: Final = (("1", "24 hours"), ("7", "7 days"), ("30", "30 days"), ("90", "90 days"))
_DONE: Final = {
    "change": "The change is saved, and counts from the next request on.",
    "disable": "The key is disabled: its next request is refused.",
    "enable": "The key is enabled: its next request is taken.",
    "revoke": "The key is revoked: its next request is refused, for ever.",
}


async def show_key(request: web.Request) -> web.Response:
    """Everything about one key, but the key itself."""
    service, instruments = service_of(request), request.app[INSTRUMENTS]
    key = await service.get(request.match_info["id"])
    days = _days(request.query.get("span", ""))
    wanted = _span(service.now, days)
    rows = await service.usage(key.id, wanted)
    routes = opened(service.config, key)
    left = await left_of(instruments.limiter, service.config, key, routes, now=service.now / MICROSECONDS)
    view = KeyPage(
        id=key.id,
        name=key.name,
        effective_status=effective_status(key, service.now),
        standing_note=standing_note(key, service.now),
        facts=tuple(_facts(key, service.now)),
        routes=tuple(_route(route) for route in routes),
        quotas=tuple(quota_row(one, service.now) for one in left),
        chart=usage_chart(rows, wanted, dict(_SPANS)[days]) if rows else None,
        spans=tuple(Option(value=value, label=label, chosen=value == days) for value, label in _SPANS),
        by_route=_by_route(rows),
        audit=await _audit(service, key),
        actions=possible(key, service.now),
        done=_DONE.get(request.query.get("done", ""), ""),
    )
    return request.app[TEMPLATES].page(request, "key.html", view=view)


def usage_chart(rows: Sequence[UsageRow], wanted: UsageFilter, span: str) -> Chart:
    """A bar for each hour or day of `wanted`, and a label at its beginning, its middle and its end."""
    shown = "%b %-d" if wanted.by == "day" else "%H:%M"
    points = [(_label(at, f"{shown} UTC"), counts) for at, counts in points_of(rows, wanted)]
    middle = (wanted.since + wanted.until) // 2
    ticks = [_label(at, shown) for at in (wanted.since, middle)]
    return chart(points, ticks=[*ticks, "now"], span=span)


def quota_row(left: Left, now: int, *, key: ApiKey | None = None) -> QuotaRow:
    """key: whose quota it is, where the page is not that key's own."""
    state, said = left.state, quota_said(left.quota, left.limit)
    used = percent(state.used, state.limit) if state else 0
    return QuotaRow(
        name=left.quota.name,
        said=said,
        left=f"{state.remaining:,} left" if state else "",
        percent=used,
        kind="bad" if used >= 95 else "warn" if used >= 80 else "",
        resets=moment(int(state.resets_at * MICROSECONDS), now) if state and state.used else None,
        note=left.note,
        key_id="" if key is None else key.id,
        key_name="" if key is None else key.name,
    )


def _days(text: str) -> str:
    return text if text in dict(_SPANS) else "1"


def _span(now: int, days: str) -> UsageFilter:
    return last_day(now) if days == "1" else last_days(now, int(days))


def _label(at: int, shown: str) -> str:
    return datetime.fromtimestamp(at // MICROSECONDS, UTC).strftime(shown)


def _route(route: Route) -> RouteRow:
    return RouteRow(name=route.name, where=route.where, needs=needs(route.policy), quotas=charges(route.policy))


def _by_route(rows: Sequence[UsageRow]) -> tuple[UsageByRoute, ...]:
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(row.route, Counter())[class_of(row.status_class)] += row.count
    most_first = sorted(counts.items(), key=lambda item: (-item[1].total(), item[0]))
    return tuple(
        UsageByRoute(
            route=route,
            total=f"{count.total():,}",
            good=f"{count['2xx'] + count['3xx']:,}",
            client_errors=f"{count['4xx']:,}",
            server_errors=f"{count['5xx']:,}",
        )
        for route, count in most_first
    )


def _facts(key: ApiKey, now: int) -> Iterator[Fact]:
    yield Fact(label="Id", value=key.id, mono=True)
    yield Fact(label="Begins with", value=f"{key.prefix}…", mono=True)
    yield Fact(label="Tenant", value=key.tenant or "")
    yield Fact(label="Environment", value=key.environment or "")
    yield Fact(label="Scopes", chips=key.scopes)
    yield Fact(label="Plan", value=key.plan or "")
    if key.quotas:
        yield Fact(label="Own limits", chips=tuple(f"{name}: {limit:,}" for name, limit in key.quotas.items()))
    if key.metadata:
        yield Fact(label="Metadata", chips=tuple(f"{name}={value}" for name, value in key.metadata.items()))
    yield Fact(label="Last used", value="Never", moment=moment_or_none(key.last_used_at, now))
    if key.last_used_address:
        yield Fact(label="From", value=key.last_used_address, mono=True)
    if key.last_used_agent:
        yield Fact(label="With", value=key.last_used_agent)
    yield Fact(label="Issued", moment=moment(key.created_at, now))
    yield Fact(label="By", value=key.created_by)
    yield Fact(label="Expires", value="Never", moment=moment_or_none(key.expires_at, now))
    if key.retires_at is not None:
        yield Fact(label="Retires" if key.retires_at > now else "Retired", moment=moment(key.retires_at, now))
    if key.replaces:
        yield Fact(label="In place of", value=key.replaces, link=f"/keys/{key.replaces}")


async def _audit(service: AdminService, key: ApiKey) -> tuple[AuditEntry, ...]:
    return entries_of(await service.audit(AuditFilter(key_id=key.id, limit=_AUDIT_ROWS)), service.now)
