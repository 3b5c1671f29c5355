"""Issuing a key, and changing one: a form, and what comes of sending it."""

from collections.abc import Awaitable, Callable
from hashlib import sha256

from aiohttp import web

from sidecar.admin.problems import Problem
from sidecar.admin.server import service_of
from sidecar.admin.service import AdminService
from sidecar.admin.web.formatting import command_for, moment_or_none, sentence
from sidecar.admin.web.key_form import (
    Filled,
    Form,
    KeyFields,
    filled_anew,
    filled_from,
    filled_of,
    form_of,
    form_view,
    key_fields,
    problems_of,
    problems_of_flaws,
)
from sidecar.admin.web.rendering import TEMPLATES
from sidecar.admin.web.route_access import opened
from sidecar.admin.web.stats import INSTRUMENTS
from sidecar.admin.web.view_models import NewSecret
from sidecar.core.model import ApiKey
from sidecar.gate.compile import key_rules
from sidecar.keys.lifecycle import Issued
from sidecar.keys.ports import AlreadyProcessed, IdempotencyKey, IdempotencyKeyReused, KeyConflict
from sidecar.keys.records import etag_of
from sidecar.keys.transitions import KeyChange
from sidecar.keys.validation import InvalidKey, NewKey

_LONGEST_ONCE = 64
_CHANGED = "Somebody else has changed this key since you opened the form. Look at it again, then change it."


async def show_issue(request: web.Request) -> web.Response:
    """The empty form."""
    service = _writing_desk(request)
    return _issue_form(request, service, filled_anew(service), {}, 200, request.app[INSTRUMENTS].new_token())


async def issue(request: web.Request) -> web.Response:
    """The new key, shown this once; or the form again, with what is wrong."""
    service, form = _writing_desk(request), await form_of(request)

    async def carry_out() -> web.Response:
        fields = key_fields(form, service.now)
        _check(service, fields)
        issued = await service.issue(_new_key(fields), idempotency_key=once_of(service, form))
        return show_secret(request, service, issued)

    try:
        problems = await _problems(carry_out)
    except (AlreadyProcessed, IdempotencyKeyReused):
        raise sent_before() from None
    if isinstance(problems, web.Response):
        return problems
    return _issue_form(request, service, filled_from(form), problems, 422, form.get("once", ""))


async def show_change(request: web.Request) -> web.Response:
    """The form with what the key has now."""
    service = _writing_desk(request)
    key = await service.get(request.match_info["id"])
    return _change_form(request, service, key, filled_of(key), {}, 200, etag_of(key))


async def change(request: web.Request) -> web.Response:
    """Back to the key; or the form again, with what is wrong."""
    service, form = _writing_desk(request), await form_of(request)
    key, etag = await service.get(request.match_info["id"]), form.get("etag", "")

    async def carry_out() -> web.Response:
        fields = key_fields(form, service.now, kept=key.expires_at)
        _check(service, fields)
        await service.change(key.id, _key_change(fields), etag=etag)
        raise web.HTTPSeeOther(f"/keys/{key.id}?done=change")

    problems = await _problems(carry_out)
    if isinstance(problems, web.Response):
        return problems
    return _change_form(request, service, key, filled_from(form), problems, 422, etag)


def show_secret(
    request: web.Request, service: AdminService, issued: Issued, *, replaced: ApiKey | None = None
) -> web.Response:
    """The page with the plaintext. Whoever loads it anew sends the form again, and is told that it was sent before."""
    key, text = issued.key, issued.secret.text
    routes = opened(service.config, key)
    clients = request.app[INSTRUMENTS].clients()
    retires = None if replaced is None or (replaced.retires_at or 0) <= service.now else replaced.retires_at
    view = NewSecret(
        id=key.id,
        name=key.name,
        text=text,
        command=command_for(service.config, key, text, routes, clients=clients),
        opens=tuple(route.name for route in routes),
        replaces="" if replaced is None else replaced.id,
        retires=moment_or_none(retires, service.now),
    )
    return request.app[TEMPLATES].page(request, "issued.html", view=view)


def once_of(service: AdminService, form: Form) -> IdempotencyKey | None:
    """So that a form that is sent twice makes one key."""
    if not 1 <= len(form.get("once", "")) <= _LONGEST_ONCE:
        return None
    said = "\n".join(f"{name}={value}" for name, value in form.items() if name != "proof")
    fingerprint = sha256(said.encode("utf-8", "surrogatepass")).hexdigest()
    return IdempotencyKey(token=f"page:{service.admin.name}", key=form["once"], fingerprint=fingerprint)


def sent_before() -> Problem:
    return Problem(
        409,
        "sent_before",
        "this form was sent before, and its key was made then; a key is shown once only, so if it is lost, "
        "revoke it and issue another",
    )


class _BadForm(Exception):
    """problems: field to what is wrong with it."""

    def __init__(self, problems: dict[str, str]) -> None:
        super().__init__()
        self.problems = problems


def _check(service: AdminService, fields: KeyFields) -> None:
    """Raises _BadForm where something could not be read, with whatever else is wrong, so that all is told at once."""
    if not fields.problems:
        return
    problems: dict[str, str] = {}
    try:
        key_rules(service.config).check(_new_key(fields), service.now)
    except InvalidKey as unfit:
        problems = problems_of(unfit)
    raise _BadForm({**problems, **fields.problems})


async def _problems(carry_out: Callable[[], Awaitable[web.Response]]) -> web.Response | dict[str, str]:
    """The answer, or what is wrong by field."""
    try:
        return await carry_out()
    except _BadForm as bad:
        return bad.problems
    except InvalidKey as unfit:
        return problems_of(unfit)
    except (AlreadyProcessed, IdempotencyKeyReused):
        raise
    except KeyConflict as conflict:
        return {"": conflict_said(conflict)}
    except Problem as refusal:
        if not refusal.errors:
            raise
        return problems_of_flaws(refusal.detail, refusal.errors)


def conflict_said(conflict: KeyConflict) -> str:
    """Why a change did not fit, for people."""
    text = str(conflict)
    return sentence(text) if text else _CHANGED


def _writing_desk(request: web.Request) -> AdminService:
    service = service_of(request)
    service.must_write()
    return service


def _issue_form(
    request: web.Request, service: AdminService, filled: Filled, problems: dict[str, str], status: int, once: str
) -> web.Response:
    form = form_view(service, filled, problems=problems, once=once)
    return request.app[TEMPLATES].page(request, "issue.html", status=status, form=form)


def _change_form(
    request: web.Request,
    service: AdminService,
    key: ApiKey,
    filled: Filled,
    problems: dict[str, str],
    status: int,
    etag: str,
) -> web.Response:
    form = form_view(service, filled, problems=problems, key=key, etag=etag)
    return request.app[TEMPLATES].page(
        request, "change.html", status=status, form=form, key_id=key.id, key_name=key.name
    )


def _new_key(fields: KeyFields) -> NewKey:
    return NewKey(
        name=fields.name,
        scopes=fields.scopes,
        tenant=fields.tenant,
        environment=fields.environment,
        plan=fields.plan,
        quotas=fields.quotas,
        metadata=fields.metadata,
        expires_at=fields.expires_at,
    )


def _key_change(fields: KeyFields) -> KeyChange:
    return KeyChange(
        name=fields.name,
        scopes=fields.scopes,
        plan=fields.plan,
        quotas=fields.quotas,
        metadata=fields.metadata,
        expires_at=fields.expires_at,
    )
