"""Rotate, disable, enable, revoke: what will happen, and then it happens."""

from collections.abc import Iterator
from typing import Final

from aiohttp import web

from sidecar.admin.pages_forms import Form, form_of
from sidecar.admin.server import desk_of
from sidecar.admin.service import Desk
from sidecar.admin.web.formatting import MICROSECONDS, moment, moment_or_none, standing
from sidecar.admin.web.issue import conflict_said, once_of, sent_before, show_secret
from sidecar.admin.web.rendering import TEMPLATES
from sidecar.admin.web.stats import INSTRUMENTS, totals_by_key
from sidecar.admin.web.view_models import Confirm, Option
from sidecar.core.model import ApiKey, KeyStatus
from sidecar.core.wording import counted
from sidecar.keys.ports import KeyChanged, KeyConflict, Misused, Repeated
from sidecar.keys.records import etag_of
from sidecar.keys.transitions import Rotation
from sidecar.keys.validation import UnfitKey

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
    over = standing(key, now).kind in ("expired", "retired")
    rotating = () if over or key.retires_at is not None or key.status is KeyStatus.DISABLED else ("rotate",)
    return "change", *rotating, "enable" if key.status is KeyStatus.DISABLED else "disable", "revoke"


async def confirm(request: web.Request) -> web.Response:
    """What will happen, and a button."""
    return await _show(request, "", 200, request.app[INSTRUMENTS].new_token())


async def carry_out(request: web.Request) -> web.Response:
    """Back to the key (rotate: to the new key, shown this once); or the question again, with what is in the way."""
    desk, form = desk_of(request), await form_of(request)
    try:
        return await _done(request, desk, form)
    except (Repeated, Misused):
        raise sent_before() from None
    except KeyChanged:
        said = "Somebody has changed this key meanwhile. Look at what is told of it here, and then go on."
        return await _show(request, said, 409, form.get("once", ""))
    except UnfitKey as unfit:
        return await _show(request, "; ".join(unfit.problems), 409, form.get("once", ""))
    except KeyConflict as conflict:
        return await _show(request, conflict_said(conflict), 409, form.get("once", ""))


async def _done(request: web.Request, desk: Desk, form: Form) -> web.Response:
    key_id, verb, etag = request.match_info["id"], request.match_info["verb"], form.get("etag", "")
    match verb:
        case "rotate":
            rotation = Rotation(overlap_seconds=_overlap(form))
            rotated = await desk.rotate(key_id, rotation, etag=etag, once=once_of(desk, form))
            return show_secret(request, desk, rotated.new, replaced=rotated.old)
        case "disable":
            await desk.disable(key_id, etag=etag)
        case "enable":
            await desk.enable(key_id, etag=etag)
        case "revoke":
            await desk.revoke(key_id, etag=etag)
    raise web.HTTPSeeOther(f"/keys/{key_id}?done={verb}")


def _overlap(form: Form) -> int:
    offered = {str(seconds): seconds for seconds, _ in _OVERLAPS}
    return offered.get(form.get("overlap", ""), _USUAL_OVERLAP)


async def _show(request: web.Request, problem: str, status: int, once: str) -> web.Response:
    desk, verb = desk_of(request), request.match_info["verb"]
    desk.must_write()
    key = await desk.get(request.match_info["id"])
    if verb not in possible(key, desk.now):
        raise web.HTTPSeeOther(f"/keys/{key.id}")
    title, button = _TITLES[verb]
    totals = await totals_by_key(desk, [key])
    view = Confirm(
        id=key.id,
        name=key.name,
        prefix=key.prefix,
        tenant=key.tenant or "",
        verb=verb,
        title=title,
        button=button,
        grave=verb == "revoke",
        effects=tuple(_effects(key, verb, desk.now)),
        last_used=moment_or_none(key.last_used_at, desk.now),
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
