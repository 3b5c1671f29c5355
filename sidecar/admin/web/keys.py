"""The list of keys."""

from collections.abc import Mapping
from typing import Final, get_args
from urllib.parse import urlencode

from aiohttp import web

from sidecar.admin.server import service_of
from sidecar.admin.service import AdminService
from sidecar.admin.web.charts import spark
from sidecar.admin.web.formatting import effective_status, moment_or_none
from sidecar.admin.web.rendering import TEMPLATES
from sidecar.admin.web.stats import totals_by_key
from sidecar.admin.web.view_models import KeyList, KeyRow, Option
from sidecar.core.apikey import looks_secret
from sidecar.core.model import EVERY, ApiKey
from sidecar.keys.ports import KeyFilter, Standing

PAGE_SIZE: Final = 50


async def list_keys(request: web.Request) -> web.Response:
    """A page of keys that fit the search and the filters."""
    service, asked = service_of(request), _asked(request)
    if looks_secret(asked["search"]):
        # Whoever pastes a whole key means the one that begins so; the rest of it is for no store and no history.
        beginning = asked["search"][: service.config.keys.prefix_length]
        raise web.HTTPSeeOther(_address({"search": beginning}))
    page = await service.list(_filter(asked))
    totals = await totals_by_key(service, page.keys)
    more = {name: value for name, value in asked.items() if name != "after" and value}
    view = KeyList(
        rows=tuple(_row(key, totals[key.id], service.now) for key in page.keys),
        search=asked["search"],
        tenant=asked["tenant"],
        environments=_environments(service, asked["environment"]),
        standings=_standings(asked["standing"]),
        one_tenant=service.admin.tenant is not None,
        filtered=any(asked.values()),
        first=_address(more) if asked["after"] else None,
        next=_address({**more, "after": page.next}) if page.next else None,
    )
    return request.app[TEMPLATES].page(request, "keys.html", view=view)


def _asked(request: web.Request) -> dict[str, str]:
    names = ("search", "tenant", "environment", "standing", "after")
    return {name: request.query.get(name, "").strip() for name in names}


def _filter(asked: Mapping[str, str]) -> KeyFilter:
    known: dict[str, Standing] = {name: name for name in get_args(Standing)}
    return KeyFilter(
        search=asked["search"] or None,
        tenant=asked["tenant"] or None,
        environment=asked["environment"] or None,
        effective_status=known.get(asked["standing"]),
        after=asked["after"] or None,
        limit=PAGE_SIZE,
    )


def _row(key: ApiKey, totals: list[int], now: int) -> KeyRow:
    return KeyRow(
        id=key.id,
        name=key.name,
        prefix=key.prefix,
        tenant=key.tenant or "",
        environment=key.environment or "",
        effective_status=effective_status(key, now),
        last_used=moment_or_none(key.last_used_at, now),
        requests=f"{sum(totals):,}",
        spark=spark(totals, span="24 hours"),
    )


def _environments(service: AdminService, chosen: str) -> tuple[Option, ...]:
    names = [*service.config.keys.environments, EVERY]
    every = Option(value="", label="Any environment")
    return every, *(Option(value=name, label=name, chosen=name == chosen) for name in names)


def _standings(chosen: str) -> tuple[Option, ...]:
    every = Option(value="", label="Any status")
    names = get_args(Standing)
    return every, *(Option(value=name, label=name.capitalize(), chosen=name == chosen) for name in names)


def _address(query: Mapping[str, str]) -> str:
    return f"/keys?{urlencode(query)}" if query else "/keys"
