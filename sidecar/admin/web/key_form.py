"""The form that issues or changes a key, filled in."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sidecar.admin.pages_forms import Form
from sidecar.admin.service import Desk
from sidecar.admin.web.formatting import moment, quota_said
from sidecar.admin.web.route_access import opened_by_scope
from sidecar.admin.web.view_models import KeyForm, Option, QuotaField, ScopeChoice
from sidecar.config.settings import Config
from sidecar.core.model import EVERY, ApiKey

_EXPIRY: Final = (
    ("never", "Never"),
    ("30d", "In 30 days"),
    ("90d", "In 90 days"),
    ("365d", "In a year"),
    ("on", "On a date"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """What stands in the fields."""

    name: str = ""
    tenant: str = ""
    environment: str = ""
    scopes: Sequence[str] = ()
    plan: str = ""
    quotas: Mapping[str, str] = field(default_factory=dict)
    metadata: str = ""
    expiry: str = "never"
    expires_on: str = ""


def filled_anew(desk: Desk) -> Filled:
    """An empty form, with the default scopes."""
    return Filled(scopes=desk.config.keys.default_scopes)


def filled_from(form: Form) -> Filled:
    """The form as it was sent, to be shown again."""
    return Filled(
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


def filled_of(key: ApiKey) -> Filled:
    """What the key has now."""
    return Filled(
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
    desk: Desk,
    filled: Filled,
    *,
    problems: Mapping[str, str] | None = None,
    key: ApiKey | None = None,
    once: str = "",
    etag: str = "",
) -> KeyForm:
    """key: the one that is changed. problems: field to what is wrong with it."""
    config, admin = desk.config, desk.admin
    grantable = admin.grantable(config.catalogue)
    return KeyForm(
        name=filled.name,
        tenant=filled.tenant,
        fixed_tenant=admin.tenant,
        environments=_environments(config, filled.environment),
        scopes=tuple(_scope(config, name, name in filled.scopes) for name in grantable),
        other_scopes=tuple(scope for scope in filled.scopes if scope not in grantable),
        plans=_plans(admin.plans_of(config.plans), filled.plan, no_plan=admin.may_plan(None)),
        quotas=tuple(_quotas(config, filled.quotas)),
        metadata=filled.metadata,
        expiry=_expiry(filled.expiry, key, desk.now),
        expires_on=filled.expires_on,
        problems=problems or {},
        once=once,
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
        opens=tuple(route.name for route in opened_by_scope(config, name)),
        chosen=chosen,
    )


def _plans(names: Iterable[str], chosen: str, *, no_plan: bool) -> tuple[Option, ...]:
    none = [Option(value="", label="No plan")] if no_plan else []
    offered = list(names)
    kept = [chosen] if chosen and chosen not in offered else []
    return *none, *(Option(value=name, label=name, chosen=name == chosen) for name in [*offered, *kept])


def _quotas(config: Config, filled: Mapping[str, str]) -> Iterable[QuotaField]:
    for name, quota in config.quotas.items():
        yield QuotaField(name=name, said=quota_said(quota, quota.limit), value=filled.get(name, ""))


def _expiry(chosen: str, key: ApiKey | None, now: int) -> tuple[Option, ...]:
    choices = list(_EXPIRY)
    if key is not None and key.expires_at is not None:
        choices.insert(0, ("keep", f"As it is: {moment(key.expires_at, now).exact}"))
    return tuple(Option(value=value, label=label, chosen=value == chosen) for value, label in choices)
