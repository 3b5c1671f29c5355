"""The list of keys."""

from collections.abc import Mapping
from typing import Final, get_args
from urllib.parse import urlencode

from aiohttp import web

from sidecar.admin.server import service_of
from sidecar.admin.service import AdminService
from sidecar.admin.web.charts import spark
from sidecar.admin.web.formatting import moment_or_none, status_badge
from sidecar.admin.web.rendering import TEMPLATES
from sidecar.admin.web.stats import totals_by_key
from sidecar.admin.web.view_models import KeyList, KeyRow, Option
from sidecar.core.apikey import looks_secret
from sidecar.core.model import EVERY, ApiKey
from sidecar.core.units import counted
from sidecar.keys.ports import NO_END, KeyFilter, Sort, Standing, after_cursor, sort_time

PAGE_SIZE: Final = 50
_STORED_BEFORE: Final = 12
"""Characters of a key that were stored readably, whatever its prefix; keys of that time keep them."""


async def list_keys(request: web.Request) -> web.Response:
    """Show a page of the keys that match the search and the filters."""
    service, query = service_of(request), _query(request)
    if looks_secret(query["search"]):
        # Whoever pastes a whole key looks for the key with this prefix. The rest must not reach the browser's history.
        text = query["search"]
        prefix = min(service.config.keys.stored_prefix(text), text[:_STORED_BEFORE], key=len)
        raise web.HTTPSeeOther(_address({"search": prefix}))
    wanted = _filter(query)
    page = await service.list(after_cursor(wanted, query["after"]))
    total = await service.total(wanted)
    totals = await totals_by_key(service, page.keys)
    more = {name: value for name, value in query.items() if name != "after" and value}
    view = KeyList(
        rows=tuple(_row(key, totals[key.id], service.now) for key in page.keys),
        search=query["search"],
        tenant=query["tenant"],
        environments=_environments(service, query["environment"]),
        standings=_standings(query["standing"]),
        one_tenant=service.admin.tenant is not None,
        filtered=any(value for name, value in query.items() if name != "sort"),
        sorts=_sorts(query["sort"]),
        total="more than 10,000 keys" if total > _MOST_SHOWN else counted(total, "key"),
        first=_address(more) if query["after"] else None,
        next=_address({**more, "after": page.next}) if page.next else None,
    )
    return request.app[TEMPLATES].page(request, "keys.html", view=view)


def _query(request: web.Request) -> dict[str, str]:
    names = ("search", "tenant", "environment", "standing", "sort", "after")
    return {name: request.query.get(name, "").strip() for name in names}


def _filter(query: Mapping[str, str]) -> KeyFilter:
    known: dict[str, Standing] = {name: name for name in get_args(Standing)}
    sorts: dict[str, Sort] = {name: name for name in get_args(Sort)}
    return KeyFilter(
        search=query["search"] or None,
        tenant=query["tenant"] or None,
        environment=query["environment"] or None,
        effective_status=known.get(query["standing"]),
        sort=sorts.get(query["sort"], "created"),
        limit=PAGE_SIZE,
    )


def _row(key: ApiKey, totals: list[int], now: int) -> KeyRow:
    ends = sort_time(key, "ends") or NO_END
    return KeyRow(
        id=key.id,
        name=key.name,
        prefix=key.prefix,
        tenant=key.tenant or "",
        environment=key.environment or "",
        status=status_badge(key, now),
        scopes=key.scopes,
        plan=key.plan or "",
        ends=moment_or_none(ends if ends < NO_END else None, now),
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


_SORTS: Final[Mapping[Sort, str]] = {
    "created": "Newest",
    "name": "Name",
    "tenant": "Tenant",
    "used": "Last used",
    "unused": "Longest unused",
    "ends": "Ends soonest",
}
_MOST_SHOWN: Final = 10_000


def _sorts(chosen: str) -> tuple[Option, ...]:
    return tuple(Option(value=name, label=label, chosen=name == chosen) for name, label in _SORTS.items())


def _address(fields: Mapping[str, str]) -> str:
    return f"/keys?{urlencode(fields)}" if fields else "/keys"
