"""The form that issues or changes a key: reading it, and showing it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import parse_qsl

from aiohttp import web
from multidict import MultiDict

from sidecar.admin.api.operations import body_of
from sidecar.admin.problems import FieldError, Problem, forbidden
from sidecar.admin.service import AdminService
from sidecar.admin.web.formatting import SESSION, limit_text, moment, sentence
from sidecar.admin.web.view_models import KeyForm, Option, QuotaField, ScopeChoice
from sidecar.config.build.config import Config
from sidecar.core.model import EVERY, ApiKey
from sidecar.core.units import parse_duration
from sidecar.gate.explain import routes_for_scope
from sidecar.keys.validation import InvalidKey, Violation

# Submitted forms: checked against cross-site requests, and read into fields.


Form = MultiDict[str]

_SECOND: Final = 1_000_000
_MAX_FIELDS: Final = 5_000
"""A bound that is checked before parsing: anyone may submit the form to sign in."""


async def form_of(request: web.Request) -> Form:
    """Read a form that a page of this session has submitted. Raises Refusal 403 for any other.

    A request that carries its admin token in a header needs no proof: no other site can make a browser send one.
    """
    fields = _fields(await body_of(request))
    session = request.get(SESSION)
    if session is not None and not session.proves(fields.get("proof", "")):
        raise forbidden("this form belongs to another session: go back, reload the page, and submit it again")
    return fields


def _fields(body: bytes) -> Form:
    """Parse a form as these pages send it: in UTF-8, whatever the Content-Type says."""
    try:
        text = body.decode("utf-8")
        return MultiDict(parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS))
    except ValueError:
        raise Problem(400, "not_a_form", "the body is not a form as these pages submit it") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFields:
    """The values of a submitted form, parsed."""

    name: str
    tenant: str | None
    environment: str | None
    scopes: tuple[str, ...]
    plan: str | None
    quotas: Mapping[str, int]
    metadata: Mapping[str, str]
    expires_at: int | None
    problems: Mapping[str, str]
    """Fields that could not be parsed, and why."""


def key_fields(form: Form, now: int, *, kept: int | None = None) -> KeyFields:
    """Parse the form. now: microseconds. kept: the expiry that the choice `keep` means."""
    problems: dict[str, str] = {}
    expires_at = _expires_at(form, now, kept, problems)
    return KeyFields(
        name=form.get("name", "").strip(),
        tenant=form.get("tenant", "").strip() or None,
        environment=form.get("environment") or None,
        scopes=tuple(form.getall("scope", [])),
        plan=form.get("plan") or None,
        quotas=_quota_fields(form, problems),
        metadata=_metadata(form.get("metadata", ""), problems),
        expires_at=expires_at,
        problems=problems,
    )


def problems_of(invalid: InvalidKey) -> dict[str, str]:
    """Return the problems of a key by field; the empty name is for problems of no single field."""
    problems: dict[str, str] = {}
    for line in invalid.problems:
        field = line.path[0] if isinstance(line, Violation) and line.path else ""
        text = sentence(line)
        problems[field] = f"{problems[field]} {text}" if field in problems else text
    return problems


def problems_of_flaws(detail: str, flaws: Sequence[FieldError]) -> dict[str, str]:
    """Return by field what the administrator may not grant."""
    problems = {flaw.pointer.split("/")[1]: sentence(flaw.detail) for flaw in flaws}
    return problems or {"": detail}


def _expires_at(form: Form, now: int, kept: int | None, problems: dict[str, str]) -> int | None:
    choice = form.get("expiry", "never")
    if choice == "never":
        return None
    if choice == "keep":
        return kept
    if choice == "on":
        try:
            day = datetime.strptime(form.get("expires_on", ""), "%Y-%m-%d").replace(tzinfo=UTC)
            return int((day + timedelta(days=1)).timestamp()) * _SECOND
        except (ValueError, OverflowError):
            problems["expires_at"] = "Choose the last day on which the key works."
            return None
    try:
        return now + int(parse_duration(choice) * _SECOND)
    except ValueError:
        problems["expires_at"] = "Choose when the key expires."
        return None


def _quota_fields(form: Form, problems: dict[str, str]) -> dict[str, int]:
    quotas = {}
    for entry, value in form.items():
        name = entry.removeprefix("quota.")
        if name == entry or not value.strip():
            continue
        try:
            quotas[name] = int(value)
        except ValueError:
            problems["quotas"] = f"The limit of {name} must be a whole number."
    return quotas


def _metadata(text: str, problems: dict[str, str]) -> dict[str, str]:
    metadata = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if not line.strip():
            continue
        if not equals:
            problems["metadata"] = f"Each line must be name=value. This one is not: {line.strip()}"
        metadata[name.strip()] = value.strip()
    return metadata


# The form as it is shown.

_EXPIRY: Final = (
    ("never", "Never"),
    ("30d", "In 30 days"),
    ("90d", "In 90 days"),
    ("365d", "In a year"),
    ("on", "On a date"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FormValues:
    """The text in the fields."""

    name: str = ""
    tenant: str = ""
    environment: str = ""
    scopes: Sequence[str] = ()
    plan: str = ""
    quotas: Mapping[str, str] = field(default_factory=dict)
    metadata: str = ""
    expiry: str = "never"
    expires_on: str = ""


_EXPIRY_OF_NEW: Final = "90d"
"""The default expiry: forgotten keys end by themselves; a key without an end must be requested."""


def empty_values(service: AdminService) -> FormValues:
    """Return the values of an empty form, with the default scopes that the administrator may grant, and the plan."""
    keys = service.config.keys
    default = keys.default_scopes
    forbidden = service.admin.ungrantable(default, service.config.catalogue)
    scopes = [scope for scope in default if scope not in forbidden]
    return FormValues(scopes=scopes, plan=keys.default_plan or "", expiry=_EXPIRY_OF_NEW)


def submitted_values(form: Form) -> FormValues:
    """Return the values as they were submitted, to show them again."""
    return FormValues(
        name=form.get("name", ""),
        tenant=form.get("tenant", ""),
        environment=form.get("environment", ""),
        scopes=form.getall("scope", []),
        plan=form.get("plan", ""),
        quotas={name.removeprefix("quota."): value for name, value in form.items() if name.startswith("quota.")},
        metadata=form.get("metadata", ""),
        expiry=form.get("expiry", "never"),
        expires_on=form.get("expires_on", ""),
    )


def values_of(key: ApiKey) -> FormValues:
    """Return the current values of a key."""
    return FormValues(
        name=key.name,
        tenant=key.tenant or "",
        environment=key.environment or "",
        scopes=key.scopes,
        plan=key.plan or "",
        quotas={name: str(limit) for name, limit in key.quotas.items()},
        metadata="\n".join(f"{name}={value}" for name, value in key.metadata.items()),
        expiry="never" if key.expires_at is None else "keep",
    )


def form_view(
    service: AdminService,
    values: FormValues,
    *,
    problems: Mapping[str, str] | None = None,
    key: ApiKey | None = None,
    idempotency_key: str = "",
    etag: str = "",
) -> KeyForm:
    """Return the view of the form. key: the key to change, if any. problems: field to its problem."""
    config, admin = service.config, service.admin
    # A key that is issued without a plan gets the default one.
    no_plan = admin.may_plan(None) and (key is not None or config.keys.default_plan is None)
    grantable = admin.grantable(config.catalogue)
    return KeyForm(
        name=values.name,
        tenant=values.tenant,
        fixed_tenant=admin.tenant,
        environments=_environments(config, values.environment),
        scopes=tuple(_scope(config, name, name in values.scopes) for name in grantable),
        other_scopes=tuple(scope for scope in values.scopes if scope not in grantable),
        plans=_plans(config, admin.plans_of(config.plans), values.plan, no_plan=no_plan),
        quotas=tuple(_quotas(config, values.quotas)),
        metadata=values.metadata,
        expiry=_expiry(values.expiry, key, service.now),
        expires_on=values.expires_on,
        problems=problems or {},
        idempotency_key=idempotency_key,
        etag=etag,
    )


def _environments(config: Config, chosen: str) -> tuple[Option, ...]:
    named = [Option(value=name, label=name, chosen=name == chosen) for name in config.keys.environments]
    return *named, Option(value=EVERY, label="Every environment", chosen=chosen == EVERY)


def _scope(config: Config, name: str, chosen: bool) -> ScopeChoice:
    scope = config.catalogue.scopes[name]
    return ScopeChoice(
        name=name,
        description=scope.description,
        includes=scope.includes,
        opens=tuple(route.name for route in routes_for_scope(config, name)),
        chosen=chosen,
    )


def _plans(config: Config, names: Iterable[str], chosen: str, *, no_plan: bool) -> tuple[Option, ...]:
    none = [Option(value="", label="No plan")] if no_plan else []
    offered = list(names)
    kept = [chosen] if chosen and chosen not in offered else []
    return *none, *(
        Option(value=name, label=_plan_text(config, name), chosen=name == chosen) for name in [*offered, *kept]
    )


def _plan_text(config: Config, name: str) -> str:
    """Return `pro: general 5,000 per hour`, or the name of a plan without limits, or that the file no longer has."""
    limits = [
        f"{quota} {'unlimited' if limit is None else limit_text(config.quotas[quota], limit)}"
        for quota, limit in config.plans.get(name, {}).items()
        if quota in config.quotas
    ]
    return f"{name}: {', '.join(limits)}" if limits else name


def _quotas(config: Config, values: Mapping[str, str]) -> Iterable[QuotaField]:
    for name, quota in config.quotas.items():
        yield QuotaField(name=name, limit=limit_text(quota, quota.limit), value=values.get(name, ""))


def _expiry(chosen: str, key: ApiKey | None, now: int) -> tuple[Option, ...]:
    choices = list(_EXPIRY)
    if key is not None and key.expires_at is not None:
        choices.insert(0, ("keep", f"Unchanged: {moment(key.expires_at, now).exact}"))
    return tuple(Option(value=value, label=label, chosen=value == chosen) for value, label in choices)
