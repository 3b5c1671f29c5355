"""The pages that issue and change a key."""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from hashlib import sha256

from aiohttp import web

from sidecar.admin.api.routes import service_of
from sidecar.admin.problems import Problem
from sidecar.admin.service import AdminService
from sidecar.admin.web.formatting import TEMPLATES, command_for, moment_or_none, sentence
from sidecar.admin.web.key_form import (
    Form,
    FormValues,
    KeyFields,
    empty_values,
    form_of,
    form_view,
    key_fields,
    problems_of,
    problems_of_flaws,
    submitted_values,
    values_of,
)
from sidecar.admin.web.stats import INSTRUMENTS
from sidecar.admin.web.view_models import NewSecret
from sidecar.core.model import ApiKey
from sidecar.gate.compile import key_rules
from sidecar.gate.explain import allowed_routes
from sidecar.keys.lifecycle import Issued
from sidecar.keys.ports import AlreadyProcessed, IdempotencyKey, IdempotencyKeyReused, KeyConflict
from sidecar.keys.records import etag_of
from sidecar.keys.transitions import KeyChange
from sidecar.keys.validation import InvalidKey, NewKey

_MAX_KEY_LENGTH = 64
_CHANGED = "Someone else changed this key after you opened the form. Load the key again, then change it."


async def show_issue(request: web.Request) -> web.Response:
    """Show the empty form."""
    service = _writable_service(request)
    return _issue_form(request, service, empty_values(service), {}, 200, request.app[INSTRUMENTS].new_token())


async def issue(request: web.Request) -> web.Response:
    """Issue the key and show it once. If the form has problems, show it again."""
    service, form = _writable_service(request), await form_of(request)

    async def carry_out() -> web.Response:
        fields = key_fields(form, service.now)
        _check(service, fields)
        issued = await service.issue(_new_key(fields), idempotency_key=idempotency_key_of(service, form))
        return show_secret(request, service, issued)

    try:
        problems = await _problems(carry_out)
    except AlreadyProcessed as processed:
        # Reloading the page that showed the key submits the form again.
        raise web.HTTPSeeOther(f"/keys/{processed.key_id}?done=issue") from None
    except IdempotencyKeyReused:
        raise already_submitted() from None
    if isinstance(problems, web.Response):
        return problems
    return _issue_form(request, service, submitted_values(form), problems, 422, form.get("once", ""))


async def show_change(request: web.Request) -> web.Response:
    """Show the form with the key's current values, or with fewer scopes if the address names some."""
    service = _writable_service(request)
    key = await service.get(request.match_info["id"])
    values = values_of(key)
    if (wanted := request.query.getall("scope", None)) is not None:
        values = replace(values, scopes=_narrowed(service, key, wanted))
    return _change_form(request, service, key, values, {}, 200, etag_of(key))


def _narrowed(service: AdminService, key: ApiKey, wanted: Collection[str]) -> tuple[str, ...]:
    """The scopes that the key already has: a link from someone else must not add others."""
    held = service.config.catalogue.expand(key.scopes)
    return tuple(name for name in dict.fromkeys(wanted) if name in held)


async def change(request: web.Request) -> web.Response:
    """Change the key and show it. If the form has problems, show the form again."""
    service, form = _writable_service(request), await form_of(request)
    key, etag = await service.get(request.match_info["id"]), form.get("etag", "")

    async def carry_out() -> web.Response:
        fields = key_fields(form, service.now, kept=key.expires_at)
        _check(service, fields)
        await service.change(key.id, _key_change(fields), etag=etag)
        raise web.HTTPSeeOther(f"/keys/{key.id}?done=change")

    problems = await _problems(carry_out)
    if isinstance(problems, web.Response):
        return problems
    return _change_form(request, service, key, submitted_values(form), problems, 422, etag)


def show_secret(
    request: web.Request, service: AdminService, issued: Issued, *, replaced: ApiKey | None = None
) -> web.Response:
    """Show the page with the plaintext. Reloading it leads to the key."""
    key, text = issued.key, issued.secret.text
    routes = allowed_routes(service.config, key)
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


def idempotency_key_of(service: AdminService, form: Form) -> IdempotencyKey | None:
    """Return the idempotency key of the form: submitting it twice issues one key."""
    if not 1 <= len(form.get("once", "")) <= _MAX_KEY_LENGTH:
        return None
    content = "\n".join(f"{name}={value}" for name, value in form.items() if name != "proof")
    fingerprint = sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
    return IdempotencyKey(token=f"page:{service.admin.name}", key=form["once"], fingerprint=fingerprint)


def already_submitted() -> Problem:
    return Problem(
        409,
        "sent_before",
        "this form was already submitted, and its key was issued then. A key is shown only once: if it is lost, "
        "revoke it and issue another",
    )


class _BadForm(Exception):
    """The form has problems, listed by field."""

    def __init__(self, problems: dict[str, str]) -> None:
        super().__init__()
        self.problems = problems


def _check(service: AdminService, fields: KeyFields) -> None:
    """Raise _BadForm if a field could not be read, with all other problems too, so that all are shown at once."""
    if not fields.problems:
        return
    problems: dict[str, str] = {}
    try:
        key_rules(service.config).check(_new_key(fields), service.now)
    except InvalidKey as invalid:
        problems = problems_of(invalid)
    raise _BadForm({**problems, **fields.problems})


async def _problems(carry_out: Callable[[], Awaitable[web.Response]]) -> web.Response | dict[str, str]:
    """Return the response, or the problems by field."""
    try:
        return await carry_out()
    except _BadForm as bad:
        return bad.problems
    except InvalidKey as invalid:
        return problems_of(invalid)
    except (AlreadyProcessed, IdempotencyKeyReused):
        raise
    except KeyConflict as conflict:
        return {"": conflict_text(conflict)}
    except Problem as refusal:
        if not refusal.errors:
            raise
        return problems_of_flaws(refusal.detail, refusal.errors)


def conflict_text(conflict: KeyConflict) -> str:
    """Describe a conflict in a sentence."""
    text = str(conflict)
    return sentence(text) if text else _CHANGED


def _writable_service(request: web.Request) -> AdminService:
    service = service_of(request)
    service.must_write()
    return service


def _issue_form(
    request: web.Request,
    service: AdminService,
    values: FormValues,
    problems: dict[str, str],
    status: int,
    idempotency_key: str,
) -> web.Response:
    form = form_view(service, values, problems=problems, idempotency_key=idempotency_key)
    return request.app[TEMPLATES].page(request, "issue.html", status=status, form=form)


def _change_form(
    request: web.Request,
    service: AdminService,
    key: ApiKey,
    values: FormValues,
    problems: dict[str, str],
    status: int,
    etag: str,
) -> web.Response:
    form = form_view(service, values, problems=problems, key=key, etag=etag)
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
