"""The page of one key, and the pages that rotate, disable, enable or revoke it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final
from urllib.parse import urlencode

from aiohttp import web

from sidecar.admin.api.routes import service_of
from sidecar.admin.scopes import ScopeUse
from sidecar.admin.service import AdminService
from sidecar.admin.web.audit import entries_of
from sidecar.admin.web.formatting import (
    MICROSECONDS,
    TEMPLATES,
    limit_text,
    moment,
    moment_or_none,
    percent,
    status_badge,
    status_note,
)
from sidecar.admin.web.issue import (
    already_submitted,
    conflict_text,
    idempotency_key_of,
    show_secret,
)
from sidecar.admin.web.key_form import Form, form_of
from sidecar.admin.web.reach import key_reach
from sidecar.admin.web.stats import (
    INSTRUMENTS,
    class_of,
    count_rows,
    last_day,
    last_days,
    latest_refusals,
    slot_of,
    slot_text,
    totals_by_key,
    usage_chart,
)
from sidecar.admin.web.view_models import (
    AuditEntry,
    Confirm,
    CountRow,
    Fact,
    KeyPage,
    Option,
    QuotaRow,
    UsageByRoute,
)
from sidecar.core.model import ApiKey, KeyStatus
from sidecar.core.quotas import QuotaUsage
from sidecar.core.units import counted
from sidecar.keys.ports import AlreadyProcessed, AuditFilter, IdempotencyKeyReused, KeyChanged, KeyConflict
from sidecar.keys.records import etag_of
from sidecar.keys.transitions import Rotation
from sidecar.keys.validation import InvalidKey
from sidecar.usage.recorder import UsageFilter, UsageRow, observed_reason

# Rotate, disable, enable and revoke: the confirmation page and the action.


_TITLES: Final = {
    "rotate": ("Rotate this key", "Rotate key"),
    "disable": ("Disable this key", "Disable key"),
    "enable": ("Enable this key", "Enable key"),
    "revoke": ("Revoke this key permanently", "Revoke key"),
}
VERBS: Final = "|".join(_TITLES)
_OVERLAPS: Final = (
    (0, "0 hours: it stops working at once"),
    (3_600, "1 hour"),
    (86_400, "24 hours"),
    (604_800, "7 days"),
    (2_592_000, "30 days"),
)
_DEFAULT_OVERLAP: Final = 86_400


def allowed_actions(key: ApiKey, now: int) -> tuple[str, ...]:
    """Return the actions that are possible for the key."""
    if key.status is KeyStatus.REVOKED:
        return ()
    ended = status_badge(key, now).kind in ("expired", "retired")
    rotating = () if ended or key.retires_at is not None or key.status is KeyStatus.DISABLED else ("rotate",)
    return "change", *rotating, "enable" if key.status is KeyStatus.DISABLED else "disable", "revoke"


async def confirm(request: web.Request) -> web.Response:
    """Show what the action does, and a button to confirm it."""
    return await _show(request, "", 200, request.app[INSTRUMENTS].new_token())


async def carry_out(request: web.Request) -> web.Response:
    """Perform the action and show the key; after rotate, the new key. On a conflict, show the confirmation again."""
    service, form = service_of(request), await form_of(request)
    try:
        return await _perform(request, service, form)
    except AlreadyProcessed as processed:
        raise web.HTTPSeeOther(f"/keys/{processed.key_id}?done=issue") from None
    except IdempotencyKeyReused:
        raise already_submitted() from None
    except KeyChanged:
        text = "Someone changed this key in the meantime. Check its current state below before you go on."
        return await _show(request, text, 409, form.get("once", ""))
    except InvalidKey as invalid:
        return await _show(request, "; ".join(invalid.problems), 409, form.get("once", ""))
    except KeyConflict as conflict:
        return await _show(request, conflict_text(conflict), 409, form.get("once", ""))


async def _perform(request: web.Request, service: AdminService, form: Form) -> web.Response:
    key_id, verb, etag = request.match_info["id"], request.match_info["verb"], form.get("etag", "")
    match verb:
        case "rotate":
            rotation = Rotation(overlap_seconds=_overlap(form))
            rotated = await service.rotate(
                key_id, rotation, etag=etag, idempotency_key=idempotency_key_of(service, form)
            )
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
    return offered.get(form.get("overlap", ""), _DEFAULT_OVERLAP)


async def _show(request: web.Request, problem: str, status: int, idempotency_key: str) -> web.Response:
    service, verb = service_of(request), request.match_info["verb"]
    service.must_write()
    key = await service.get(request.match_info["id"])
    if verb not in allowed_actions(key, service.now):
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
        destructive=verb == "revoke",
        effects=tuple(_effects(key, verb, service.now)),
        last_used=moment_or_none(key.last_used_at, service.now),
        requests=counted(sum(totals[key.id]), "request"),
        overlaps=_overlaps() if verb == "rotate" else (),
        etag=etag_of(key),
        idempotency_key=idempotency_key,
        problem=problem,
    )
    return request.app[TEMPLATES].page(request, "confirm.html", status=status, view=view)


def _overlaps() -> tuple[Option, ...]:
    return tuple(
        Option(value=str(seconds), label=label, chosen=seconds == _DEFAULT_OVERLAP) for seconds, label in _OVERLAPS
    )


def _effects(key: ApiKey, verb: str, now: int) -> Iterator[str]:
    match verb:
        case "rotate":
            yield "A new key is issued and shown once. Name, tenant, scopes, plan, limits and metadata stay the same."
            yield "Both keys work until the old one retires. Its responses carry Deprecation and Sunset headers."
            if key.expires_at is not None:
                yield f"The new key expires when this one would have, {moment(key.expires_at, now).exact}."
        case "disable":
            yield "From the next request on, the sidecar refuses this key with 401."
            yield "Its open streams and tunnels are closed within seconds."
            yield "Nothing else changes. You can enable it again at any time."
        case "enable":
            yield "From the next request on, this key works again, with its present scopes and limits."
        case "revoke":
            yield "From the next request on, the sidecar refuses this key with 401."
            yield "Its open streams and tunnels are closed within seconds."
            yield "This is permanent: a revoked key cannot be enabled, changed or rotated. Issue a new key instead."
            if key.last_used_at is not None and now - key.last_used_at < 86_400 * MICROSECONDS:
                last_used = moment(key.last_used_at, now).relative
                yield f"It is in use: its last request came {last_used}. To avoid an outage, rotate it instead."


# The page of the key.

_AUDIT_ROWS: Final = 10
_SPANS: Final = (("1", "24 hours"), ("7", "7 days"), ("30", "30 days"), ("90", "90 days"))
_DONE: Final = {
    "issue": "This is the key that you issued. It was shown once: if it is lost, rotate or revoke it.",
    "change": "The change is saved. It applies from the next request on.",
    "disable": "The key is disabled. Its next request is refused.",
    "enable": "The key is enabled. Its next request is allowed.",
    "revoke": "The key is revoked permanently. Its next request is refused.",
}


async def show_key(request: web.Request) -> web.Response:
    """Show everything about a key except the API key itself."""
    service = service_of(request)
    key = await service.get(request.match_info["id"])
    days = _days(request.query.get("span", ""))
    wanted = _span(service.now, days)
    rows = await service.usage(key.id, replace(wanted, with_reasons=True))
    whole, slot = f"/keys/{key.id}?span={days}", slot_of(request, wanted)
    shown = rows if slot is None else [row for row in rows if slot.since <= row.at < (slot.until or 0)]
    actions = allowed_actions(key, service.now)
    may_change = service.admin.may_write and "change" in actions
    view = KeyPage(
        id=key.id,
        name=key.name,
        status=status_badge(key, service.now),
        status_note=status_note(key, service.now),
        facts=tuple(_facts(key, service.now, _scope_facts(await service.scope_use(key), link=may_change))),
        quotas=tuple(quota_row(one, service.now) for one in await service.quota_usage(key)),
        chart=usage_chart(rows, wanted, dict(_SPANS)[days], link=lambda at: f"{whole}&at={at}#usage", slot=slot)
        if rows
        else None,
        spans=tuple(Option(value=value, label=label, chosen=value == days) for value, label in _SPANS),
        slot=slot_text(slot),
        whole=f"{whole}#usage",
        by_route=_by_route(shown),
        by_reason=_by_reason(key, days, shown, observed=False),
        observed=_by_reason(key, days, shown, observed=True),
        latest=latest_refusals(service, request, key_id=key.id, slot=slot),
        audit=await _audit(service, key),
        actions=actions,
        done=_DONE.get(request.query.get("done", ""), ""),
    )
    return request.app[TEMPLATES].page(request, "key.html", view=view, reach=key_reach(service, key))


def _by_reason(key: ApiKey, days: str, rows: Sequence[UsageRow], *, observed: bool) -> tuple[CountRow, ...]:
    """Refusals, or only the observed ones."""
    counts: Counter[str] = Counter()
    for row in rows:
        reason = observed_reason(row.reason)
        if row.reason and bool(reason) == observed:
            counts[reason or row.reason] += row.count
    return count_rows(counts, lambda reason: f"/keys/{key.id}?{urlencode({'span': days, 'reason': reason})}#latest")


def quota_row(left: QuotaUsage, now: int, *, subject: str = "", link: str = "") -> QuotaRow:
    """Return the quota as a row. subject: name of what it belongs to, on pages of several keys."""
    state = left.state
    used = percent(state.used, state.limit) if state else 0
    return QuotaRow(
        name=left.quota.name,
        limit=limit_text(left.quota, left.limit),
        left=f"{state.remaining:,} left" if state else "",
        percent=used,
        kind="bad" if used >= 95 else "warn" if used >= 80 else "",
        resets=moment(int(state.resets_at * MICROSECONDS), now) if state and state.used else None,
        note=left.note,
        subject=subject,
        link=link,
    )


def _days(text: str) -> str:
    return text if text in dict(_SPANS) else "1"


def _span(now: int, days: str) -> UsageFilter:
    return last_day(now) if days == "1" else last_days(now, int(days))


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


def _facts(key: ApiKey, now: int, of_scopes: Iterable[Fact]) -> Iterator[Fact]:
    yield Fact(label="Id", value=key.id, mono=True)
    yield Fact(label="Prefix", value=f"{key.prefix}…", mono=True)
    yield Fact(label="Tenant", value=key.tenant or "")
    yield Fact(label="Environment", value=key.environment or "")
    yield Fact(label="Scopes", chips=key.scopes)
    yield from of_scopes
    yield Fact(label="Plan", value=key.plan or "")
    if key.quotas:
        yield Fact(label="Own limits", chips=tuple(f"{name}: {limit:,}" for name, limit in key.quotas.items()))
    if key.metadata:
        yield Fact(label="Metadata", chips=tuple(f"{name}={value}" for name, value in key.metadata.items()))
    yield Fact(label="Last used", value="Never", moment=moment_or_none(key.last_used_at, now))
    if key.last_used_address:
        yield Fact(label="Last used from", value=key.last_used_address, mono=True)
    if key.last_used_agent:
        yield Fact(label="Last user agent", value=key.last_used_agent)
    yield Fact(label="Issued", moment=moment(key.created_at, now))
    yield Fact(label="Issued by", value=key.created_by)
    yield Fact(label="Expires", value="Never", moment=moment_or_none(key.expires_at, now))
    if key.retires_at is not None:
        yield Fact(label="Retires" if key.retires_at > now else "Retired", moment=moment(key.retires_at, now))
    if key.replaces:
        yield Fact(label="Replaces", value=key.replaces, link=f"/keys/{key.replaces}")


def _scope_facts(use: ScopeUse, *, link: bool) -> Iterator[Fact]:
    one = use.suggestion
    if not one.key.scopes:
        return
    yield Fact(label="Use of scopes", value=use.sentence)
    if use.command is not None:
        yield Fact(label="Needed", chips=one.needed)
        yield Fact(label="Not used", chips=one.unused)
        narrowed = urlencode([("scope", name) for name in one.needed or ("",)])
        if link:
            yield Fact(label="To narrow it", value="Review and change", link=f"/keys/{one.key.id}/change?{narrowed}")
        yield Fact(label="As a command", value=use.command, mono=True)


async def _audit(service: AdminService, key: ApiKey) -> tuple[AuditEntry, ...]:
    return entries_of(await service.audit(AuditFilter(key_id=key.id, limit=_AUDIT_ROWS)), service.now)
